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
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            # Cached files count as used there, but give way when memory is asked for.
            stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
            used = int((_CGROUP / "memory.current").read_text()) - int(stat["inactive_file"])
            available = min(available, max(int(limit) - used, 0))
    except (OSError, KeyError, ValueError):
        pass  # no control group of version 2, hence no limit to know of
    return available


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
