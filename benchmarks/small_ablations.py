"""Which training of the bundled model pays: arms of equal CPU time from one pretrained encoder, measured on held-out pairs.

    python benchmarks/small_ablations.py SHARDS ENCODER OUT --flores DIR --tatoeba DIR [--minutes 7] [--only NAME]

SHARDS as prepared for train/recipes/small.py, ENCODER a Hugging Face folder (e5_small_start.py). One thread; every arm trains
for the same CPU time (a stage's schedule is laid over the updates that fit, by the speed of its first ones), from the same
weights and seed. OUT/arms.jsonl gets a line an arm; finished arms are not run again. `--table` prints the page's table.

dev      % of held-out texts whose nearest vector among the English sides of all dev pairs is not their translation
flores   xsim error in % on FLORES-200 devtest, mean of FLORES
tatoeba  accuracy in % on LASER's Tatoeba test, both directions, mean of TATOEBA
untrained  xsim error in % on FLORES, languages without training pairs

Arms are chosen by dev alone. D dimensions.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import model_dev
import numpy as np
import torch

from mexma_rt.backends.packed_encoder import Encoder
from mexma_rt.evaluation.measures import retrieval_accuracy, xsim
from mexma_train.batch import prefetch
from mexma_train.config import MexmaConfig, RankingConfig, Recipe, load_recipe
from mexma_train.data.dev_split import held_out_segments
from mexma_train.data.shards import Ragged, Shards, open_shards
from mexma_train.data.tokenizer import load_tokenizer
from mexma_train.encoder import load_encoder
from mexma_train.loop import Stage
from mexma_train.model import Mexma
from mexma_train.parallel import World, clip_gradient
from mexma_train.probe import embed_texts
from mexma_train.run import mexma_stage, ranking_stage
from mexma_train.sampling import PairSampler

FLORES = ("isl", "gle", "uig", "est")  # the hardest for the encoder as it comes (research notes)
UNTRAINED = ("azb", "gla", "hau")
TATOEBA = ("eus", "fin", "heb", "jpn")
MAX_TOKENS = 96
DEV_PAIRS = 100  # of a language
RECIPE = Path(__file__).parents[1] / "train" / "recipes" / "small.py"
PAPER = {"mlm_weight": 1.0, "align_weight": 1.0, "koleo_weight": 0.01, "contrastive_weight": 0.0}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Shares of the time for each stage, and what differs from the recipe there."""

    name: str
    stages: tuple[tuple[str, float, dict[str, Any]], ...] = ()
    blend: float = 1.0  # share of the trained weights in the average with the first ones


def ranking(share: float = 1.0, **changes: Any) -> tuple[str, float, dict[str, Any]]:
    return "ranking", share, {"batch_pairs": 128} | changes


def mexma(share: float = 1.0, **changes: Any) -> tuple[str, float, dict[str, Any]]:
    return "mexma", share, {"batch_pairs": 64, "lr": 5e-5} | changes


ARMS = (
    Arm(name="the encoder as it comes"),
    Arm(name="ranking", stages=(ranking(),)),
    Arm(name="MEXMA, the paper's weights", stages=(mexma(**PAPER),)),
    Arm(name="MEXMA and the contrastive term", stages=(mexma(),)),
    Arm(name="ranking, then MEXMA and the contrastive term", stages=(ranking(0.5), mexma(0.5))),
    Arm(name="ranking, then MEXMA, the paper's weights", stages=(ranking(0.5), mexma(0.5, **PAPER))),
    Arm(name="MEXMA, no token gradients", stages=(mexma(token_gradients=False, **PAPER),)),
    Arm(name="MEXMA and the contrastive term, no token gradients", stages=(mexma(token_gradients=False),)),
    Arm(name="ranking, batches of 256", stages=(ranking(batch_pairs=256),)),
    Arm(name="ranking, lr 3e-4", stages=(ranking(lr=3e-4),)),
    Arm(name="ranking, lr 3e-5", stages=(ranking(lr=3e-5),)),
    Arm(name="ranking, temperature 0.02", stages=(ranking(temperature=0.02),)),
    Arm(name="ranking, temperature 0.05", stages=(ranking(temperature=0.05),)),
    Arm(name="ranking, words at a tenth of the rate", stages=(ranking(words_lr=1e-5),)),
    Arm(name="ranking, layer-wise decay 0.85", stages=(ranking(layer_decay=0.85),)),
    Arm(name="ranking, hard negatives", stages=(ranking(neighbours=16),)),
    Arm(name="ranking, averaged with the encoder as it comes, 0.7 to 0.3", stages=(ranking(),), blend=0.7),
    Arm(name="MEXMA and the contrastive term, lr 1e-4", stages=(mexma(lr=1e-4),)),
    Arm(name="MEXMA at a tenth and the contrastive term", stages=(mexma(mlm_weight=0.1, align_weight=0.1),)),
)


def train_stage(stage: Stage, seconds: float) -> tuple[int, int]:
    """Train for so many CPU seconds; (updates, pairs). The rate rises over a tenth of the time, then falls to 0."""
    started, pairs = time.process_time(), 0
    groups = stage.optimizer.param_groups
    peaks = [group["lr"] for group in groups]
    parameters = [p for group in groups for p in group["params"]]
    for update, batches in enumerate(prefetch(stage.batches, 0, 10**6)):
        used = (time.process_time() - started) / seconds
        if used >= 1:
            return update, pairs
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * min(used / 0.1 + 0.02, 1.0) * (1 - used)
        stage.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(update)
        for batch in batches:
            stage.terms(batch)["loss"].backward()
            pairs += len(batch.lengths) // 2
        clip_gradient(parameters, stage.clip)
        stage.optimizer.step()
    raise AssertionError("prefetch ended")


def run_arm(arm: Arm, recipe: Recipe, shards: Shards, source: Path, seconds: float) -> tuple[Encoder, list[dict[str, Any]]]:
    torch.manual_seed(recipe.mexma.seed)
    encoder = load_encoder(source, dropout=0.0)
    first = {name: value.clone() for name, value in encoder.state_dict().items()} if arm.blend < 1 else {}
    model, sampler, done = Mexma(encoder, recipe.model), PairSampler(shards, recipe.sampling), []
    for kind, share, changes in arm.stages:
        if kind == "ranking":
            assert recipe.ranking
            ranking_config: RankingConfig = replace(recipe.ranking, **changes)
            stage = ranking_stage(ranking_config, recipe, model, sampler)
        else:
            mexma_config: MexmaConfig = replace(recipe.mexma, **changes)
            stage = mexma_stage(replace(recipe, mexma=mexma_config), model, sampler, World(device=torch.device("cpu")), [])
        updates, pairs = train_stage(stage, seconds * share)
        done.append({"stage": kind, "updates": updates, "pairs": pairs})
    if arm.blend < 1:
        mixed = {name: arm.blend * value + (1 - arm.blend) * first[name] for name, value in encoder.state_dict().items()}
        encoder.load_state_dict(mixed)
    return encoder, done


def measure(encoder: Encoder, shards: Shards, dev_share: float, flores: Path, tatoeba: Path) -> dict[str, float]:
    tokenizer = load_tokenizer(shards.tokenizer_path)

    def embed(texts: list[str]) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return embed_texts(encoder, tokenizer, texts, max_tokens=MAX_TOKENS, attention="padded")

    def embed_ids(batch: Ragged) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return model_dev.embed_whole(encoder, batch)

    held = held_out_segments(shards, dev_share)
    pairs = {lang: rows[:DEV_PAIRS] for lang, rows in model_dev.dev_pairs(shards, held).items()}
    english = embed((flores / "eng.txt").read_text(encoding="utf-8").splitlines())
    errors = {
        lang: xsim(embed((flores / f"{lang}.txt").read_text(encoding="utf-8").splitlines()), english, k=4).error_rate
        for lang in (*FLORES, *UNTRAINED)
    }
    accuracies = []
    for lang in TATOEBA:
        rows = [line.split("\t") for line in (tatoeba / f"{lang}.tsv").read_text(encoding="utf-8").splitlines()]
        accuracies.append(sum(retrieval_accuracy(embed([r[1] for r in rows]), embed([r[0] for r in rows]))) / 2)
    return {
        "dev": model_dev.dev_error(embed_ids, shards, pairs),
        "flores": float(np.mean([errors[lang] for lang in FLORES])),
        "untrained": float(np.mean([errors[lang] for lang in UNTRAINED])),
        "tatoeba": float(np.mean(accuracies)),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The Markdown table of the page, arms in the order of ARMS."""
    by_name = {line["arm"]: line for line in lines}
    rows = ["| arm | updates, pairs | dev error % | FLORES error % | untrained % | Tatoeba % |", "|---|---|---|---|---|---|"]
    for arm in ARMS:
        if line := by_name.get(arm.name):
            work = "; ".join(f"{s['stage']} {s['updates']:,}, {s['pairs']:,}" for s in line["stages"]) or "none"
            figures = " | ".join(f"{line[name]:.2f}" for name in ("dev", "flores", "untrained", "tatoeba"))
            rows.append(f"| {arm.name} | {work} | {figures} |")
    return "\n".join(rows)


@click.command()
@click.argument("shards_folder", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--flores", type=click.Path(path_type=Path), required=True, help="xxx.txt, one line a sentence.")
@click.option("--tatoeba", type=click.Path(path_type=Path), required=True, help="xxx.tsv: english<TAB>text.")
@click.option("--minutes", default=7.0, show_default=True, help="CPU time of an arm's training.")
@click.option("--only", multiple=True, help="Arms by name; default: all in turn.")
@click.option("--table", "show", is_flag=True, help="Print the table of what is done; run nothing.")
def main(
    shards_folder: Path,
    source: Path,
    out: Path,
    flores: Path,
    tatoeba: Path,
    minutes: float,
    only: tuple[str, ...],
    show: bool,
) -> None:
    """Run the arms that OUT/arms.jsonl lacks."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "arms.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if show:
        click.echo(table(lines))
        return
    torch.set_num_threads(1)
    recipe, shards = load_recipe(RECIPE), open_shards(shards_folder)
    for arm in ARMS:
        if any(line["arm"] == arm.name for line in lines) or (only and arm.name not in only):
            continue
        encoder, stages = run_arm(arm, recipe, shards, source, minutes * 60)
        line = {
            "arm": arm.name,
            "minutes": minutes,
            "stages": stages,
            **measure(encoder, shards, recipe.sampling.dev_share, flores, tatoeba),
        }
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        click.echo(json.dumps(line))


if __name__ == "__main__":
    main()
