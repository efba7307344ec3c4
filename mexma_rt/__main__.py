"""Entry point of `mexma` and of `python -m mexma_rt`."""

from __future__ import annotations

import importlib
import sys


def start(name: str, module: str) -> None:
    """Run the `main` of a module. Ctrl-C during the import prints one line and exits with status 130, as it does later."""
    try:
        command = importlib.import_module(module).main
        importlib.import_module("mexma_rt.cli.completion").complete_files()
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted; no output file was changed.\n")
        sys.exit(130)
    command()


def main() -> None:
    """Run `mexma`."""
    start("mexma", "mexma_rt.cli")


if __name__ == "__main__":
    main()
