"""Clocks, turns and ratios that the benchmarks share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from training.profiling import on_device


def clock(device: str) -> float:
    """Seconds: wall time after all work is done on CUDA, processor time of all threads on CPU."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds_per_call(call: Callable[[], object], count: int, device: str) -> float:
    """Seconds of :func:`clock` for one of ``count`` calls."""
    start = clock(device)
    for _ in range(count):
        call()
    return (clock(device) - start) / count


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, count: int, device: str
) -> dict[str, list[float]]:
    """Seconds of one call of each contender in every round, the order turning from round to round."""
    names = list(contenders)
    for call in contenders.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(seconds_per_call(contenders[name], count, device))
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of how many times faster we are, over rounds."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


class KernelClock:
    """Share of the wall time between ``start`` and ``stop`` in which CUDA kernels ran, if they run on one stream."""

    def start(self) -> None:
        torch.cuda.synchronize()
        self._profile = profile(activities=[ProfilerActivity.CUDA])
        self._profile.start()
        self._begun = time.perf_counter()

    def stop(self) -> float:
        torch.cuda.synchronize()
        wall = time.perf_counter() - self._begun
        self._profile.stop()
        kernels = on_device(self._profile.key_averages())
        return sum(event.self_device_time_total for event in kernels) / 1e6 / wall


def busy_share(call: Callable[[], object], count: int) -> float:
    """:class:`KernelClock` over ``count`` calls."""
    call()
    seen = KernelClock()
    seen.start()
    for _ in range(count):
        call()
    return seen.stop()
