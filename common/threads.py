"""How PyTorch's CPU threads wait for work."""

from __future__ import annotations

import os


def let_idle_threads_sleep() -> None:
    """Let OpenMP threads sleep soon while they wait for each other.

    By default they spin for milliseconds. Where environments or another process want the core that one of them spins
    on, the others wait for it, and a run takes many times as long (results/throughput.md). OpenMP reads the settings
    once, when PyTorch is loaded: call this before. The user's own ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` stays.
    """
    if os.environ.keys().isdisjoint({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        # GNU's library, which PyTorch's packages bring, spins that often first: it bridges the gap between operations.
        os.environ["GOMP_SPINCOUNT"] = "1000"
