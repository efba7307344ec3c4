"""Opens the graphs of a bundle folder, for the gate and in a fresh process (`python -m mexma_export.reopen FOLDER`).

The fresh process proves that the files on disk are complete and need nothing from the exporting process: no torch, no weights
in memory, no open file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mexma_rt.backends.onnxruntime import SWITCH
from mexma_rt.backends.quiet import import_onnxruntime
from mexma_rt.bundle.graphs import INPUTS, OUTPUTS, SENTENCE
from mexma_rt.cores import usable_cores
from mexma_rt.errors import BundleError

Runner = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""(input_ids int64 [B, L], attention_mask int64 [B, L]) -> (sentence vectors [B, D], token vectors [B, L, D])."""


class LateGraph:
    """A runner that is opened on its first call and closed on request, so that only one of many is in memory."""

    def __init__(self, opener: Callable[[], Runner], closer: Callable[[], object] = lambda: None) -> None:
        self._opener, self._closer = opener, closer
        self._run: Runner | None = None

    def __call__(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run on ids and mask, int64 [B, L] (see Runner); opens it first if needed."""
        if self._run is None:
            self._run = self._opener()
        return self._run(ids, mask)

    def close(self) -> None:
        """Release the runner; the next call opens it again."""
        self._run = None
        self._closer()


def open_graph(path: Path, *, plain: bool = True) -> Runner:
    """Open an ONNX graph on the CPU. If it has two branches (fused.py), the sentence vectors are those of the short one.

    plain: the sentence vector must be the first row of the last states; the runner raises BundleError if both branches of a
    graph are there and the long one's is not.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # no warning about the optional input of the fused graphs
    options.intra_op_num_threads = usable_cores()
    options.enable_mem_pattern = False  # would keep a plan per input shape, of which the gate has many
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads must not slow others down
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    switches = [name for name in (i.name for i in session.get_overridable_initializers()) if name == SWITCH]

    def run(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feed = dict(zip(INPUTS, (ids, mask), strict=True))
        sentence, tokens = session.run(OUTPUTS, feed)
        if switches:  # that was the branch for token states; the runtime uses the other one for sentences
            if plain and not np.array_equal(sentence, tokens[:, 0], equal_nan=True):
                raise BundleError(f"{path.name}: sentence_embedding is not the first row of last_hidden_state.")
            (sentence,) = session.run([SENTENCE], feed | {SWITCH: np.array(False)})
        return sentence, tokens

    return run


def check_in_fresh_process(folder: Path) -> None:
    """Run every graph of `folder` once in a new Python process. Raises BundleError with its error if it fails."""
    command = [sys.executable, "-m", "mexma_export.reopen", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise BundleError(f"{folder}: the exported graphs do not run in a fresh process: {words}")


def _main(folder: Path) -> None:
    for path in sorted(folder.glob("onnx/*.onnx")):
        ids = np.array([[0, 3, 2, 1], [0, 3, 3, 2]], dtype=np.int64)
        sentence, tokens = open_graph(path, plain=False)(ids, (ids != 1).astype(np.int64))
        if not (np.isfinite(sentence).all() and np.isfinite(tokens).all()):
            raise BundleError(f"{path.name} gives NaN or infinite numbers")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
