"""Reads the encoder of a checkpoint folder into one form, XLM-R's, whichever model and tool wrote it. Needs safetensors.

XLM-R, BERT and DistilBERT are the same network: word, position and token type rows, then post-norm layers. They differ in the
names of their tensors and in where the position table starts: BERT's row 0 is that of the first token, XLM-R's comes behind the
row of padding. So BERT's rows are moved there (`bert_to_xlmr`), and nothing behind this module knows two forms.
What the folder holds and the encoder has no place for is an error that names it, except what no sentence vector depends on
(`BESIDE`): a tensor that is silently left out would be another model. Tensors are torch's; only their methods are used.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mexma_rt.bundle.safetensors_folder import encoder_shapes
from mexma_rt.errors import BundleError, FileError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WORDS, POSITIONS, TYPES = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
SPARE_ROWS = 128  # word tables are often filled up to a multiple of 8, 64 or 128 rows

# Beside the encoder in many folders, and not part of a sentence vector: pooler, heads of pretraining, numbers that count up.
BESIDE = re.compile(
    r"pooler\.dense\.(weight|bias)|embeddings\.(position_ids|token_type_ids)|lm_head\..+|cls\.(predictions|seq_relationship)\..+"
    r"|vocab_(transform|layer_norm|projector)\..+"
)
HEADS = re.compile(r"(classifier|score|qa_outputs|summary|sequence_summary)\..+")
TIED = ("lm_head.decoder.weight", "cls.predictions.decoder.weight", "vocab_projector.weight")  # the word embeddings again

DISTILBERT = (  # its names -> BERT's
    (r"^transformer\.layer\.", "encoder.layer."),
    (r"\.attention\.q_lin\.", ".attention.self.query."),
    (r"\.attention\.k_lin\.", ".attention.self.key."),
    (r"\.attention\.v_lin\.", ".attention.self.value."),
    (r"\.attention\.out_lin\.", ".attention.output.dense."),
    (r"\.sa_layer_norm\.", ".attention.output.LayerNorm."),
    (r"\.ffn\.lin1\.", ".intermediate.dense."),
    (r"\.ffn\.lin2\.", ".output.dense."),
    (r"\.output_layer_norm\.", ".output.LayerNorm."),
)
DISTILBERT_CONFIG = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "hidden_dim": "intermediate_size",
    "activation": "hidden_act",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
LEFT_OUT = ("_name_or_path", "dtype", "torch_dtype", "sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout")
DEFAULTS = {  # of transformers' classes: older folders leave out what equals them
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
OTHER_KINDS = {  # why a model that many people have is refused
    "modernbert": "rotary positions and pre-norm layers",
    "nomic_bert": "rotary positions",
    "new": "rotary positions (gte)",
    "mpnet": "relative positions",
    "deberta-v2": "relative positions",
    "electra": "its own embeddings",
    "xlm-roberta-xl": "pre-norm layers",
    "t5": "relative positions",
    "mt5": "relative positions",
    "gpt2": "a decoder",
    "llama": "a decoder",
    "qwen2": "a decoder",
    "qwen3": "a decoder",
    "gemma3_text": "rotary positions",
}
FORMS = ("xlm-roberta", "bert", "distilbert")
ADAPTER = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """An encoder in XLM-R's form. `tensors` have the names of transformers' XLMRobertaModel and the types of the file."""

    config: dict[str, Any]  # as XLM-R's config.json
    tensors: dict[str, Any]
    prefix: str  # that the names had in the file: "roberta.", "bert.", "0.auto_model.", or ""
    converted: bool  # the file is no single model.safetensors in this very form, so that it cannot be copied as it is


def read_encoder(folder: Path, config: Mapping[str, Any], *, pad: int) -> EncoderWeights:
    """The encoder of a folder whose config.json is `config`; `pad` is the tokenizer's id of padding.

    Raises BundleError (another architecture, damaged, incomplete or unknown tensors), FileError (no weights, a missing shard).
    """
    kind = check_kind(folder, config)
    held, split = read_tensors(folder)
    if quantised := sorted(name for name, tensor in held.items() if name.endswith(".weight") and not _is_plain(tensor)):
        raise BundleError(
            f"{folder}: the weights are quantised ({quantised[0]} is {str(held[quantised[0]].dtype).removeprefix('torch.')}), "
            "and what their numbers stand for is known to the library that wrote them. Name the model that it was made from."
        )
    tensors, prefix = _encoder_names(folder, held)
    if kind == "distilbert":
        tensors = {_renamed(name): tensor for name, tensor in tensors.items()}
    tensors = {re.sub(r"LayerNorm\.(gamma|beta)$", _new_norm_name, name): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not BESIDE.fullmatch(name)}
    if WORDS in tensors and TYPES not in tensors and kind == "distilbert":
        tensors[TYPES] = tensors[WORDS].new_zeros((1, tensors[WORDS].shape[1]))
    settings = _settings(folder, config, kind, tensors)
    _check_shapes(folder, settings, tensors)
    types = tensors[TYPES].shape[0]
    tensors[TYPES] = tensors[TYPES][:1].clone()  # of a single sentence every token has type 0
    settings |= {"type_vocab_size": 1, "pad_token_id": pad}
    if kind != "xlm-roberta":
        tensors[POSITIONS] = bert_to_xlmr(tensors[POSITIONS], pad)
        settings["max_position_embeddings"] = tensors[POSITIONS].shape[0]
    return EncoderWeights(
        config=settings,
        tensors=tensors,
        prefix=prefix,
        converted=kind != "xlm-roberta" or split or types > 1 or prefix not in ("", "roberta."),
    )


def _is_plain(tensor: Any) -> bool:
    """Whether numbers are what they stand for: of 8 bits and whole ones are scaled by others, that we do not read."""
    return bool(tensor.is_floating_point()) and tensor.element_size() >= 2


def bert_to_xlmr(positions: Any, pad: int) -> Any:
    """BERT's position table [P, D], row 0 for the first token -> XLM-R's [pad + 1 + P, D]: rows up to that of padding are 0."""
    moved = positions.new_zeros((pad + 1 + positions.shape[0], positions.shape[1]))
    moved[pad + 1 :] = positions
    return moved


def check_kind(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the model_type, one of FORMS. Raises BundleError for any other, naming it."""
    kind, path = config.get("model_type"), folder / "config.json"
    if kind not in FORMS:
        why = f": {OTHER_KINDS[kind]}" if isinstance(kind, str) and kind in OTHER_KINDS else ""
        raise BundleError(
            f"{path}: model_type is {kind!r}{why}. Known are encoders of the forms {', '.join(FORMS)} (post-norm layers, a "
            "table of positions), such as MEXMA, multilingual-e5, LaBSE, bge-m3 and paraphrase-multilingual models."
        )
    if (adapter := folder / ADAPTER).is_file():
        raise BundleError(
            f"{adapter}: an adapter lies beside the weights, and its owner's code would add it to them. Merge it into them and "
            "save the whole model (in peft: model.merge_and_unload()), or delete the file if the weights have it already."
        )
    if config.get("quantization_config"):
        raise BundleError(
            f"{path}: quantization_config is set: the weights are quantised. Name the model that it was made from."
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise BundleError(
            f"{path}: is_decoder or add_cross_attention is set: a decoder has no sentence vector. Name an encoder."
        )
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise BundleError(f"{path}: position_embedding_type is {positions!r}, but a table of absolute positions is needed.")
    named = config.get("architectures") or []
    named = named if isinstance(named, list) else [named]
    if any(str(name).endswith("ForSequenceClassification") for name in named):
        raise BundleError(
            f"{path}: {named[0]} is a classifier or cross-encoder (it scores pairs of texts), not an "
            "encoder of sentences. Name the model that it was made from."
        )
    return str(kind)


def read_tensors(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return all tensors of model.safetensors or its shards, and whether there are shards. Pickles are never read."""
    load = importlib.import_module("safetensors.torch").load_file
    files = [WEIGHTS] if (folder / WEIGHTS).is_file() else _shards(folder)
    tensors: dict[str, Any] = {}
    for name in files:
        try:
            tensors |= load(folder / name)
        except Exception as error:  # safetensors' own, of a file that is cut or damaged
            with (folder / name).open("rb") as stream:
                if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise BundleError(
                        f"{folder / name} is a pointer of Git LFS, not the weights. Fetch them in the clone: git lfs pull"
                    ) from None
            raise BundleError(
                f"{folder / name}: the weights do not load: {str(error).strip().rstrip('.')}. The file is damaged or was not "
                "copied whole. Copy the checkpoint again."
            ) from error
    return tensors, files != [WEIGHTS]


def _shards(folder: Path) -> list[str]:
    """The names of the files that the index lists."""
    path = folder / INDEX
    if not path.is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        if pickles:
            raise BundleError(
                f"{folder}: only pickled weights ({pickles[0]}), and loading a pickle can run any code: refused. If you "
                "trust the file, convert it once with safetensors.torch.save_file, and name the new folder."
            )
        others = sorted(
            p.name for pattern in ("*.h5", "*.msgpack", "*.gguf", "*.onnx", "onnx/*.onnx") for p in folder.glob(pattern)
        )
        found = f", and {others[0]} is of another library" if others else ""
        raise FileError(f"{folder}: {WEIGHTS} is missing{found}. Copy the checkpoint again, or train it with mexma-train.")
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleError(f"{path}: not an index of weights ({error}). Copy the checkpoint again.") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise BundleError(f"{path}: names the file {outside[0]!r} outside of its folder. Copy the checkpoint again.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileError(
            f"{folder}: {len(missing)} of {len(names)} files of weights are missing, {missing[0]} first. Copy them here too."
        )
    return names


def _encoder_names(folder: Path, held: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the tensors without the prefix that wrappers and trainers add to their names, and that prefix."""
    prefixes = sorted(name.removesuffix(POSITIONS) for name in held if name.endswith(POSITIONS))
    if not prefixes:
        raise BundleError(
            f"{folder}: no tensor {POSITIONS} in the weights (first: {min(held, default='none')}): they are not those of "
            "an encoder in Hugging Face form, or an adapter without its base model. Merge or save the whole model."
        )
    if len(prefixes) > 1:
        raise BundleError(f"{folder}: the weights hold {len(prefixes)} encoders: {', '.join(prefixes)}. Save the one you mean.")
    prefix, tensors = prefixes[0], {}
    outer = prefix[: prefix.rstrip(".").rfind(".") + 1]  # of what stands beside the encoder: "lm_head." beside "roberta."
    for name, tensor in held.items():
        start = next((start for start in (prefix, outer) if name.startswith(start)), "")
        tensors[name[len(start) :]] = tensor
    if WORDS not in tensors and (tied := [name for name in TIED if name in tensors]):
        tensors[WORDS] = tensors[tied[0]]  # safetensors' save_model writes one of two names that share a tensor
    return tensors, prefix


def _renamed(name: str) -> str:
    for old, new in DISTILBERT:
        name = re.sub(old, new, name)
    return name


def _new_norm_name(match: re.Match[str]) -> str:
    return f"LayerNorm.{'weight' if match[1] == 'gamma' else 'bias'}"


def _settings(folder: Path, config: Mapping[str, Any], kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """XLM-R's config.json of the model. What a number of the table says is taken from the table."""
    settings: dict[str, Any] = DEFAULTS | dict(config)
    if kind == "distilbert":
        settings |= {new: settings.pop(old) for old, new in DISTILBERT_CONFIG.items() if old in settings}
    for key in LEFT_OUT:
        settings.pop(key, None)
    settings |= {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    for key, name in (("vocab_size", WORDS), ("max_position_embeddings", POSITIONS), ("type_vocab_size", TYPES)):
        if settings.get(key) is None and name in tensors:
            settings[key] = tensors[name].shape[0]
    needed = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
    if lacking := [key for key in needed if type(settings.get(key)) is not int or settings[key] < 1]:
        raise BundleError(f"{folder / 'config.json'}: no number for {', '.join(lacking)}. Copy the checkpoint again.")
    if settings["hidden_size"] % settings["num_attention_heads"]:
        raise BundleError(
            f"{folder / 'config.json'}: {settings['hidden_size']} numbers of a state cannot be shared among "
            f"{settings['num_attention_heads']} attention heads. Copy the checkpoint again."
        )
    if settings["hidden_act"] != "gelu":
        raise BundleError(
            f"{folder / 'config.json'}: hidden_act is {settings['hidden_act']!r}, but the encoders known here have 'gelu'."
        )
    return settings


def _check_shapes(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Every tensor that the configuration asks for, in its shape, and no other."""
    wanted = encoder_shapes(settings)
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise BundleError(
            f"{folder}: the weights lack {len(missing)} tensors of the encoder that config.json describes, {missing[0]} first; "
            "they would be random numbers. The file is incomplete or belongs to another config.json."
        )
    if unknown := sorted(tensors.keys() - wanted.keys()):
        what = "a head of a classifier or cross-encoder" if HEADS.match(unknown[0]) else "no part of the encoder it describes"
        raise BundleError(
            f"{folder}: the weights hold {len(unknown)} tensors that config.json gives no place, {unknown[0]} first ({what}). "
            "Without them it would be another model: more layers than config.json says, an adapter or a changed architecture. "
            "Copy the config.json that belongs to the weights, or merge the adapter into them."
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise BundleError(
                f"{folder}: {name} has the shape {tuple(tensors[name].shape)}, and config.json says {shape}. "
                "The weights belong to another config.json. Copy the checkpoint again."
            )
