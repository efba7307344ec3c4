"""Ablations of the bundled model: named arms, each in a process of its own, in one table.

    python benchmarks/model_ablations.py --shards DIR --flores DIR --tatoeba DIR --arms base "distil 1" \\
        --keep runs.jsonl -o benchmarks/results/model_ablations.md
    python benchmarks/model_ablations.py --arms none --keep runs.jsonl -o ...     # only make the table again
    python benchmarks/model_ablations.py --list

An arm is a recipe (BASE) with a few fields changed; model_arms.py has them. Those of the warm start run it whole, from fresh
weights; those of later stages begin with the warm start of --start, which is run first where --work does not hold it. The
shards need a teacher's vectors (`mexma-train teach`) for the arms with a teacher alone. model_dev.py has the split and the
figures, model_table.py the table, model_variants.py what an arm does that the product has no option for.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import model_dev
import model_table
import numpy as np
import torch
from model_arms import ARMS, BASE, Arm
from model_dev import describe_tokenizer
from model_variants import VARIANTS, Setting
from safetensors.torch import load_file, save_file

from mexma_rt.backends.packed_encoder import Encoder
from mexma_rt.files.atomic import atomic_write
from mexma_train.config import Recipe
from mexma_train.data.dev_split import held_out_segments, training_part
from mexma_train.data.shards import Shards, open_shards
from mexma_train.encoder import new_encoder
from mexma_train.loop import Stage, updates
from mexma_train.model import Mexma
from mexma_train.parallel import World
from mexma_train.run import mexma_stage, ranking_stage, warmup_stage
from mexma_train.sampling import PairSampler
from mexma_train.warmup import make_transparent, prepare_for_masking

BAGS = ("warmup", "again")  # stages of a transparent encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--flores", type=Path)
    parser.add_argument("--tatoeba", type=Path)
    parser.add_argument("--arms", nargs="+", choices=["none", *ARMS], metavar="ARM", default=["none"])
    parser.add_argument("--steps", type=int, default=300, help="updates of the warm start")
    parser.add_argument("--later-steps", type=int, default=60, help="updates of the other stages, with three layers")
    parser.add_argument("--later-pairs", type=int, help="pairs of an update of the other stages (default: 512 and 256)")
    parser.add_argument("--batch-pairs", type=int, default=2_048, help="drawn pairs of an update of the warm start")
    parser.add_argument("--lines", type=int, help="of each test file (default: all)")
    parser.add_argument("--few", action="store_true", help="measure the stages with all layers on a part: see model_dev.FEW")
    parser.add_argument("--start", choices=[arm for arm in ARMS if ARMS[arm].stage == "warmup"], default="base", metavar="ARM")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=42, help="of weights, draws and masks")
    parser.add_argument("--keep", type=Path, help="JSON lines, one for each arm; the table is made of them")
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"), help="folder of the warm starts")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--describe", action="store_true", help="run no arm, only add the tokenizer of --shards to the table")
    parser.add_argument("--list", action="store_true", help="show the arms")
    options = parser.parse_args()
    if options.list:
        print(*(f"{name:32} {arm.question or 'what all are compared with'}. {arm.why}" for name, arm in ARMS.items()), sep="\n")
        return
    arms = [arm for arm in options.arms if arm != "none"]
    if not options.keep or (arms and not (options.shards and options.flores and options.tatoeba)):
        parser.error("give --keep FILE, and for every arm but none also --shards, --flores and --tatoeba")
    if options.describe and not options.shards:
        parser.error("--describe needs the --shards whose tokenizer it describes")
    if options.describe:
        shards = open_shards(options.shards)
        keep_row(options.keep, {"stage": "tokenizer", "corpus_pairs": len(shards), "tokenizer": describe_tokenizer(shards)})
    if arms:
        for folder in (options.work, options.keep.parent):
            folder.mkdir(parents=True, exist_ok=True)
        ground = read_ground(options)
    for arm in arms:
        if begins_with_start(ARMS[arm]) and not start_file(options).exists():
            run_alone(options.start, options, ground)
        run_alone(arm, options, ground)
    if options.out:
        with atomic_write(options.out) as stream:
            stream.write(table_of(options.keep).encode())


def table_of(keep: Path) -> str:
    """The table of the kept rows in the order of ARMS; then those of arms that ARMS has not, which say what they were."""
    rows = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    tokenizers = [row for row in rows if row["stage"] == "tokenizer"]
    rows = [row for row in rows if row["stage"] != "tokenizer"]
    known = {name: [row for row in rows if row["arm"] == name] for name in ARMS}
    about = {name: {"question": arm.question, "why": arm.why} for name, arm in ARMS.items()}
    ordered = [row | about[name] for name, own in known.items() for row in own]
    others = [row for row in rows if row["arm"] not in ARMS]
    return model_table.table(ordered + others, not_run=[name for name, own in known.items() if not own], described=tokenizers)


def run_alone(name: str, options: argparse.Namespace, ground: Ground) -> None:
    """A process for each arm, so that all begin alike; a failed one ends the benchmark.

    Forked, so that the tests are read and cut into pieces once: this process has run nothing in threads of torch.
    """
    process = multiprocessing.get_context("fork").Process(target=run_arm, args=(name, options, ground))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"the arm {name!r} failed with status {process.exitcode}; its error stands above")


def recipe_of(name: str, options: argparse.Namespace) -> Recipe:
    arm, later = ARMS[name], options.later_steps
    if arm.stage == "ranking":
        later = max(1, round(later * BASE.model.layers / arm.changes.get("model.layers", BASE.model.layers)))
    batch = {"batch_pairs": options.later_pairs} if options.later_pairs else {}
    values: dict[str, dict[str, Any]] = {
        "warmup": {"steps": options.steps, "batch_pairs": options.batch_pairs},
        "ranking": {"steps": later} | batch,
        "mexma": {"steps": later, "seed": options.seed} | batch,
        "sampling": {"seed": options.seed + (arm.stage == "again")},  # not the draws of the start once more
    }
    for key, value in arm.changes.items():
        section, name_of_field = key.split(".")
        values.setdefault(section, {})[name_of_field] = value
    return replace(BASE, **{section: replace(getattr(BASE, section), **changed) for section, changed in values.items()})


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What all arms share: the shards, the part to train on, the dev pairs and the tests for bags and for whole encoders."""

    commit: str
    shards: Shards
    training: Shards
    pairs: dict[str, np.ndarray]
    tests: model_dev.Tests
    few_pairs: dict[str, np.ndarray]
    few_tests: model_dev.Tests
    tokenizer: dict[str, Any]


def read_ground(options: argparse.Namespace) -> Ground:
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    shards = open_shards(options.shards)
    held = held_out_segments(shards, model_dev.HELD_OUT)
    pairs = model_dev.dev_pairs(shards, held)
    tests = model_dev.read_tests(options.flores, options.tatoeba, shards, options.lines)
    few_pairs, few_tests = model_dev.few(pairs, tests)
    return Ground(
        commit=subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        shards=shards,
        training=training_part(shards, held),
        pairs=pairs,
        tests=tests,
        few_pairs=few_pairs,
        few_tests=few_tests,
        tokenizer=describe_tokenizer(shards),
    )


def run_arm(name: str, options: argparse.Namespace, ground: Ground) -> None:
    """Train and measure one arm, and add its line to --keep."""
    torch.set_num_threads(options.threads)
    arm, recipe, world, shards = ARMS[name], recipe_of(name, options), World(device=torch.device("cpu")), ground.shards
    sampler = PairSampler(ground.training, recipe.sampling)
    torch.manual_seed(options.seed)
    encoder = first_encoder(arm, recipe, shards.vocab_size, options)
    model = Mexma(encoder, recipe.model)
    judge = first_encoder(arm, recipe, shards.vocab_size, options) if arm.stage == "again" and arm.variant else None
    setting = Setting(recipe=recipe, model=model, sampler=sampler, judge=judge)
    began = time.process_time()
    pairs_seen = sum(run(name, stage, options.work, world) for stage in stages(arm, setting, options.seed, world))
    cpu_seconds = time.process_time() - began
    bags = arm.stage in BAGS
    few = options.few and not bags
    embed = partial(model_dev.embed_bags if bags else model_dev.embed_whole, encoder.eval())
    figures = model_dev.measure(
        embed, shards, ground.few_pairs if few else ground.pairs, ground.few_tests if few else ground.tests
    )
    config = getattr(recipe, "warmup" if bags else arm.stage)
    parameters = sum(p.numel() for p in encoder.parameters())
    row = {
        "arm": name,
        "stage": arm.stage,
        "start": options.start if begins_with_start(arm) else None,
        "made_by": f"{ground.commit}, torch {torch.__version__}",
        "date": str(datetime.date.today()),
        "seed": options.seed,
        "steps": options.steps,
        "lines": options.lines,
        "few": few,
        "updates": config.steps,
        "batch_pairs": config.batch_pairs,
        "pairs_seen": pairs_seen,
        "cpu_seconds": cpu_seconds,
        "threads": options.threads,
        "corpus_pairs": len(shards),
        "parameters": parameters,
        "embedding_share": 100 * encoder.embeddings.word_embeddings.weight.numel() / parameters,
        "notes": setting.notes,
        "tokenizer": ground.tokenizer,
        **figures,
    }
    keep_row(options.keep, row)
    if name == options.start:  # last, so that where this file is there is also a row
        save_start(encoder, start_file(options))


def keep_row(keep: Path, row: dict[str, Any]) -> None:
    with keep.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def begins_with_start(arm: Arm) -> bool:
    return arm.stage != "warmup" and arm.from_start


def first_encoder(arm: Arm, recipe: Recipe, vocab_size: int, options: argparse.Namespace) -> Encoder:
    """What the arm's first stage begins with."""
    encoder = new_encoder(recipe.model, vocab_size)
    if arm.stage == "warmup" or arm.from_start:
        make_transparent(encoder)
    if begins_with_start(arm):
        load_start(encoder, start_file(options))
        if arm.stage not in BAGS:
            prepare_for_masking(encoder)
    return encoder


def stages(arm: Arm, setting: Setting, seed: int, world: World) -> list[Stage]:
    """The stages of an arm, in their order."""
    recipe, model, sampler = setting.recipe, setting.model, setting.sampler
    assert recipe.warmup and recipe.ranking
    if arm.stage in BAGS:
        made = [warmup_stage(recipe.warmup, model, sampler, seed)]
    elif arm.stage == "ranking":
        made = [mexma_stage(recipe, model, sampler, world, [])] if arm.masked_first else []
        made.append(ranking_stage(recipe.ranking, recipe, model, sampler))
    else:
        made = [mexma_stage(recipe, model, sampler, world, [])]
    if arm.variant:
        made[-1] = VARIANTS[arm.variant](made[-1], setting)
    return made


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
    name = f"{options.start}-{options.shards.name}-{options.steps}-{options.batch_pairs}-{options.seed}".replace(" ", "-")
    return Path(options.work / f"{name}.safetensors")


def save_start(encoder: Encoder, path: Path) -> None:
    """The tables and the last layer: the others are the identity, however many there are."""
    parts = {"embeddings": encoder.embeddings, "last": encoder.encoder.layer[-1]}
    save_file({f"{part}.{name}": x for part, module in parts.items() for name, x in module.state_dict().items()}, path)


def load_start(encoder: Encoder, path: Path) -> None:
    """Into a transparent encoder of any depth."""
    saved = load_file(path)
    for part, module in {"embeddings": encoder.embeddings, "last": encoder.encoder.layer[-1]}.items():
        module.load_state_dict({key.removeprefix(f"{part}."): x for key, x in saved.items() if key.startswith(f"{part}.")})


if __name__ == "__main__":
    main()
