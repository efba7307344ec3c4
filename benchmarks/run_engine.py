"""Build a bundle's TensorRT engine, run it at the corner shapes of every profile, and hold it against the fp32 graph on CPU.

    python benchmarks/run_engine.py tensorrt|rtx BUNDLE

BUNDLE has fp32 and fp16 graphs (mexma-export CHECKPOINT BUNDLE --precision fp32,fp16). Needs the GPU that the engine is for,
torch with CUDA for the buffers, and the library. Has not run on a GPU yet: see GPU_TODO.md.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from mexma_export.engines import build_bundle_engine
from mexma_export.reopen import open_graph
from mexma_export.sidecar import check_sidecar
from mexma_export.trt_compat import device_sm, load_library

TIMED = 50  # executions
COMPARED = 8  # rows whose vectors are computed on CPU too


def main() -> None:
    kind, bundle = sys.argv[1], Path(sys.argv[2])
    library = load_library(kind)
    path, sidecar = build_bundle_engine(bundle, engine=kind)
    counted = f"{sidecar.half_matmuls} of {sidecar.matmuls} products in fp16, counted in the {sidecar.counted_in}"
    print(f"{path}: {sidecar.build_seconds:.1f} s, {sidecar.engine_bytes / 1e6:.1f} MB, {counted}")
    check_sidecar(sidecar, path, library=library.__name__, version=library.__version__, sm=device_sm())
    engine = library.Runtime(library.Logger(library.Logger.ERROR)).deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        sys.exit(f"{path} does not open on this GPU: the library's messages stand above")
    context, stream, rng = engine.create_execution_context(), torch.cuda.Stream(), np.random.default_rng(0)
    pieces = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    on_cpu = open_graph(bundle / "onnx" / "model.onnx")
    for index, profile in enumerate(sidecar.profiles):
        assert context.set_optimization_profile_async(index, stream.cuda_stream)
        for rows, length in sorted({(1, 2), (1, profile.length), (profile.batch, 2), (profile.batch, profile.length)}):
            ids = rng.integers(4, pieces, (rows, length))
            ids[:, 0], ids[rows // 2, length // 2 + 1 :] = 0, 1  # <s> first; one padded row
            mask = (ids != 1).astype(np.int64)
            inputs = {"input_ids": torch.from_numpy(ids).cuda(), "attention_mask": torch.from_numpy(mask).cuda()}
            for name, tensor in inputs.items():
                assert context.set_input_shape(name, tuple(tensor.shape))
                context.set_tensor_address(name, tensor.data_ptr())
            outputs = {t.name: torch.empty(tuple(context.get_tensor_shape(t.name)), device="cuda") for t in sidecar.outputs}
            for name, tensor in outputs.items():
                context.set_tensor_address(name, tensor.data_ptr())
            ms = milliseconds(context, stream)
            got = outputs["sentence_embedding"].cpu().numpy()[:COMPARED]
            wanted = on_cpu(ids[:COMPARED], mask[:COMPARED])[0]
            cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
            print(f"profile {profile}, {rows}x{length}: lowest cosine {cosine.min():.7f}, {ms:.3f} ms, {rows / ms * 1e3:.0f}/s")


def milliseconds(context: object, stream: torch.cuda.Stream) -> float:
    """Mean time of an execution, after three that are not counted."""
    torch.cuda.synchronize()
    for _ in range(3):
        assert context.execute_async_v3(stream.cuda_stream)  # type: ignore[attr-defined]
    stream.synchronize()
    started = time.perf_counter()
    for _ in range(TIMED):
        context.execute_async_v3(stream.cuda_stream)  # type: ignore[attr-defined]
    stream.synchronize()
    return (time.perf_counter() - started) * 1e3 / TIMED


if __name__ == "__main__":
    main()
