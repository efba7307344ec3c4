"""Which CPUs sum 8-bit products exactly, by what Linux says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mexma_rt.backends.vnni import exact_int8_products


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "fpu avx2 avx512f avx512_vnni", True),
        ("x86_64", "fpu avx2 avx_vnni", True),
        ("x86_64", "fpu avx2 avx512f avx512bw", False),
        ("x86_64", None, False),  # no /proc: nothing is known
        ("aarch64", None, True),
    ],
)
def test_by_machine_and_flags(
    machine: str, flags: str | None, exact: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    cpuinfo = tmp_path / "cpuinfo"
    if flags:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: avx512_vnni\n")
    assert exact_int8_products(cpuinfo) is exact
