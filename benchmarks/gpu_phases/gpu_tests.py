"""The tests that are marked `gpu`, by pytest, beside the rest of their files; with --smoke those of one file are counted."""

from __future__ import annotations

import re
import sys

from telling import flags, say

FILES = (
    "tests/train/test_attention.py",
    "tests/train/test_mexma.py",
    "tests/runtime/backends/test_torch.py",
    "tests/runtime/knn/test_gpu.py",
)


class Count:
    """A plug-in of pytest: how the tests ended."""

    def __init__(self) -> None:
        self.ended: dict[str, list[str]] = {}
        self.chosen = 0

    def pytest_collection_finish(self, session: object) -> None:
        self.chosen = len(session.items)  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: object) -> None:
        if report.when == "call" or report.outcome != "passed":  # type: ignore[attr-defined]
            self.ended.setdefault(report.outcome, []).append(report.nodeid)  # type: ignore[attr-defined]


def main() -> None:
    args = flags(__doc__).parse_args()
    import pytest

    count = Count()
    files = ("--collect-only", "-m", "gpu", FILES[-1]) if args.smoke else FILES
    words = [*files, "-q", "-p", "no:cacheprovider", "--tb=short"]
    code = pytest.main(words, plugins=[count])
    failed = [re.sub(r"^tests/", "", name) for name in count.ended.get("failed", [])]
    say(what="tests", chosen=count.chosen, **{how: len(names) for how, names in count.ended.items()}, failures=failed)
    sys.exit(int(code))


if __name__ == "__main__":
    main()
