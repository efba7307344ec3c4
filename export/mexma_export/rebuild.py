"""Rebuilds a checkpoint folder from a bundle without model.safetensors: `mexma-export rebuild BUNDLE CHECKPOINT`.

The bundled model ships without torch weights, which would not fit in the wheel, but its graph holds all weights of the encoder
under their names from the checkpoint (mexma_rt/bundle/weights.py). The rebuilt checkpoint is the model that the graph computes,
in fp32, for fine-tuning, for sentence-transformers, and to export other graphs. It is not the checkpoint that the graph was
exported from, whose weights the export rounded (unless they already lay on the graph's grid); and it does not round the inputs
of products, as w4 and w8 graphs do.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mexma_rt.bundle.opening import open_bundle
from mexma_rt.bundle.safetensors_folder import write_checkpoint
from mexma_rt.errors import MexmaError


def rebuild_checkpoint(bundle: str | Path, target: Path) -> Path:
    """Write the checkpoint folder `target` from a graph of a bundle (a folder or bundled name); returns `target`.

    The graph is the default one if it is mixed, w8, w4 or fused, else the first of fused, mixed, w8, w4 in the bundle. Raises
    InputError if there is none, if it comes from an older mexma-export, or if `target` exists; BundleError, FileError.
    """
    return write_checkpoint(open_bundle(bundle), target, from_graph=True)


if __name__ == "__main__":  # older than `mexma-export rebuild`; cards of published models still name it
    if len(sys.argv) != 3:
        sys.exit("Usage: mexma-export rebuild BUNDLE CHECKPOINT")
    try:
        rebuild_checkpoint(sys.argv[1], Path(sys.argv[2]))
    except MexmaError as error:
        sys.exit(f"Error: {error}")
