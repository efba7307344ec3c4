"""Where `mexma-export` starts; `python -m mexma_export` is the same."""

from __future__ import annotations

from mexma_rt.__main__ import start


def main() -> None:
    """Run `mexma-export`."""
    start("mexma-export", "mexma_export.cli")


if __name__ == "__main__":
    main()
