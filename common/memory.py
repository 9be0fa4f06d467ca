"""How much memory there is, and how the C library handles what is freed."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
# mallopt's parameters in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 1 << 28


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on ``device`` without swapping; None where the system does not say.

    On the CPU the smaller of what Linux calls available and what the control group's limit leaves.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    for left in (_left_in_cgroup_2(), _left_in_cgroup_1()):
        available = available if left is None else min(available, left)
    return available


def _left_in_cgroup_2() -> int | None:
    """Bytes below the limit of a version 2 control group; None without one."""
    return _left(_CGROUP, "memory.max", "memory.current", "inactive_file")


def _left_in_cgroup_1() -> int | None:
    """The same for version 1."""
    return _left(_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _left(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        # Cached files count as used, but give way when memory is asked for.
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if most == "max" else max(int(most) - int(used) + int(stat[cached]), 0)
    except (OSError, KeyError, ValueError):
        return None


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 256 MB for the next allocation; returns whether it does.

    By default it hands larger blocks back to the system, which clears them page by page when the next update takes
    them again: over a thousand page faults and about a tenth of the time of a DQN update (results/atari_speed.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _KEPT), mallopt(_M_TRIM_THRESHOLD, _KEPT)])
