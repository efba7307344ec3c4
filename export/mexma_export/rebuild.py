"""A bundle without model.safetensors -> a checkpoint folder: `mexma-export rebuild BUNDLE CHECKPOINT`.

The bundled model ships without torch weights, which would not fit in the wheel, but its graph holds every number of the encoder
under its name of the checkpoint (mexma_rt/bundle/weights.py). The checkpoint made of it is the model that the graph computes,
in fp32: for fine-tuning, for sentence-transformers, and to export other graphs. It is not the checkpoint that the graph was
once exported from, whose weights were rounded on the way (unless they lay on the graph's grid already); nor does it round
the inputs of products, as the graphs w4 and w8 do.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mexma_rt.bundle.opening import open_bundle
from mexma_rt.bundle.safetensors_folder import write_checkpoint
from mexma_rt.errors import MexmaError


def rebuild_checkpoint(bundle: str | Path, target: Path) -> Path:
    """Write the checkpoint folder `target` from a graph of a bundle (folder, bundled name); returns it.

    The graph is the default one if it is mixed, w8, w4 or fused, else the first of fused, mixed, w8, w4 that there is.
    Raises InputError (none of those, or one of an older mexma-export; an existing target), BundleError, FileError.
    """
    return write_checkpoint(open_bundle(bundle), target, from_graph=True)


if __name__ == "__main__":  # the spelling before `mexma-export rebuild`, which cards of published models give
    if len(sys.argv) != 3:
        sys.exit("Usage: mexma-export rebuild BUNDLE CHECKPOINT")
    try:
        rebuild_checkpoint(sys.argv[1], Path(sys.argv[2]))
    except MexmaError as error:
        sys.exit(f"Error: {error}")
