"""The configuration of a training run. A recipe is a Python file that defines `RECIPE = Recipe(...)` and gives its reasons.

Every field is also a flag of `mexma-train run` (`--mexma.lr 3e-4`), and the text in its annotation is the flag's help.
"""

from __future__ import annotations

import dataclasses
import runpy
import traceback
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mexma_rt.errors import FileError, InputError, MexmaError


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Size of a new tokenizer, and how its text is sampled."""

    vocab_size: Annotated[int, "pieces, special ones included"] = 64_000  # up to 65,536, shards take two bytes a token
    lines_per_language: Annotated[int, "lines sampled per language"] = 5_000
    english_share: Annotated[int, "English gets this many times the lines of another language"] = 8  # half of all text
    character_coverage: Annotated[float, "share of the sample's characters that get a piece"] = 0.9997
    max_piece_length: Annotated[int, "maximum characters in a piece"] = 16
    seed: Annotated[int, "seed for sampling lines"] = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """XLM-R shape of the encoder, and the token head on top of it, as facebookresearch/mexma builds them."""

    hidden_size: Annotated[int, "dimensions of a vector"] = 1024
    layers: Annotated[int, "encoder layers"] = 24
    heads: Annotated[int, "attention heads of the encoder"] = 16
    intermediate_size: Annotated[int, "width of the encoder's feed-forward layers"] = 4096
    max_positions: Annotated[int, "rows of the position table: maximum tokens + 2"] = 514  # XLM-R: 512 tokens + padding_idx + 1
    norm_eps: Annotated[float, "LayerNorm epsilon of the encoder"] = 1e-5
    dropout: Annotated[float, "hidden and embedding dropout; attention dropout is always 0 in MEXMA"] = 0.1
    head_layers: Annotated[int, "layers of the token head"] = 6
    head_heads: Annotated[int, "attention heads of the token head"] = 8
    # The next two are XLMRobertaConfig's defaults, which the original inherits whatever the encoder's shape.
    head_intermediate_size: Annotated[int, "width of the head's feed-forward layers"] = 3072
    head_norm_eps: Annotated[float, "LayerNorm epsilon of the head"] = 1e-12


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which pairs a batch holds. The batch of a step is a function of (seed, step), so the sampler has no other state."""

    order: Annotated[
        Literal["draw", "epochs"], "draw: pairs independently, languages by temperature; epochs: every pair once per epoch"
    ] = "draw"
    temperature: Annotated[float, "draw: p(language) ~ pairs^temperature"] = 0.5
    source_weights: Annotated[dict[str, float], "draw: weight of each source, as JSON (default 1 each)"] = field(
        default_factory=dict
    )
    distinct_english: Annotated[bool, "no English segment twice in a batch: a duplicate makes KoLeo explode"] = True
    bucket: Annotated[int, "micro-batches drawn together and split by length into equal numbers of tokens; 1 = off"] = 16
    dev_share: Annotated[float, "share of English segments never drawn, to choose settings by; with order draw only"] = 0.0
    seed: Annotated[int, "seed of the draws"] = 42


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Translation ranking with static tokens: see warmup.py."""

    steps: Annotated[int, "number of updates"]
    batch_pairs: Annotated[int, "pairs per update"] = 2_048
    lr: Annotated[float, "peak learning rate of the word embeddings"] = 1e-2
    temperature: Annotated[float, "temperature of the softmax over the batch"] = 0.05
    max_tokens: Annotated[int, "maximum tokens per side, <s> and </s> included"] = 64
    contrastive_weight: Annotated[float, "with a teacher: weight of ranking the two sides against each other"] = 1.0
    distil_weight: Annotated[float, "weight of ranking against a teacher's English vectors; 0 = no teacher"] = 0.0
    distil_temperature: Annotated[float, "temperature of the softmax over the teacher's vectors"] = 0.05
    distil_pool: Annotated[int, "further teacher vectors per update, drawn like its pairs: wrong answers for all of them"] = 0


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """Translation ranking with the whole encoder, between the warm start and MEXMA: see ranking.py."""

    steps: Annotated[int, "number of updates"]
    batch_pairs: Annotated[int, "pairs per update"] = 512
    neighbours: Annotated[
        int, "size of groups of similar English segments (by a teacher's vectors, else by rare pieces) in a batch; 1 = off"
    ] = 1
    lr: Annotated[float, "peak learning rate of the layers"] = 5e-4
    words_lr: Annotated[float, "peak learning rate of the word embeddings; 0 freezes them"] = 5e-4
    translations: Annotated[int, "maximum translations of an English segment in a batch, which is encoded once for all"] = 1
    layer_decay: Annotated[float, "learning rate of each layer, as a share of that of the layer above it"] = 1.0
    temperature: Annotated[float, "temperature of the softmax over the batch"] = 0.05
    max_tokens: Annotated[int, "maximum tokens per side, <s> and </s> included"] = 96
    warmup_share: Annotated[float, "share of updates with rising learning rate, before it falls linearly to 0"] = 0.1
    clip: Annotated[float, "largest global L2 norm of the gradient"] = 1.0
    precision: Annotated[Literal["fp32", "bf16"], "precision of the products (autocast)"] = "fp32"
    round_bits: Annotated[int, "round the layers' matrices to 4 or 8 bits in every forward pass (rounding.py); 0 = off"] = 0
    contrastive_weight: Annotated[float, "with a teacher: weight of ranking the two sides against each other"] = 1.0
    distil_weight: Annotated[float, "weight of ranking against a teacher's English vectors; 0 = no teacher"] = 0.0
    distil_temperature: Annotated[float, "temperature of the softmax over the teacher's vectors"] = 0.05
    distil_pool: Annotated[int, "further teacher vectors per update, drawn like its pairs: wrong answers for all of them"] = 0


@dataclass(frozen=True, kw_only=True)
class MexmaConfig:
    """The MEXMA stage. Defaults are the original's (the command in the README of facebookresearch/mexma), except for what
    `as_original` restores; train/README.md lists these exceptions and says why.
    """

    steps: Annotated[int | None, "number of updates; or give epochs"] = None
    epochs: Annotated[float | None, "passes over as many pairs as the shards hold; or give steps"] = None
    batch_pairs: Annotated[int, "pairs per micro-batch of one process"] = 150
    batch_tokens: Annotated[int | None, "clean tokens per micro-batch of one process, instead of batch_pairs"] = None
    accumulation: Annotated[int, "micro-batches per update"] = 2
    max_tokens: Annotated[int, "maximum tokens per side, <s> and </s> included"] = 200
    lr: Annotated[float, "peak learning rate"] = 1e-4
    warmup_share: Annotated[float, "share of updates with rising learning rate"] = 0.3
    warmup_start: Annotated[float, "share of lr at which the rise starts"] = 0.1
    schedule: Annotated[Literal["update", "micro-batch"], "what the schedule counts; micro-batch: as the original"] = "update"
    weight_decay: Annotated[float, "weight decay of AdamW, on matrices only"] = 0.0
    clip: Annotated[float, "largest global L2 norm of the gradient"] = 1.2
    precision: Annotated[Literal["fp32", "bf16", "fp16"], "precision of the products (autocast); fp16 scales the loss"] = "fp32"
    round_bits: Annotated[int, "round the layers' matrices to 4 or 8 bits in every forward pass (rounding.py); 0 = off"] = 0
    mask_ratio: Annotated[float, "share of tokens masked on each side"] = 0.4
    masks: Annotated[Literal["independent", "shared"], "random streams of the two sides; the original's are alike"] = (
        "independent"
    )
    random_pieces: Annotated[Literal["ordinary", "all"], "random replacements; all: special pieces too"] = "ordinary"
    mlm_weight: Annotated[float, "weight of the mean of both sides' cross entropy"] = 1.0
    align_weight: Annotated[float, "weight of the alignment loss"] = 1.0
    koleo_weight: Annotated[float, "weight of KoLeo; 0 = off"] = 0.01
    alignment: Annotated[Literal["mse", "contrastive"], "ablation: InfoNCE instead of the mean squared error"] = "mse"
    token_gradients: Annotated[bool, "ablation: if off, masked tokens update the encoder only through sentence vectors"] = True
    contrastive_weight: Annotated[float, "weight of InfoNCE beside the other terms; not in MEXMA, for small models"] = 0.0
    contrastive_temperature: Annotated[float, "temperature of InfoNCE"] = 0.05
    reduction: Annotated[
        Literal["update", "micro-batch"], "means over the whole update, or over each process's micro-batch as in the original"
    ] = "update"
    gather_vectors: Annotated[bool, "KoLeo and InfoNCE see the vectors of all processes"] = False
    sampled_pieces: Annotated[int, "0: softmax over all pieces; n: over the batch's pieces and n random ones"] = 0
    freeze_words: Annotated[bool, "do not train the word embeddings"] = False
    seed: Annotated[int, "seed of masks, dropout and fresh weights"] = 42

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise InputError(
                f"mexma.steps is {self.steps} and mexma.epochs is {self.epochs}: give one of them, for example steps=1000."
            )
        for name in ("batch_pairs", "accumulation"):
            if getattr(self, name) < 1:
                raise InputError(f"mexma.{name} is {getattr(self, name)}; it must be at least 1.")
        if not 0 <= self.mask_ratio < 1:
            raise InputError(f"mexma.mask_ratio is {self.mask_ratio}; it is a share from 0 up to 1, for example 0.4.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How a run is executed: settings that do not change what is learnt (except by rounding) and may change on resume."""

    attention: Annotated[
        Literal["auto", "varlen", "flex", "block", "padded", "equal"],
        "attention implementation; packed_attention.py describes them",
    ] = "auto"
    parallel: Annotated[Literal["ddp", "fsdp"], "with several processes: replicate the weights (ddp) or shard them"] = "ddp"
    compile: Annotated[bool, "torch.compile the layers"] = False
    vocabulary_chunk: Annotated[int, "masked tokens whose logits are in memory at once"] = 1024
    log_every: Annotated[int, "updates per line of log.jsonl"] = 20
    save_minutes: Annotated[float, "minutes between saved states: the most work that a kill can lose"] = 5.0
    keep: Annotated[int, "number of resumable states to keep"] = 2
    eval_every: Annotated[int, "updates between evaluations; 0 = only at the end"] = 0
    eval_pairs: Annotated[tuple[str, ...], "test file NAME.tsv (english<TAB>text); repeat the flag for several"] = ()
    tensorboard: Annotated[bool, "also write TensorBoard events to the run's folder"] = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole training run: model, data, and the stages with their settings."""

    name: Annotated[str, "name of the recipe in messages"]
    mexma: MexmaConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    run: RunConfig = field(default_factory=RunConfig)
    warmup: WarmupConfig | None = None
    ranking: RankingConfig | None = None
    initial_checkpoint: Annotated[str | None, "folder or hub name to start from, e.g. FacebookAI/xlm-roberta-large"] = None

    def __post_init__(self) -> None:
        if self.warmup and self.initial_checkpoint:
            raise InputError(
                f"recipe {self.name!r} has a warmup and the initial_checkpoint {self.initial_checkpoint!r}, but the warm start "
                "begins with fresh weights and would overwrite the checkpoint's. Keep one of them."
            )


def as_original(recipe: Recipe) -> Recipe:
    """Return the recipe without our deliberate deviations from facebookresearch/mexma (listed in train/README.md)."""
    mexma = replace(
        recipe.mexma,
        masks="shared",
        random_pieces="all",
        schedule="micro-batch",
        reduction="micro-batch",
        gather_vectors=False,
        precision="fp16",
    )
    sampling = replace(recipe.sampling, order="epochs", distinct_english=False, bucket=1)
    return replace(recipe, mexma=mexma, sampling=sampling)


def load_recipe(path: str | Path) -> Recipe:
    """Run a recipe file and return its RECIPE. Raises FileError if the file is missing, InputError if it defines none."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} is not a file. Recipes are Python files that define RECIPE; see train/recipes/.")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except MexmaError:
        raise
    except Exception as error:  # it is code
        inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = inside[-1] if inside else getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise InputError(f"{where}: {type(error).__name__}: {error}. Compare it with train/recipes/mini.py.") from error
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path} defines no RECIPE = Recipe(...). Start from a copy of train/recipes/mini.py.")
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data for JSON; `recipe_from_dict` is the inverse."""
    return dataclasses.asdict(recipe)


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `recipe_to_dict` made plain data of. Raises InputError for a field that no recipe has."""
    recipe: Recipe = _from_dict(Recipe, data)
    return recipe


def _from_dict(kind: type, data: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = set(data) - {f.name for f in dataclasses.fields(kind)}
    if unknown:
        raise InputError(f"{kind.__name__} has no {', '.join(sorted(unknown))}: the run was written by another version.")
    values: dict[str, Any] = {}
    for name, value in data.items():
        nested = [t for t in union_members(hints[name]) if dataclasses.is_dataclass(t)]
        if nested and value is not None:
            value = _from_dict(nested[0], value)  # type: ignore[arg-type]
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def union_members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union type; of any other type, the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
