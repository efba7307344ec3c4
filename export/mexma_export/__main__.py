"""Entry point of `mexma-export`; `python -m mexma_export` does the same."""

from __future__ import annotations

from mexma_rt.__main__ import start


def main() -> None:
    """Run `mexma-export`."""
    start("mexma-export", "mexma_export.cli")


if __name__ == "__main__":
    main()
