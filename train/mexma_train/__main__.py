"""Where `mexma-train` starts; `torchrun -m mexma_train run ...` has the same commands."""

from __future__ import annotations

from mexma_rt.__main__ import start


def main() -> None:
    """Run `mexma-train`."""
    start("mexma-train", "mexma_train.cli")


if __name__ == "__main__":
    main()
