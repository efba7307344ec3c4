"""Turns a bundle into a Triton model repository: a model per graph, and one for the TensorRT engine, each with a config.pbtxt.

Triton serves tensors, not text: the models take token ids and masks as tokenizer.json gives them, and return sentence vectors,
which only an engine may normalise. The client tokenises and normalises. The schema is model_config.proto of
github.com/triton-inference-server/common.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mexma_export.folder import new_folder
from mexma_rt.backends import FOR_CPU
from mexma_rt.backends.sidecar import Sidecar, check_sidecar, engine_path, manifest_graph_hash, read_sidecar
from mexma_rt.bundle.graphs import INPUTS, SENTENCE, TOKENS
from mexma_rt.bundle.manifest import Bundle
from mexma_rt.bundle.opening import open_bundle
from mexma_rt.bundle.structure import runnable
from mexma_rt.errors import InputError

BATCH_TOKENS = 16384  # tokens of the largest batch, as in engines.default_profiles: an initial guess, not measured
ENGINE = "tensorrt"
TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


@dataclass(frozen=True, kw_only=True)
class TritonReport:
    """What was written, and what of the bundle was left out."""

    path: Path
    models: tuple[str, ...]
    left_out: tuple[str, ...]  # phrases: what and why


def write_triton(bundle: Path, target: Path, *, precisions: Sequence[str] | None = None) -> TritonReport:
    """Write the model repository `target` from a bundle folder; returns a report.

    precisions: the graphs to serve; None: all, and the tensorrt engine if there is one. Raises InputError (an existing target,
    a precision that the bundle lacks), and the errors of `open_bundle` and `check_sidecar` for a damaged bundle or engine.
    """
    opened = open_bundle(bundle)
    wanted = list(opened.graphs) if precisions is None else list(precisions)
    if lacking := [precision for precision in wanted if precision not in opened.graphs]:
        raise InputError(f"{bundle} has no {lacking[0]} graph: it has {', '.join(opened.graphs)}. Name one of those.")
    stem = re.sub(r"[^\w-]+", "-", opened.name, flags=re.ASCII).strip("-") or "model"
    models, left_out = [], []
    with new_folder(target) as folder:
        for precision in wanted:
            models.append(f"{stem}_onnx_{precision}")
            version = _model(folder, models[-1], _graph_config(models[-1], opened, precision))
            for name in (opened.graphs[precision], f"{opened.graphs[precision]}.data"):
                if name in opened.files:  # the graph refers to its second file by name, so names are kept
                    shutil.copyfile(opened.folder / name, version / Path(name).name)
        if engine_path(opened.folder, ENGINE).is_file() and precisions is None:
            models.append(f"{stem}_{ENGINE}")
            engine, sidecar = _checked_engine(opened)
            shutil.copyfile(engine, _model(folder, models[-1], _engine_config(models[-1], sidecar)) / "model.plan")
        if engine_path(opened.folder, "rtx").is_file():
            left_out.append("the rtx engine: Triton's tensorrt back end opens engines of tensorrt, not of tensorrt_rtx")
    return TritonReport(path=target, models=tuple(models), left_out=tuple(left_out))


def _model(folder: Path, name: str, config: str) -> Path:
    """Create a model's folder with its configuration; returns the folder of version 1."""
    version = folder / name / "1"
    version.mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(config, encoding="utf-8", newline="\n")
    return version


def _graph_config(name: str, bundle: Bundle, precision: str) -> str:
    d, kind = bundle.dimensions, "KIND_CPU" if precision in FOR_CPU else "KIND_AUTO"
    return _config(
        name,
        backend="onnxruntime",
        file=Path(bundle.graphs[precision]).name,
        limits=f"at most {bundle.max_length_limit} tokens, <s> and </s> included.",
        batch=max(1, BATCH_TOKENS // bundle.max_length_limit),
        inputs=[(name, "TYPE_INT64", [-1]) for name in INPUTS],
        note="is not normalised; request last_hidden_state, which is much larger, only if you need it.",
        outputs=[(SENTENCE, "TYPE_FP32", [d]), (TOKENS, "TYPE_FP32", [-1, -1 if bundle.dense else d])],
        instances=f"kind: {kind}",
    )


def _engine_config(name: str, sidecar: Sidecar) -> str:
    """Write the engine's config; its longest profile limits the batch, since every profile of an instance must fit it."""
    longest = max(sidecar.profiles, key=lambda profile: profile.length)
    usable = [f'"{index}"' for index, profile in enumerate(sidecar.profiles) if profile.batch >= longest.batch]
    built = f"{sidecar.library} {sidecar.version} for SM {', '.join(map(str, sidecar.sm))}"
    return _config(
        name,
        backend=ENGINE,
        file="model.plan",
        limits=f"2 to {longest.length} tokens, <s> and </s> included.\n# Built by {built}: Triton must have this version.",
        batch=longest.batch,
        inputs=[(tensor.name, TYPES[tensor.dtype], list(tensor.shape[1:])) for tensor in sidecar.inputs],
        note="has length 1." if sidecar.normalized else "is not normalised.",
        outputs=[(tensor.name, TYPES[tensor.dtype], list(tensor.shape[1:])) for tensor in sidecar.outputs],
        instances=f"kind: KIND_GPU profile: [ {', '.join(usable)} ]",
    )


def _config(
    name: str,
    *,
    backend: str,
    file: str,
    limits: str,
    note: str,
    batch: int,
    inputs: Sequence[tuple[str, str, list[int]]],
    outputs: Sequence[tuple[str, str, list[int]]],
    instances: str,
) -> str:
    """Return the text of a config.pbtxt; dims exclude the batch, as Triton requires if max_batch_size is above 0."""
    return f"""\
# input_ids: as the bundle's tokenizer.json gives them, padded on the right with 1; {limits}
# attention_mask: 1 for a token, 0 for padding.
# sentence_embedding {note} Requests share a batch only if their lengths are equal, so pad to a few lengths.
name: "{name}"
backend: "{backend}"
default_model_filename: "{file}"
max_batch_size: {batch}
input [
{_tensors(inputs)}
]
output [
{_tensors(outputs)}
]
dynamic_batching {{ }}
instance_group [
  {{ {instances} }}
]
"""


def _tensors(tensors: Sequence[tuple[str, str, list[int]]]) -> str:
    rows = [f'  {{ name: "{name}" data_type: {kind} dims: [ {", ".join(map(str, dims))} ] }}' for name, kind, dims in tensors]
    return ",\n".join(rows)


def _checked_engine(bundle: Bundle) -> tuple[Path, Sidecar]:
    """Return the bundle's engine and sidecar, after checking its bytes and its graph against sidecar and manifest."""
    engine = engine_path(bundle.folder, ENGINE)
    sidecar = read_sidecar(engine)
    graph = manifest_graph_hash(bundle, "fp16") if "fp16" in runnable(bundle) else None
    # library, version and SM concern the server, not this machine; the configuration names them
    check_sidecar(sidecar, engine, library=ENGINE, version=sidecar.version, sm=sidecar.sm[0], graph_sha256=graph)
    return engine, sidecar
