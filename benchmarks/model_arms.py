"""The arms of model_ablations.py: what each one changes in BASE, and the question that it answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from model_table import SETTLED

from mexma_train.config import MexmaConfig, ModelConfig, RankingConfig, Recipe, SamplingConfig, WarmupConfig

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
    """`stage` is what runs and is measured: "warmup" from fresh weights, "again" the same on from the warm start of --start,
    "ranking" or "mexma" with all layers, from that warm start or (from_start=False) from fresh weights.
    """

    question: str
    why: str
    changes: dict[str, Any] = field(default_factory=dict)  # of BASE: {"section.field": value}
    stage: str = "warmup"
    from_start: bool = True  # ranking and mexma: from the warm start of --start, else from fresh weights
    masked_first: bool = False  # before the ranking stage as many updates of a MEXMA stage of its token loss alone
    variant: str = ""  # of model_variants.py: what the product has no option for


TEACHER, SIZE, LANGUAGES = "A teacher's English vectors", "Width", "Temperature of language sampling"
SOURCES, LEAVE_ONE_OUT = "Weights of the sources", "What a source adds: leave one out"
AGAIN = "Which pairs, and which of them in one batch"
DEPTH, BEGINNING = "Depth, in the ranking stage", "What the ranking stage begins with"
ALIGNMENT, KOLEO, MASKING = "Alignment, in a MEXMA stage", "KoLeo, in a MEXMA stage", "Masking ratio, in a MEXMA stage"
MEXMA_TEACHER = "A teacher in the MEXMA stage"
DEEP = "As many FLOPs in the layers as with three: the updates go down as the layers go up."
TOKEN_LOSS = {"mexma.lr": 5e-4, "mexma.align_weight": 0.0, "mexma.koleo_weight": 0.0, "mexma.freeze_words": False}
BESIDE: dict[str, Any] = {"contrastive_weight": 1.0, "mlm_weight": 0.1, "align_weight": 0.1}


def distil(weight: float, why: str, **changes: Any) -> Arm:
    dotted = {f"warmup.{name}": value for name, value in changes.items()}
    return Arm(question=TEACHER, why=why, changes={"warmup.distil_weight": weight} | dotted)


def mexma(question: str, why: str, *, variant: str = "", **changes: Any) -> Arm:
    dotted = {f"mexma.{name}": value for name, value in changes.items()}
    return Arm(question=question, why=why, stage="mexma", variant=variant, changes=dotted)


def again(why: str, variant: str = "") -> Arm:
    return Arm(question=AGAIN, why=why, stage="again", variant=variant)


ARMS = {
    "base": Arm(question="", why="Ranking of the pairs alone, no teacher; natural sources weigh more."),
    "distil 1": distil(1.0, "Both sides also look for the teacher's vector of their English side, by InfoNCE."),
    "distil 3": distil(3.0, "The teacher counts three times as much as the pairs."),
    "distil 3, pool 8,192": distil(3.0, "So many more of its vectors as wrong answers in every update.", distil_pool=8_192),
    "distil alone": distil(1.0, "Without the ranking of the pairs: is the teacher enough?", contrastive_weight=0.0),
    "distil 1, temperature 0.03": distil(1.0, "Both softmaxes sharper.", temperature=0.03, distil_temperature=0.03),
    "distil 2, temperature 0.08": distil(2.0, "Both softmaxes softer.", temperature=0.08, distil_temperature=0.08),
    "distil 1, no source weights": replace(
        distil(1.0, "Every pair of a language alike: does the teacher make up for dull sources?"),
        changes={"warmup.distil_weight": 1.0, "sampling.source_weights": {}},
    ),
    **{
        f"width {width}": Arm(
            question=SIZE, why=why, changes={"model.hidden_size": width, "model.intermediate_size": 4 * width}
        )
        for width, why in {
            168: "A third fewer parameters: with 96,000 pieces as many in the embedding as 64,000 x 256.",
            384: "Half as many parameters again, nearly all in the embedding.",
            512: "Twice the parameters: with 32,000 pieces as many in the embedding as 64,000 x 256.",
        }.items()
    },
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
        name: Arm(question=SOURCES, why=why, changes={"sampling.source_weights": WEIGHTS | changed})
        for name, changed, why in (
            ("ui 0.1", {"ui": 0.1}, "Messages of programs weigh two fifths of the base's 0.25."),
            ("wmt 4", {"wmt": 4.0}, "News weigh twice the base's 2."),
            ("ui 0.1, wmt 4", {"ui": 0.1, "wmt": 4.0}, "Both."),
        )
    },
    **{
        f"without {source}": Arm(
            question=LEAVE_ONE_OUT,
            why="As many pairs of the other sources instead.",
            changes={"sampling.source_weights": WEIGHTS | {source: 0.0}},
        )
        for source in ("ui", "lohelp", "bible", "ddtp", "tatoeba", "wmt", "stories", "pydocs", "help")
    },
    "again": again("The warm start goes on, at the full rate again, with pairs drawn as before."),
    "again, hard negatives": again(
        "Half of a batch are nearest neighbours of the other half among six batches' English sides, by the start's vectors.",
        "hard_negatives",
    ),
    "again, self-filtered": again(
        "The worst tenth of what is drawn is dropped, by our score_pairs on the start's vectors.", "filter_worst"
    ),
    "again, half filtered": again("The same, but the worse half is dropped.", "filter_half"),
    "again, rules": again("Dropped: under 3 pieces, over 3 times as many as the other side, or the same text.", "filter_rules"),
    SETTLED: Arm(
        question=BEGINNING, stage="ranking", changes={"ranking.steps": 0}, why="The warm start itself, read by all layers."
    ),
    "ranking": Arm(question=BEGINNING, stage="ranking", why="Bag of subwords: three layers, from the warm start."),
    "ranking, fresh": Arm(question=BEGINNING, stage="ranking", from_start=False, why="None: random weights, no warm start."),
    "ranking, masked first": Arm(
        question=BEGINNING,
        stage="ranking",
        from_start=False,
        masked_first=True,
        changes=TOKEN_LOSS,
        why="MLM: from random weights as many updates of MEXMA's token loss alone, then the ranking.",
    ),
    "ranking, warm start and masked": Arm(
        question=BEGINNING,
        stage="ranking",
        masked_first=True,
        changes=TOKEN_LOSS,
        why="Both: the warm start, then as many updates of MEXMA's token loss alone, then the ranking.",
    ),
    "ranking, 2 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 2}),
    "ranking, 4 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 4}),
    "ranking, 6 layers": Arm(question=DEPTH, stage="ranking", why=DEEP, changes={"model.layers": 6}),
    "mexma": mexma(ALIGNMENT, "As the paper: mean squared error, KoLeo 0.01, 40 % masked."),
    "mexma, contrastive": mexma(ALIGNMENT, "InfoNCE in place of the mean squared error.", alignment="contrastive"),
    "mexma, contrastive beside": mexma(ALIGNMENT, "InfoNCE 1 beside the MSE, this and MLM at 0.1.", **BESIDE),
    "mexma, KoLeo 0": mexma(KOLEO, "Nothing holds the vectors apart but the tokens.", koleo_weight=0.0),
    "mexma, KoLeo 0.1": mexma(KOLEO, "Ten times the paper's.", koleo_weight=0.1),
    "mexma, 20 % masked": mexma(MASKING, "Easier to guess from the neighbours alone.", mask_ratio=0.2),
    "mexma, 60 % masked": mexma(MASKING, "More left to the other side's sentence vector.", mask_ratio=0.6),
    "mexma, teacher": mexma(
        MEXMA_TEACHER, "The arm 'contrastive beside', and both sides look for the teacher's vectors, weight 1.",
        variant="mexma_teacher", **BESIDE,
    ),
}  # fmt: skip
