"""Number of threads worth starting on this machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def usable_cores() -> int:
    """Physical cores this process may run on: affinity, hyper-threads counted once, and a container's CPU quota."""
    try:
        cpus = os.sched_getaffinity(0)
    except AttributeError:  # no affinity on macOS and Windows
        return os.cpu_count() or 1
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    with contextlib.suppress(OSError):
        cores = len({path.read_text() for path in siblings})
        return max(1, min(cores, _quota(Path("/sys/fs/cgroup/cpu.max")) or cores))
    return len(cpus)


def _quota(cpu_max: Path) -> int | None:
    """Cores granted by cgroup v2 ("200000 100000" is two cores); None where there is no limit ("max 100000")."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = cpu_max.read_text().split()
        return -(-int(quota) // int(period))
    return None
