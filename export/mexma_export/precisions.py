"""Writes the graphs of a bundle, one per precision, and compares each with the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mexma_export.graph_format import GRAPHS, OPSET
from mexma_export.head import PLAIN
from mexma_export.parity import check_parity
from mexma_export.sentences import Sentence
from mexma_export.verdict import Parity, Thresholds
from mexma_rt.bundle.structure import GRAPH, STRUCTURES, write_built
from mexma_rt.errors import BundleError, MexmaError

if TYPE_CHECKING:
    import numpy as np
    from transformers import XLMRobertaModel

    from mexma_export.blockwise import Form
    from mexma_export.checkpoint import Checkpoint
    from mexma_export.reopen import Runner
    from mexma_export.rows import RowProduct

BLOCKS = "w4", "w8"  # structures of other graphs are written beside them
CHOSEN = (*BLOCKS, "int8")  # each product has its own form


def write_graphs(
    source: Checkpoint,
    folder: Path,
    precisions: Sequence[str],
    tell: Callable[[str, int, int], None],
    *,
    sentences: Sequence[Sentence],
    thresholds: Mapping[str, Thresholds],
    opset: int = OPSET,
) -> dict[str, dict[str, list[str]]]:
    """Write the graph of each precision into a bundle folder; returns {w4, w8 or int8: {form: names of its products}}.

    `sentences` and `thresholds` are those of the gate, by which the forms of w4, w8 and int8 are chosen. `opset` applies to the
    standard graphs, fp32 and fp16; the others have their own. Raises BundleError with the first line of a library's error.
    """
    from mexma_export.blockwise import export_blocks
    from mexma_export.compact import export_fused, export_mixed
    from mexma_export.graphs import export_standard
    from mexma_export.half import export_half
    from mexma_export.rows import export_rows
    from mexma_export.structure import export_structure
    from mexma_export.trim import trimmed_embeddings

    (folder / "onnx").mkdir(exist_ok=True)
    head = source.pipeline.head
    writers: dict[str, Callable[..., None]] = {"fused": export_fused, "mixed": export_mixed}
    writers |= {"fp32": partial(export_standard, opset=opset), "fp16": partial(export_half, opset=opset)}
    chosen: dict[str, dict[str, list[str]]] = {}
    for done, precision in enumerate(precisions):
        tell(f"export {precision}", done, len(precisions))
        path = folder / GRAPHS[precision]
        try:
            forms, rows = _forms(source, precision, sentences, thresholds, tell) if precision in CHOSEN else ({}, {})
            if forms:
                chosen[precision] = _by_form(forms)
            faster = precision == "w4" and not {"int8", "w8"} & {*precisions} and _lossless(source.model, forms)
            if faster:
                int8, products = _forms(source, "int8", sentences, {"int8": _int8(thresholds, precision)}, tell)
                int8 |= {name: form for name, form in forms.items() if name not in products}  # words as they are in w4
                chosen["int8 built from w4"] = _by_form(int8)
            with trimmed_embeddings(source.model, source.kept):
                if precision in writers:
                    writers[precision](source.model, path, head)
                elif precision == "int8":
                    export_rows(source.model, path, forms, rows, head)
                else:
                    export_blocks(source.model, path, forms, head)
                    for name in {"fp32", "fp16"} - {*precisions}:
                        export_structure(source.model, folder / STRUCTURES[name], head, half=name == "fp16")
                    if faster:
                        export_rows(source.model, folder / STRUCTURES["int8"], int8, products, head, weights=False)
        except (OSError, MexmaError):  # new_folder explains an OSError, such as a full disk
            raise
        except Exception as error:  # of torch or onnx, often with pages of graph
            first_line = str(error).strip().partition("\n")[0].rstrip(".")
            other = next(other for other in GRAPHS if other != precision)
            raise BundleError(
                f"Writing the {precision} graph failed: {first_line}. The versions of torch, onnx and onnxruntime may not be "
                f"compatible; --precision {other} leaves this graph out."
            ) from error
    return chosen


def _int8(thresholds: Mapping[str, Thresholds], precision: str) -> Thresholds:
    """Return what an int8 graph that is built from the graph of `precision` must reach."""
    return thresholds.get("int8", thresholds[precision])


def _lossless(model: XLMRobertaModel, forms: Mapping[str, Form]) -> bool:
    """Return whether w4 stores every product exactly: a second rounding on top of a lossy one could fail the gate."""
    from mexma_export.blocks import on_grid
    from mexma_export.blockwise import WORDS_WEIGHT

    names = [name for name in forms if name != WORDS_WEIGHT]
    return all(on_grid(model.get_parameter(name).detach().float().numpy(), size=forms[name].size) for name in names)


def _forms(
    source: Checkpoint,
    precision: str,
    sentences: Sequence[Sentence],
    thresholds: Mapping[str, Thresholds],
    tell: Callable[[str, int, int], None],
) -> tuple[dict[str, Form], dict[str, RowProduct]]:
    from mexma_export.sensitivity import choose_forms

    return choose_forms(
        source.model,
        torch_runner(source),
        source.tokenizer,
        sentences,
        thresholds[precision],
        precision=precision,
        pad=source.special_ids.pad,
        progress=lambda done, total: tell(f"sensitivity of {precision}", done, total),
    )


def _by_form(forms: Mapping[str, Form]) -> dict[str, list[str]]:
    products: dict[str, list[str]] = {}
    for name, form in forms.items():
        products.setdefault(_named(form), []).append(name)
    return products


def _named(form: Form) -> str:
    if form.size:
        return f"{form.bits} bits, blocks of {form.size}, accuracy_level {form.level}"
    return "8 bits, one scale per row" if form.bits == 8 else "float32"


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
    """Compare the graphs of a bundle folder with the checkpoint; returns {precision: its report}.

    There are further entries: for fp16, "fp16 in torch"; for w4 and w8, the graphs that the runtime builds from them, such as
    "fp32 built from w4". `out` [n, D] receives the checkpoint's sentence vectors.
    """
    from mexma_export.half import half_runner
    from mexma_export.memory import give_back, set_aside, take_back
    from mexma_export.reopen import LateGraph, open_graph
    from mexma_export.trim import trimmed_embeddings

    plain = source.pipeline.head == PLAIN

    def late(path: Path) -> Runner:
        return LateGraph(lambda: open_graph(path, plain=plain), give_back)

    def whole() -> Runner:
        take_back(source)
        return torch_runner(source)

    def half() -> Runner:
        take_back(source)
        with trimmed_embeddings(source.model, source.kept):
            return half_runner(source.model, source.pipeline.head)

    runners = {precision: late(folder / GRAPHS[precision]) for precision in precisions}
    thresholds = dict(thresholds)
    with ExitStack() as works:
        for precision in BLOCKS:  # for back ends that lack its operators, the runtime builds other graphs from it
            for kind in [kind for kind, path in STRUCTURES.items() if precision in precisions and (folder / path).is_file()]:
                work = Path(works.enter_context(TemporaryDirectory(dir=folder)))
                write_built(folder / STRUCTURES[kind], folder / GRAPHS[precision], work)
                name = f"{kind} built from {precision}"
                runners[name] = late(work / GRAPH)
                thresholds[name] = _int8(thresholds, precision) if kind == "int8" else thresholds[precision]
        if "fp16" in runners:  # the arithmetic too, since onnxruntime on CPU hides overflows
            runners["fp16 in torch"], thresholds["fp16 in torch"] = LateGraph(half, give_back), thresholds["fp16"]
        results = check_parity(
            runners,
            LateGraph(whole, lambda: set_aside(source)),  # so that the model is not in memory beside the graphs
            source.tokenizer,
            sentences,
            max_length=max_length,
            length_limit=source.max_length_limit,
            special=source.special_ids,
            plain=plain,
            thresholds=thresholds,
            out=out,
            progress=lambda done, total: tell("parity gate", done, total),
        )
    take_back(source)
    return results


def torch_runner(source: Checkpoint) -> Runner:
    """Return the reference: the checkpoint's model and head, run by torch.

    The model is never trimmed: if the graphs are, it gets the ids that the same pieces have in the whole vocabulary.
    """
    import torch

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = ids if source.kept is None else source.kept[ids]
        with torch.inference_mode():
            output = source.model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
            sentence = source.pipeline.head(output.last_hidden_state, torch.from_numpy(mask))
        return sentence.numpy(), output.last_hidden_state.numpy()

    return run
