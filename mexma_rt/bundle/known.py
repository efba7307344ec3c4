"""Published checkpoints in MEXMA's form, and the commands that turn them into bundles.

A checkpoint holds PyTorch weights, which this runtime does not read; `mexma-export` downloads and converts it, and compares the
result with it. A model's figures are its authors', as quoted by others; none was measured here.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
MODEL_TYPE = "xlm-roberta"  # what mexma-export converts
INSTALL = "pip install 'mexma-rt[export]'"


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One published checkpoint."""

    name: str  # on the Hugging Face hub
    backbone: str
    layers: int
    dimensions: int
    parameters: int  # of the encoder, as published
    bytes: int  # of model.safetensors, fp32: the download
    languages: tuple[str, ...]  # ISO 639-3, English included
    licence: str
    figures: str
    paper: str


# English and the 80 languages of the evaluation command in facebookresearch/mexma's README. The paper is also quoted with 81;
# that these are the training languages is inferred from the count. arb, zho_Hans, lit, lvs, pes, als and pan are not included.
_MEXMA_LANGUAGES = """
eng acm aeb afr amh ary arz asm azb azj bel ben bos bul cat ces ckb cym dan deu ell epo est eus fin fra gla gle glg guj hau heb
hin hrv hun hye ind isl ita jav jpn kan kat kaz khm kir kor lao mal mar mkd mya nld nno nob npi pol por ron rus san sin slk slv
snd som spa srp sun swe swh tam tel tha tur uig ukr urd vie xho zho_Hant
"""

KNOWN = (
    KnownModel(
        name="facebook/MEXMA",
        backbone="XLM-R large",
        layers=24,
        dimensions=1024,
        parameters=558_840_832,  # 250,002 x 1,024 words, 514 x 1,024 positions, 24 layers of 12,596,224, and 3,072
        bytes=2_235_408_584,
        languages=tuple(_MEXMA_LANGUAGES.split()),
        licence="MIT",  # its model card; so is the code of facebookresearch/mexma, but for two files under Apache-2.0
        figures="FLORES-200, to English, mean of its languages: xsim error 0.06 %, xsim++ error 9.60 %",
        paper="Janeiro et al., ACL 2025, arXiv 2409.12737",
    ),
)


def find_known(name: str) -> KnownModel | None:
    """Return the known model with this hub name (ignoring case, as the hub does), or None."""
    return next((model for model in KNOWN if model.name.lower() == name.lower()), None)


def model_type(folder: Path) -> str | None:
    """Return the model_type in a folder's config.json ("xlm-roberta"); "" if absent; None without a readable config.json."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return str(config.get("model_type", "")) if isinstance(config, dict) else None


def bundle_name(source: str) -> str:
    """Return the folder that the printed command writes to: "MEXMA-bundle" for "facebook/MEXMA"."""
    return f"{Path(source).resolve().name}-bundle"


def export_command(source: str, revision: str | None = None) -> str:
    """Return the command that turns a checkpoint (a hub name, which it downloads, or a folder) into a bundle."""
    words = ["mexma-export", source, bundle_name(source)]
    return shlex.join(words if revision is None else [*words, "--revision", revision])


def how_to_convert(source: str, revision: str | None = None) -> str:
    """Return the lines to type, from installation to the loaded model."""
    return (
        f"    {INSTALL}\n    {export_command(source, revision)}\nand load the folder that it writes:\n"
        f"    mexma_rt.load({bundle_name(source)!r})"
    )
