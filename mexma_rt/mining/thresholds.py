"""The default threshold of a pair's score, and whether it was chosen for the model that embeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mexma_rt.bundle.opening import DEFAULT_MODEL, MODELS
from mexma_rt.mining.warnings import MiningWarning

if TYPE_CHECKING:
    from mexma_rt.bundle.manifest import Bundle
    from mexma_rt.mining.pairs import MineSettings

# The bundled model's, with the best mean F1 on held-out training sentences in 14 languages, 30 % of the lines without a
# partner: benchmarks/results/thresholds.md.
DEFAULT_THRESHOLD = {"ratio": 1.12, "distance": 0.07, "absolute": 0.62}


@dataclass(frozen=True, kw_only=True)
class ModelThresholds:
    """The thresholds by margin; `own`: they were chosen for this model."""

    by_margin: Mapping[str, float]
    own: bool
    model: str  # that they are used for; "" if nothing says it
    prompts: tuple[str | None, str | None] = (None, None)  # names of those they were found with, and that texts have now

    def warning(self, margin: str) -> MiningWarning | None:
        """Return the warning, if any, for using this margin's threshold."""
        found_with, now = self.prompts
        if self.own and found_with == now:
            return None
        if self.own:
            with_prompt = f"with the prompt {found_with!r}" if found_with else "without a prompt"
            these = f"with {now!r}" if now else "without"
            remedy = f"Take that prompt (--prompt {found_with})" if found_with else "Leave the prompt out"
            return MiningWarning(
                kind="prompt",
                side="both",
                share=1.0,
                message=f"The threshold {self.by_margin[margin]:g} of the margin {margin!r} was found on texts {with_prompt}, "
                f"but these are embedded {these}, so their scores differ. {remedy}, calibrate again, or type a threshold.",
            )
        who = f"the model {self.model!r}" if self.model else "this encoder"
        remedy = "mexma calibrate SOURCE TARGET --model BUNDLE finds its own on some hundred lines and their translations"
        return MiningWarning(
            kind="threshold",
            side="both",
            share=1.0,
            message=f"The threshold {self.by_margin[margin]:g} of the margin {margin!r} was chosen for {DEFAULT_MODEL}, not "
            f"for {who}, whose scores differ: too many pairs may be kept, or too few. {remedy}; or type a threshold.",
        )


def thresholds_of(encoder: Any) -> ModelThresholds:
    """Return the thresholds for an encoder's vectors: its bundle's, or the bundled model's.

    None means the bundled model itself: nothing was embedded, or it did the embedding.
    """
    bundle = getattr(encoder, "bundle", None)
    found = getattr(bundle, "thresholds", None)
    if bundle is not None and found is not None:
        prompts = found.prompt, getattr(encoder, "prompt", None)
        return ModelThresholds(by_margin=found.by_margin(), own=True, model=bundle.name, prompts=prompts)
    own = encoder is None or (bundle is not None and is_bundled(bundle))
    return ModelThresholds(by_margin=DEFAULT_THRESHOLD, own=own, model=getattr(bundle, "name", ""))


def is_bundled(bundle: Bundle) -> bool:
    """Whether this is the default model of this installation rather than a copy."""
    return bundle.folder.resolve() == (MODELS / DEFAULT_MODEL).resolve()


def resolved(settings: MineSettings, encoder: Any) -> tuple[MineSettings, MiningWarning | None]:
    """Return MineSettings whose threshold is a number, and a warning if it is another model's."""
    if settings.threshold is not None or settings.retrieval == "knn":
        return settings, None
    found = thresholds_of(encoder)
    return replace(settings, threshold=found.by_margin[settings.margin]), found.warning(settings.margin)
