"""The graphs of a bundle, one a precision: which file each is, how it is written, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mexma_export.graph_format import GRAPHS, OPSET
from mexma_export.parity import Parity, Sentence, Thresholds, check_parity
from mexma_rt.errors import BundleError

if TYPE_CHECKING:
    import numpy as np

    from mexma_export.checkpoint import Checkpoint
    from mexma_export.reopen import Runner


def write_graphs(
    source: Checkpoint,
    folder: Path,
    precisions: Sequence[str],
    tell: Callable[[str, int, int], None],
    *,
    opset: int = OPSET,
) -> None:
    """Export the graph of each precision into a bundle folder. Raises BundleError with what the exporting library said.

    `opset` is that of the standard graphs, fp32 and fp16; the fused ones have their own.
    """
    from mexma_export.compact import export_fused, export_int8, export_mixed
    from mexma_export.graphs import SentenceEncoder, export_standard
    from mexma_export.half import export_half
    from mexma_export.trim import trimmed_embeddings

    (folder / "onnx").mkdir(exist_ok=True)
    for done, precision in enumerate(precisions):
        tell(f"export {precision}", done, len(precisions))
        path = folder / GRAPHS[precision]
        try:
            with trimmed_embeddings(source.model, source.kept):
                if precision == "fp32":
                    export_standard(SentenceEncoder(source.model), path, length_limit=source.max_length_limit, opset=opset)
                elif precision == "int8":
                    export_int8(source.model, path)
                elif precision == "fused":
                    export_fused(source.model, path)
                elif precision == "mixed":
                    export_mixed(source.model, path)
                else:
                    export_half(source.model, path, length_limit=source.max_length_limit, opset=opset)
        except OSError:  # a full disk, before all: new_folder says so
            raise
        except Exception as error:  # torch, onnx and onnxruntime each raise their own, often with pages of graph
            first_line = str(error).strip().partition("\n")[0].rstrip(".")
            other = next(other for other in GRAPHS if other != precision)
            raise BundleError(
                f"Writing the {precision} graph failed: {first_line}. The versions of torch, onnx and onnxruntime may not fit "
                f"each other; --precision {other} leaves this graph out."
            ) from error


def gate_graphs(
    source: Checkpoint,
    folder: Path,
    precisions: Sequence[str],
    sentences: Sequence[Sentence],
    max_length: int,
    thresholds: Mapping[str, Thresholds],
    out: np.ndarray,
    tell: Callable[[str, int, int], None],
) -> dict[str, Parity]:
    """Compare the graphs of a bundle folder with the checkpoint: {precision, and "fp16 in torch" beside fp16: its report}.

    `out` [n, D] receives the checkpoint's sentence vectors.
    """
    from mexma_export.half import half_runner
    from mexma_export.reopen import open_graph
    from mexma_export.trim import trimmed_embeddings

    runners = {precision: open_graph(folder / GRAPHS[precision]) for precision in precisions}
    if "fp16" in runners:  # the file, in onnxruntime, and the arithmetic: onnxruntime on CPU hides an overflow
        with trimmed_embeddings(source.model, source.kept):
            runners["fp16 in torch"] = half_runner(source.model)
        thresholds = {**thresholds, "fp16 in torch": thresholds["fp16"]}
    return check_parity(
        runners,
        torch_runner(source),
        source.tokenizer,
        sentences,
        max_length=max_length,
        length_limit=source.max_length_limit,
        thresholds=thresholds,
        out=out,
        progress=lambda done, total: tell("parity gate", done, total),
    )


def torch_runner(source: Checkpoint) -> Runner:
    """The reference: the model itself, not the wrapper that was exported, and the `<s>` row taken here.

    It is the whole model even where the graphs are trimmed: it gets the ids that the same pieces have there.
    """
    import torch

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = ids if source.kept is None else source.kept[ids]
        with torch.inference_mode():
            output = source.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        states = output.last_hidden_state.numpy()
        return states[:, 0], states

    return run
