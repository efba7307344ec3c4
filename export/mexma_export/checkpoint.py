"""Loads and checks a checkpoint: a folder with config.json, model.safetensors and tokenizer.json, or a name on the hub.

XLM-R, BERT and DistilBERT are the same network, and all are converted to XLM-R's form (mexma_rt/backends/checkpoint.py). Only
safetensors weights are read; pickles can run code and are refused. Nothing is downloaded for an existing folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mexma_export.pipeline import POOLING_FOLDER, PROMPTS, Pipeline, read_pipeline
from mexma_export.tokenizer_file import check_fit, load_tokenizer
from mexma_rt.backends.checkpoint import INDEX, WEIGHTS, EncoderWeights, check_kind, read_encoder
from mexma_rt.bundle.graphs import PAD, SpecialIds
from mexma_rt.bundle.known import find_known
from mexma_rt.bundle.manifest import MANIFEST, POOLINGS
from mexma_rt.errors import BundleError, FileError
from mexma_rt.files.atomic import sha256_of
from mexma_rt.files.endings import check_unicode

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer
    from transformers import XLMRobertaModel

FILES = ["config.json", "model.safetensors", "tokenizer.json", "README.md", "model-*.safetensors", INDEX]  # to download
FILES += ["*_Dense/model.safetensors", "modules.json", "*/config.json", "sentence_*_config.json"]
FILES += ["config_sentence_transformers.json", "tokenizer_config.json", "special_tokens_map.json"]
FILES += ["sentencepiece.bpe.model", "vocab.txt"]  # transformers can make a missing tokenizer.json from them


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint: the torch model (fp32, eager attention, evaluation mode) and everything else that a bundle needs."""

    folder: Path
    name: str
    sha256: str  # of model.safetensors, or of a list of its shards with their hashes
    config: dict[str, Any]  # in XLM-R's form
    prefix: str  # of tensor names in the file: "roberta.", "0.auto_model.", or ""
    rewritten: bool  # the weights are not a single file in XLM-R's form, so it must be written instead of copied
    model: XLMRobertaModel
    tokenizer: Tokenizer  # without truncation and padding
    special_ids: SpecialIds
    pipeline: Pipeline
    kept: np.ndarray | None = None  # int64 [V]: the model's rows for the pieces of a trimmed tokenizer (trim.py); None: all

    @property
    def dimensions(self) -> int:
        """D, the length of a sentence vector."""
        return self.pipeline.head.dimensions(int(self.config["hidden_size"]))

    def read(self) -> EncoderWeights:
        """Read the encoder's weights again from the files."""
        return read_encoder(self.pipeline.encoder, _read_config(self.pipeline.encoder), pad=self.special_ids.pad)

    @property
    def max_length_limit(self) -> int:
        """Tokens that the position table allows. XLM-R counts positions from padding id + 1, so MEXMA's start at 2."""
        return int(self.config["max_position_embeddings"]) - self.special_ids.pad - 1

    @property
    def languages(self) -> list[str]:
        """ISO 639-3 codes of its training data, from config.json (mexma-train writes them) or of a known model, else []."""
        said, known = self.config.get("languages"), find_known(self.name)
        if isinstance(said, list) and all(isinstance(lang, str) and lang for lang in said):
            return list(said)
        return list(known.languages) if known else []


def load_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Load a checkpoint folder, or a model of the Hugging Face hub by its name ("facebook/MEXMA") and `revision`.

    Raises FileError (no such folder, missing file) and BundleError (unsupported architecture, pickled, incomplete or damaged
    weights, a tokenizer that does not fit).
    """
    folder = _find(source, revision)
    pipeline = read_pipeline(folder)
    config = _read_config(pipeline.encoder)
    check_supported(folder, pipeline)
    if (folder / MANIFEST).exists() and not (pipeline.encoder / WEIGHTS).is_file():
        raise FileError(
            f"{folder} is a bundle without weights, and an export needs them. Name the checkpoint that the bundle was exported "
            "from. (To build an engine from the bundle: mexma-export engine BUNDLE rtx)"
        )
    tokenizer, special = load_tokenizer(pipeline.encoder)
    if config["model_type"] == "xlm-roberta" and config.get("pad_token_id", PAD) != special.pad:
        raise BundleError(
            f"{pipeline.encoder / 'config.json'}: pad_token_id is {config['pad_token_id']!r}, but the tokenizer pads with "
            f"{special.pad}, and XLM-R counts positions from that id. Copy all files from the same model."
        )
    check_fit(folder, tokenizer, config.get("vocab_size"))
    read = read_encoder(pipeline.encoder, config, pad=special.pad)
    check_fit(folder, tokenizer, read.config["vocab_size"])  # the table's size, in case config.json does not say
    _check_dense(pipeline, read.config["hidden_size"])
    return Checkpoint(
        folder=folder,
        name=str(source) if folder != Path(source) else folder.resolve().name,
        sha256=_hash_of_weights(pipeline.encoder),
        config=read.config,
        prefix=read.prefix,
        rewritten=read.converted or bool(read.prefix),
        model=_load_model(folder, read),
        tokenizer=tokenizer,
        special_ids=special,
        pipeline=pipeline,
    )


def check_supported(folder: Path, pipeline: Pipeline) -> None:
    """Raise BundleError for anything that the owner's `encode` does and the bundle would not: every vector would be wrong."""
    if len(pipeline.poolings) != 1 or pipeline.poolings[0] not in POOLINGS:
        raise BundleError(
            f"{folder}: its sentence-transformers settings ask for the pooling {', '.join(pipeline.poolings) or 'none'}, but "
            f"the graphs support only {' or '.join(POOLINGS)}, one of them: every vector would be wrong. This model cannot be "
            "exported."
        )
    asked = (
        (
            pipeline.default_prompt is not None,
            f"default_prompt_name {pipeline.default_prompt!r}",
            "puts a prompt before texts",
            f"replace it with null ({PROMPTS}), and name the prompt when you embed texts: "
            f"embed(texts, prompt={pipeline.default_prompt!r})",
        ),
        (
            pipeline.lower_case,
            "do_lower_case true",
            "converts every text to lower case",
            'replace it with false, and put "normalizer": {"type": "Lowercase"} into tokenizer.json (before any others there)',
        ),
        (
            not pipeline.include_prompt,
            "include_prompt false",
            "leaves the prompt's tokens out of the pooling",
            f"replace it with true ({POOLING_FOLDER}/config.json), and delete the prompts from {PROMPTS}: texts without a "
            "prompt keep their vectors",
        ),
    )
    for found, what, does, remedy in asked:
        if found:
            raise BundleError(
                f"{folder}: its sentence-transformers settings have {what}. This model's encode {does}, but the bundle would "
                f"not, so its vectors would differ. In a copy of the folder, {remedy}."
            )


def _find(source: str | Path, revision: str | None) -> Path:
    folder = Path(source)
    check_unicode(folder)
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_file():
        raise FileError(f"{name} is a file. Name the folder that it is in: {folder.parent}")
    # if there is a folder "runs" here, "runs/mini" is a mistyped path, not a name on the hub
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or folder.parent.is_dir():
        raise FileError(
            f"{name}: no such checkpoint folder. Give a folder with config.json, model.safetensors and tokenizer.json "
            "(mexma-train writes one), or a name on the Hugging Face hub such as facebook/MEXMA."
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:  # the hub's errors share no base class
        raise FileError(
            f"{name}: no such folder here, and it could not be loaded from the Hugging Face hub: {error}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if inside := sorted(folder.glob("snapshots/*/config.json")) or sorted(folder.glob("*/config.json")):
            raise FileError(f"{folder}: config.json is missing, but there is {inside[0]}. Name its folder: {inside[0].parent}")
        raise FileError(
            f"{folder}: config.json is missing, so this is not a checkpoint folder. It needs config.json, "
            "model.safetensors and tokenizer.json; mexma-train writes them into its output folder."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error}). Copy the checkpoint again.") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path}: not a JSON object, but {type(config).__name__}. Copy the checkpoint again.")
    check_kind(folder, config)
    return config


def _hash_of_weights(folder: Path) -> str:
    if (folder / WEIGHTS).is_file():
        return sha256_of(folder / WEIGHTS)
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_dense(pipeline: Pipeline, width: int) -> None:
    """Raise BundleError unless every dense layer takes vectors of the width that the step before it returns."""
    for layer in pipeline.dense:
        out, taken = layer.weight.shape
        if taken != width:
            raise BundleError(
                f"The dense layer {layer.name} takes vectors of {taken} numbers, but the step before it returns {width}. They "
                "belong to different models: copy the whole folder again."
            )
        width = out


def _load_model(folder: Path, read: EncoderWeights) -> XLMRobertaModel:
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    try:
        config = XLMRobertaConfig(**read.config)
    except Exception as error:  # of the library with which it checks its settings' types
        said = " ".join(str(error).split())
        raise BundleError(f"{folder / 'config.json'}: a setting cannot be used: {said}. Copy the checkpoint again.") from error
    with quiet_transformers():
        model: XLMRobertaModel = XLMRobertaModel.from_pretrained(
            None,
            config=config,
            state_dict=read.tensors,  # complete and with the right shapes: read_encoder has checked both
            add_pooling_layer=False,
            attn_implementation="eager",  # finite for fully padded rows
            dtype=torch.float32,
        )
    # by the lowest and highest number: a sum of finite numbers can be infinite, and isfinite() makes three copies
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(torch.stack(p.aminmax())).all())]
    if bad:
        raise BundleError(f"{folder}: NaN or infinite numbers in {bad[0]}. Training diverged; use an earlier checkpoint.")
    model.eval()  # type: ignore[no-untyped-call]  # transformers has no types here
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and warnings inside the block; its settings are restored afterwards."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers has no types here
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types here
