"""Whether onnxruntime's fast products of 8 bits are exact on this CPU."""

from __future__ import annotations

import platform
import re
from pathlib import Path

X86 = ("x86_64", "AMD64", "i386", "i686")


def exact_int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether unsigned times signed 8-bit codes are summed without loss, as far as the system tells.

    x86 CPUs without VNNI instructions add two such products in 16 bits, which saturate; other CPUs have no such step. Where
    the instructions of an x86 CPU cannot be read (not Linux), the answer is False, which is always safe.
    """
    if platform.machine() not in X86:
        return True
    try:
        return bool(re.search(r"^flags\s*:.*\bavx(512)?_vnni\b", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE))
    except OSError:
        return False
