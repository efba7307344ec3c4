"""Ablations of the bundled model: named arms, each in a process of its own, in one table.

    python benchmarks/model_ablations.py --shards DIR --flores DIR --tatoeba DIR --arms base "distil 1" \\
        --keep runs.jsonl -o benchmarks/results/model_ablations.md
    python benchmarks/model_ablations.py --arms none --keep runs.jsonl -o ...     # only make the table again
    python benchmarks/model_ablations.py --list

An arm is a recipe (BASE) with a few fields changed. Those of the warm start run it whole, from fresh weights; those of the
ranking and of the MEXMA stage begin with the warm start of --start, which is run first where --work does not hold it. The
shards need a teacher's vectors (`mexma-train teach`) for the distil arms alone. model_dev.py has the split and the figures.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import model_dev
import torch
from safetensors.torch import load_file, save_file

from mexma_rt.files import atomic_write
from mexma_train.config import MexmaConfig, ModelConfig, RankingConfig, Recipe, SamplingConfig, WarmupConfig
from mexma_train.encoder import Encoder, new_encoder
from mexma_train.loop import Stage, updates
from mexma_train.model import Mexma
from mexma_train.parallel import World
from mexma_train.run import mexma_stage, ranking_stage, warmup_stage
from mexma_train.sampling import PairSampler
from mexma_train.shards import open_shards
from mexma_train.warmup import make_transparent, settle

WEIGHTS = {"ui": 0.25, "lohelp": 0.4, "bible": 0.5, "ddtp": 0.5, "tatoeba": 2.0, "stories": 2.0, "wmt": 2.0}
BASE = Recipe(  # written out here, so that the figures keep their meaning when train/recipes/mini.py moves on
    name="base",
    model=ModelConfig(
        hidden_size=256,
        layers=3,
        heads=4,
        intermediate_size=1_024,
        dropout=0.0,
        head_layers=1,
        head_heads=4,
        head_intermediate_size=1_024,
    ),
    sampling=SamplingConfig(temperature=0.5, source_weights=WEIGHTS),
    warmup=WarmupConfig(steps=300, batch_pairs=2_048, lr=2e-2, temperature=0.05, max_tokens=64),
    ranking=RankingConfig(steps=60, batch_pairs=512),
    mexma=MexmaConfig(  # MEXMA's own weights of the terms
        steps=60,
        batch_pairs=256,
        accumulation=1,
        warmup_share=0.1,
        sampled_pieces=2_048,  # 64,000 logits a token would be half of the work
        max_tokens=96,
        freeze_words=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    question: str
    why: str
    changes: dict[str, Any] = field(default_factory=dict)  # of BASE: {"section.field": value}
    stage: str = "warmup"
    from_start: bool = True  # ranking and mexma: from the warm start of --start, else from fresh weights


TEACHER, SIZE, LANGUAGES = "A teacher's English vectors", "Width", "Temperature of language sampling"
SOURCES, LEAVE_ONE_OUT = "Weights of the sources", "What a source adds: leave one out"
DEPTH, BEGINNING = "Depth, in the ranking stage", "What the ranking stage begins with"
ALIGNMENT, KOLEO, MASKING = "Alignment, in a MEXMA stage", "KoLeo, in a MEXMA stage", "Masking ratio, in a MEXMA stage"
DEEP = "As many FLOPs in the layers as with three: the updates go down as the layers go up."


def distil(weight: float, why: str, **changes: Any) -> Arm:
    dotted = {f"warmup.{name}": value for name, value in changes.items()}
    return Arm(question=TEACHER, why=why, changes={"warmup.distil_weight": weight} | dotted)


def mexma(question: str, why: str, **changes: Any) -> Arm:
    return Arm(question=question, why=why, stage="mexma", changes={f"mexma.{name}": value for name, value in changes.items()})


ARMS = {
    "base": Arm(question="", why="Ranking of the pairs alone, no teacher; natural sources weigh more."),
    "distil 1": distil(1.0, "Both sides also look for the teacher's vector of their English side, by InfoNCE."),
    "distil 3": distil(3.0, "The teacher counts three times as much as the pairs."),
    "distil alone": distil(1.0, "Without the ranking of the pairs: is the teacher enough?", contrastive_weight=0.0),
    "distil 1, temperature 0.03": distil(1.0, "Both softmaxes sharper.", temperature=0.03, distil_temperature=0.03),
    "distil 2, temperature 0.08": distil(2.0, "Both softmaxes softer.", temperature=0.08, distil_temperature=0.08),
    "distil 1, no source weights": replace(
        distil(1.0, "Every pair of a language alike: does the teacher make up for dull sources?"),
        changes={"warmup.distil_weight": 1.0, "sampling.source_weights": {}},
    ),
    "width 384": Arm(
        question=SIZE,
        why="Half as many parameters again, nearly all in the embedding; feed-forward layer in proportion.",
        changes={"model.hidden_size": 384, "model.intermediate_size": 1_536},
    ),
    **{
        f"languages n^{power}": Arm(question=LANGUAGES, why=why, changes={"sampling.temperature": power})
        for power, why in {
            0.3: "Languages nearly alike; base has 0.5.",
            0.7: "Large languages more often; base has 0.5.",
            1.0: "Languages as large as they are.",
        }.items()
    },
    "no source weights": Arm(
        question=SOURCES, why="Every pair of a language is drawn alike.", changes={"sampling.source_weights": {}}
    ),
    **{
        f"without {source}": Arm(
            question=LEAVE_ONE_OUT,
            why="As many pairs of the other sources instead.",
            changes={"sampling.source_weights": WEIGHTS | {source: 0.0}},
        )
        for source in ("ui", "lohelp", "bible", "ddtp", "tatoeba", "wmt", "stories", "pydocs", "help")
    },
    "ranking": Arm(question=BEGINNING, stage="ranking", why="Three layers, from the warm start."),
    "ranking, fresh": Arm(question=BEGINNING, stage="ranking", from_start=False, why="From random weights: no warm start."),
    "ranking, 2 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 2}),
    "ranking, 4 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 4}),
    "ranking, 6 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 6}),
    "mexma": mexma(ALIGNMENT, "As the paper: mean squared error, KoLeo 0.01, 40 % masked."),
    "mexma, contrastive": mexma(ALIGNMENT, "InfoNCE in place of the mean squared error.", alignment="contrastive"),
    "mexma, contrastive beside": mexma(
        ALIGNMENT, "InfoNCE 1 beside the MSE, this and MLM at 0.1.", contrastive_weight=1.0, mlm_weight=0.1, align_weight=0.1
    ),
    "mexma, KoLeo 0": mexma(KOLEO, "Nothing holds the vectors apart but the tokens.", koleo_weight=0.0),
    "mexma, KoLeo 0.1": mexma(KOLEO, "Ten times the paper's.", koleo_weight=0.1),
    "mexma, 20 % masked": mexma(MASKING, "Easier to guess from the neighbours alone.", mask_ratio=0.2),
    "mexma, 60 % masked": mexma(MASKING, "More left to the other side's sentence vector.", mask_ratio=0.6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--flores", type=Path)
    parser.add_argument("--tatoeba", type=Path)
    parser.add_argument("--arms", nargs="+", choices=["none", *ARMS], metavar="ARM", default=["none"])
    parser.add_argument("--steps", type=int, default=300, help="updates of the warm start")
    parser.add_argument("--later-steps", type=int, default=60, help="updates of the other stages, with three layers")
    parser.add_argument("--start", choices=[arm for arm in ARMS if ARMS[arm].stage == "warmup"], default="base", metavar="ARM")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42, help="of weights, draws and masks")
    parser.add_argument("--keep", type=Path, help="JSON lines, one for each arm; the table is made of them")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the warm starts")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--list", action="store_true", help="show the arms")
    options = parser.parse_args()
    if options.list:
        print(*(f"{name:28} {arm.question or 'what all are compared with'}. {arm.why}" for name, arm in ARMS.items()), sep="\n")
        return
    arms = [arm for arm in options.arms if arm != "none"]
    if not options.keep or (arms and not (options.shards and options.flores and options.tatoeba)):
        parser.error("give --keep FILE, and for every arm but none also --shards, --flores and --tatoeba")
    for arm in arms:
        if ARMS[arm].stage != "warmup" and ARMS[arm].from_start and not start_file(options).exists():
            run_alone(options.start, options)
        run_alone(arm, options)
    if options.out:
        with atomic_write(options.out) as stream:
            stream.write(table_of(options.keep).encode())


def table_of(keep: Path) -> str:
    """The table of the kept rows in the order of ARMS; then those of arms that ARMS has not, which say what they were."""
    rows = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    known = {name: [row for row in rows if row["arm"] == name] for name in ARMS}
    about = {name: {"question": arm.question, "why": arm.why} for name, arm in ARMS.items()}
    ordered = [row | about[name] for name, own in known.items() for row in own]
    others = [row for row in rows if row["arm"] not in ARMS]
    return model_dev.table(ordered + others, not_run=[name for name, own in known.items() if not own])


def run_alone(name: str, options: argparse.Namespace) -> None:
    """A process for each arm, so that all begin alike; a failed one ends the benchmark."""
    for folder in (options.work, options.keep.parent):
        folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(target=run_arm, args=(name, options))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the arm {name!r} failed with status {process.exitcode}; its error stands above")


def recipe_of(name: str, options: argparse.Namespace) -> Recipe:
    arm, later = ARMS[name], options.later_steps
    if arm.stage == "ranking":
        later = max(1, round(later * BASE.model.layers / arm.changes.get("model.layers", BASE.model.layers)))
    values: dict[str, dict[str, Any]] = {
        "warmup": {"steps": options.steps},
        "ranking": {"steps": later},
        "mexma": {"steps": later, "seed": options.seed},
        "sampling": {"seed": options.seed},
    }
    for key, value in arm.changes.items():
        section, name_of_field = key.split(".")
        values.setdefault(section, {})[name_of_field] = value
    return replace(BASE, **{section: replace(getattr(BASE, section), **changed) for section, changed in values.items()})


def run_arm(name: str, options: argparse.Namespace) -> None:
    """Train and measure one arm, and add its line to --keep."""
    torch.set_num_threads(options.threads)
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    arm, recipe, world = ARMS[name], recipe_of(name, options), World(device=torch.device("cpu"))
    shards, tests = open_shards(options.shards), model_dev.read_tests(options.flores, options.tatoeba)
    held = model_dev.held_out_segments(shards)
    pairs = model_dev.dev_pairs(shards, held)
    sampler = PairSampler(model_dev.training_part(shards, held), recipe.sampling)
    torch.manual_seed(options.seed)
    encoder = new_encoder(recipe.model, shards.vocab_size)
    if arm.stage == "warmup" or arm.from_start:
        make_transparent(encoder)
    if arm.stage != "warmup" and arm.from_start:
        load_start(encoder, start_file(options))
    model = Mexma(encoder, recipe.model)
    if arm.stage == "warmup" and recipe.warmup:
        stage = warmup_stage(recipe.warmup, model, sampler, options.seed)
    elif arm.stage == "ranking" and recipe.ranking:
        stage = ranking_stage(recipe.ranking, recipe, model, sampler)
    else:
        stage = mexma_stage(recipe, model, sampler, world, [])
    began = time.process_time()
    pairs_seen = run(name, stage, options.work, world)
    cpu_seconds = time.process_time() - began
    embed = partial(model_dev.embed_bags if arm.stage == "warmup" else model_dev.embed_whole, encoder.eval())
    row = {
        "arm": name,
        "stage": arm.stage,
        "start": options.start if arm.stage != "warmup" and arm.from_start else None,
        "made_by": f"{commit}, torch {torch.__version__}",
        "date": str(datetime.date.today()),
        "seed": options.seed,
        "steps": options.steps,
        "updates": stage.steps,
        "pairs_seen": pairs_seen,
        "cpu_seconds": cpu_seconds,
        "threads": options.threads,
        "corpus_pairs": len(shards),
        "tokenizer": model_dev.describe_tokenizer(shards),
        **model_dev.measure(embed, shards, pairs, tests),
    }
    with options.keep.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    if name == options.start:  # last, so that where this file is there is also a row
        save_start(encoder, start_file(options))


def run(name: str, stage: Stage, work: Path, world: World) -> int:
    """All updates of a stage; returns the pairs it has seen."""
    seen: list[int] = []

    def batches(update: int) -> list[Any]:
        made = stage.batches(update)
        seen.append(sum(batch.pairs for batch in made))
        return made

    stage.module.train()
    for done, terms, _ in updates(replace(stage, batches=batches), 0, work, world):
        if done % 20 == 0 or done == stage.steps:
            print(f"{name}: update {done} of {stage.steps}, loss {terms['loss']:.3f}", flush=True)
    return sum(seen)


def start_file(options: argparse.Namespace) -> Path:
    name = f"{options.start}-{options.shards.name}-{options.steps}-{options.seed}".replace(" ", "-")
    return Path(options.work / f"{name}.safetensors")


def save_start(encoder: Encoder, path: Path) -> None:
    """The tables and the last layer: the others are the identity, however many there are."""
    parts = {"embeddings": encoder.embeddings, "last": encoder.encoder.layer[-1]}
    save_file({f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}, path)


def load_start(encoder: Encoder, path: Path) -> None:
    """Into a transparent encoder of any depth; then what follows a warm start."""
    saved = load_file(path)
    for part, module in {"embeddings": encoder.embeddings, "last": encoder.encoder.layer[-1]}.items():
        module.load_state_dict({key.removeprefix(f"{part}."): x for key, x in saved.items() if key.startswith(f"{part}.")})
    settle(encoder)


if __name__ == "__main__":
    main()
