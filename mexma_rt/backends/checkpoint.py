"""Reads the encoder of a checkpoint folder into one form, XLM-R's, whatever model it is and tool wrote it. Needs safetensors.

XLM-R, BERT and DistilBERT are the same network: word, position and token type rows, then post-norm layers. They differ in the
names of their tensors and in where the position table starts: BERT's first token has row 0, XLM-R's the row after the one for
padding. So BERT's rows are moved there (`bert_to_xlmr`), and the rest of the code sees only one form.
A tensor that the encoder has no place for is an error naming it, unless no sentence vector depends on it (`BESIDE`): leaving it
out silently would change the model. Tensors are torch's; only their methods are used.
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
SPARE_ROWS = 128  # word tables are often padded to a multiple of 8, 64 or 128 rows

# Often stored beside the encoder but irrelevant to sentence vectors: the pooler, pretraining heads, tables of position ids.
BESIDE = re.compile(
    r"pooler\.dense\.(weight|bias)|embeddings\.(position_ids|token_type_ids)|lm_head\..+|cls\.(predictions|seq_relationship)\..+"
    r"|vocab_(transform|layer_norm|projector)\..+"
)
HEADS = re.compile(r"(classifier|score|qa_outputs|summary|sequence_summary)\..+")
TIED = ("lm_head.decoder.weight", "cls.predictions.decoder.weight", "vocab_projector.weight")  # copies of the word embeddings

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
DEFAULTS = {  # those of transformers' classes; older folders omit settings that equal them
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}
OTHER_KINDS = {  # why a popular model is refused
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
OTHER_LIBRARIES = ("*.h5", "*.msgpack", "*.gguf", "*.onnx", "onnx/*.onnx")
FORMS = ("xlm-roberta", "bert", "distilbert")
ADAPTER = "adapter_config.json"
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class EncoderWeights:
    """An encoder in XLM-R's form. `tensors` are named as in transformers' XLMRobertaModel and keep the file's types."""

    config: dict[str, Any]  # the content of XLM-R's config.json
    tensors: dict[str, Any]
    prefix: str  # of the names in the file: "roberta.", "bert.", "0.auto_model.", or ""
    converted: bool  # the file is not a single model.safetensors in exactly this form, so it cannot simply be copied


def read_encoder(folder: Path, config: Mapping[str, Any], *, pad: int) -> EncoderWeights:
    """Read the encoder of a folder whose config.json is `config`; `pad` is the tokenizer's padding id.

    Raises BundleError (another architecture, damaged, incomplete or unknown tensors), FileError (no weights, a missing shard).
    """
    kind = check_kind(folder, config)
    held, split = read_tensors(folder)
    if quantised := sorted(name for name, tensor in held.items() if name.endswith(".weight") and not _is_plain(tensor)):
        raise BundleError(
            f"{folder}: the weights are quantised ({quantised[0]} is {str(held[quantised[0]].dtype).removeprefix('torch.')}), "
            "and only the library that wrote them knows how to read them. Name the model that it was made from."
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
    tensors[TYPES] = tensors[TYPES][:1].clone()  # in a single sentence every token has type 0
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
    """Whether numbers are unscaled floats; 8-bit floats and integers come with scales, which are not read here."""
    return bool(tensor.is_floating_point()) and tensor.element_size() >= 2


def bert_to_xlmr(positions: Any, pad: int) -> Any:
    """Turn BERT's position table [P, D] into XLM-R's [pad + 1 + P, D], whose rows up to and including padding's are 0."""
    moved = positions.new_zeros((pad + 1 + positions.shape[0], positions.shape[1]))
    moved[pad + 1 :] = positions
    return moved


def check_kind(folder: Path, config: Mapping[str, Any]) -> str:
    """Return the model_type, one of FORMS. Raises BundleError for any other, naming it."""
    kind, path = config.get("model_type"), folder / "config.json"
    if kind not in FORMS:
        why = f": {OTHER_KINDS[kind]}" if isinstance(kind, str) and kind in OTHER_KINDS else ""
        raise BundleError(
            f"{path}: model_type is {kind!r}{why}. Supported are the encoders {', '.join(FORMS)} (post-norm layers, a table of "
            "positions), such as MEXMA, multilingual-e5, LaBSE, bge-m3 and paraphrase-multilingual models."
        )
    if (adapter := folder / ADAPTER).is_file():
        raise BundleError(
            f"{adapter}: an adapter lies beside the weights, and its owner's code would apply it. Merge it into the weights "
            "and save the whole model (in peft: model.merge_and_unload()), or delete the file if it is merged already."
        )
    if config.get("quantization_config"):
        raise BundleError(
            f"{path}: quantization_config is set: the weights are quantised. Name the model that it was made from."
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise BundleError(
            f"{path}: is_decoder or add_cross_attention is set, but a decoder has no sentence vector. Name an encoder."
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
        except Exception as error:  # safetensors' own, for a truncated or damaged file
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
    """Return the names of the files listed in the index."""
    path = folder / INDEX
    if not path.is_file():
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        if pickles:
            raise BundleError(
                f"{folder}: only pickled weights ({pickles[0]}), which are refused because a pickle can run any code. If you "
                "trust the file, convert it once with safetensors.torch.save_file, and name the new folder."
            )
        if named := sorted(p.name for p in folder.glob("*.safetensors")):  # such as model.fp16.safetensors
            raise FileError(f"{folder}: {WEIGHTS} is missing, but {named[0]} is there. If it has the weights, rename it.")
        others = sorted(p.name for pattern in OTHER_LIBRARIES for p in folder.glob(pattern))
        found = f", and {others[0]} is of another library" if others else ""
        raise FileError(f"{folder}: {WEIGHTS} is missing{found}. Copy the checkpoint again, or train it with mexma-train.")
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BundleError(f"{path}: not an index of weights ({error}). Copy the checkpoint again.") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise BundleError(f"{path}: names the file {outside[0]!r} outside its folder. Copy the checkpoint again.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileError(
            f"{folder}: {len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}. Copy them here too."
        )
    return names


def _encoder_names(folder: Path, held: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the tensors without the name prefix that wrappers and trainers add, and that prefix."""
    prefixes = sorted(name.removesuffix(POSITIONS) for name in held if name.endswith(POSITIONS))
    if not prefixes:
        raise BundleError(
            f"{folder}: no tensor {POSITIONS} in the weights (first: {min(held, default='none')}): this is not an "
            "encoder in Hugging Face form, or it is an adapter without its base model. Merge or save the whole model."
        )
    if len(prefixes) > 1:
        raise BundleError(f"{folder}: the weights hold {len(prefixes)} encoders: {', '.join(prefixes)}. Save the one you mean.")
    prefix, tensors = prefixes[0], {}
    outer = prefix[: prefix.rstrip(".").rfind(".") + 1]  # of the encoder's siblings: "lm_head." beside "roberta."
    for name, tensor in held.items():
        start = next((start for start in (prefix, outer) if name.startswith(start)), "")
        tensors[name[len(start) :]] = tensor
    if WORDS not in tensors and (tied := [name for name in TIED if name in tensors]):
        tensors[WORDS] = tensors[tied[0]]  # safetensors' save_model writes only one of two names for a shared tensor
    return tensors, prefix


def _renamed(name: str) -> str:
    for old, new in DISTILBERT:
        name = re.sub(old, new, name)
    return name


def _new_norm_name(match: re.Match[str]) -> str:
    return f"LayerNorm.{'weight' if match[1] == 'gamma' else 'bias'}"


def _settings(folder: Path, config: Mapping[str, Any], kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's config.json in XLM-R's form; missing table sizes are taken from the tensors."""
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
            f"{folder / 'config.json'}: hidden_size {settings['hidden_size']} cannot be divided evenly among "
            f"{settings['num_attention_heads']} attention heads. Copy the checkpoint again."
        )
    if settings["hidden_act"] != "gelu":
        raise BundleError(
            f"{folder / 'config.json'}: hidden_act is {settings['hidden_act']!r}, but the encoders known here have 'gelu'."
        )
    return settings


def _check_shapes(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
    """Raise BundleError unless the tensors and their shapes are exactly those that the configuration requires."""
    wanted = encoder_shapes(settings)
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise BundleError(
            f"{folder}: the weights lack {len(missing)} tensors of the encoder in config.json (first: {missing[0]}); "
            "they would be random. The file is incomplete or belongs to another config.json."
        )
    if unknown := sorted(tensors.keys() - wanted.keys()):
        what = "a head of a classifier or cross-encoder" if HEADS.match(unknown[0]) else "not part of the encoder it describes"
        raise BundleError(
            f"{folder}: the weights hold {len(unknown)} tensors for which config.json has no place (first: {unknown[0]}, "
            f"{what}). Without them it would be another model: it has more layers, an adapter or a changed architecture. "
            "Copy the config.json that belongs to the weights, or merge the adapter into them."
        )
    for name, shape in wanted.items():
        if tuple(tensors[name].shape) != shape:
            raise BundleError(
                f"{folder}: {name} has the shape {tuple(tensors[name].shape)}, but config.json says {shape}. "
                "The weights belong to another config.json. Copy the checkpoint again."
            )
