"""The settings of an embedding call in one object, checked on creation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mexma_rt.checks import check_count
from mexma_rt.embedding.prompts import named_prompt
from mexma_rt.errors import InputError
from mexma_rt.files.storage import Ranges, check_storage, finish, stored_columns


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """The settings of an embedding call, as `Encoder.embed` describes them; making one raises InputError for an unusable value.

    What depends on the model (its dimensions, ranges and prompts) is checked by the methods, which raise InputError as well.
    """

    normalize: bool = True
    precision: str = "float32"
    truncate_dim: int | None = None
    batch_tokens: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("truncate_dim", self.truncate_dim), ("batch_tokens", self.batch_tokens)):
            if value is not None:
                check_count(name, value)
        check_storage(self.precision, self.normalize)

    def prompted(self, texts: list[str], prompts: Mapping[str, str]) -> list[str]:
        """Put the named prompt of a model before each text."""
        before = named_prompt(prompts, self.prompt)
        return [before + text for text in texts] if before else texts

    def columns(self, dimensions: int) -> int:
        """Return the number of stored columns for a model with this many dimensions."""
        check_truncate_dim(self.truncate_dim, dimensions)
        return int(stored_columns(self.truncate_dim or dimensions, self.precision))

    def stored(self, raw: np.ndarray, ranges: Ranges | None, *, normalized: bool = False) -> np.ndarray:
        """Truncate raw sentence vectors [n, D] to truncate_dim, normalise them and convert them to `precision`.

        normalized: they already have length 1, so they need normalising only after truncation.
        """
        left = self.normalize and not (normalized and self.truncate_dim is None)
        return finish(raw, normalize=left, precision=self.precision, truncate_dim=self.truncate_dim, ranges=ranges)


def check_truncate_dim(truncate_dim: int | None, dimensions: int) -> None:
    """Raise InputError for more dimensions than the model has."""
    if truncate_dim is not None and check_count("truncate_dim", truncate_dim) > dimensions:
        raise InputError(f"truncate_dim={truncate_dim} is more than the {dimensions} dimensions of the model.")
