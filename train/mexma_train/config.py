"""What a training run is made of. A recipe is a Python file that defines `RECIPE = Recipe(...)` and says why."""

from __future__ import annotations

import runpy
from dataclasses import dataclass, field
from pathlib import Path

from mexma_rt.errors import FileError, InputError


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    vocab_size: int = 64_000  # at most 65,536: shards hold uint16 ids
    lines_per_language: int = 5_000
    english_share: int = 8  # English gets that many times the lines of another language: half of all text is English
    character_coverage: float = 0.9997  # of all characters of the sample; the rarer ones become <unk>
    max_piece_length: int = 16
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """XLM-R shape of the encoder, and the token head on top of it, as facebookresearch/mexma builds them."""

    hidden_size: int = 1024
    layers: int = 24
    heads: int = 16
    intermediate_size: int = 4096
    max_positions: int = 514  # 512 tokens + padding_idx + 1, as XLM-R
    norm_eps: float = 1e-5
    dropout: float = 0.1  # hidden and embedding dropout; attention dropout is always 0 in MEXMA
    head_layers: int = 6
    head_heads: int = 8
    head_intermediate_size: int = 3072  # XLMRobertaConfig's default, which the original inherits whatever the width
    head_norm_eps: float = 1e-12  # likewise


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which pairs are drawn: p(language) ~ n^temperature; inside a language each source has a weight (default 1)."""

    temperature: float = 0.5
    source_weights: dict[str, float] = field(default_factory=dict)
    max_tokens: int = 200  # per side, <s> and </s> included
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Translation ranking with static tokens: see warmup.py."""

    steps: int
    batch_pairs: int = 2_048
    lr: float = 1e-2
    temperature: float = 0.05
    max_tokens: int = 64


@dataclass(frozen=True, kw_only=True)
class MexmaConfig:
    """The MEXMA stage. Defaults are the original's (the command in the README of facebookresearch/mexma)."""

    steps: int
    batch_pairs: int = 150
    accumulation: int = 2
    lr: float = 1e-4
    warmup_share: float = 0.3
    warmup_start: float = 0.1  # linear warm-up starts at this share of lr
    weight_decay: float = 0.0
    clip: float = 1.2
    mask_ratio: float = 0.4
    mlm_weight: float = 1.0
    align_weight: float = 1.0
    koleo_weight: float = 0.01
    contrastive_weight: float = 0.0  # not in MEXMA: symmetric InfoNCE on the clean CLS vectors, for small models
    contrastive_temperature: float = 0.05
    sampled_pieces: int = 0  # 0: softmax over the whole vocabulary; n: over the batch's pieces plus n random ones
    max_tokens: int = 200
    precision: str = "fp32"  # "fp32" or "bf16" (autocast)
    freeze_words: bool = False  # keep the word embeddings as the warm start left them
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Recipe:
    name: str
    mexma: MexmaConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warmup: WarmupConfig | None = None
    initial_checkpoint: str | None = None  # Hugging Face folder or hub name

    def __post_init__(self) -> None:
        if self.warmup and self.initial_checkpoint:
            raise InputError(
                f"recipe {self.name!r} has a warmup and the initial_checkpoint {self.initial_checkpoint!r}, but the warm start "
                "begins with fresh weights and would overwrite the checkpoint's. Keep one of them."
            )


def load_recipe(path: str | Path) -> Recipe:
    """Run a recipe file and return its RECIPE. Raises FileError if missing, InputError if it defines none."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} is not a file. Recipes are Python files that define RECIPE; see train/recipes/.")
    recipe = runpy.run_path(str(path)).get("RECIPE")
    if not isinstance(recipe, Recipe):
        raise InputError(f"{path} defines no RECIPE = Recipe(...). Start from a copy of train/recipes/mini.py.")
    return recipe
