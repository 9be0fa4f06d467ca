"""Spectra before and after a reset, from the TensorBoard histograms of ``log.histograms``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reports.collect import Run
from reports.panels import Panel

POINTS = 100


def spectra_of(panel: Panel) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Return singular values around each method's first reset, of its run with the smallest seed.

    Returns:
        by layer (``<network>/<layer>``), by method, then ``before`` and ``after``: quantiles of the singular values,
        (``POINTS``,), falling. Empty where no run has histograms on both sides of a reset.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for method, runs in panel.methods.items():
        run = next((run for run in runs if run.resets), None)
        if run is None:
            continue
        for layer, values in _around_first_reset(run).items():
            found.setdefault(layer, {})[method] = values
    return found


def _around_first_reset(run: Run) -> dict[str, dict[str, np.ndarray]]:
    if (
        str(run.config.get("log.histograms", "false")).lower() == "false"
    ):  # as in runs before it had a third value
        return {}
    step = run.resets[0]["env_step"]
    spectra = {}
    for tag, events in _histograms(run.folder).items():
        if not tag.startswith("spectrum/"):
            continue
        # A reset is looked at twice at one step, before and after.
        there = [event.histogram_value for event in events if event.step == step]
        if len(there) >= 2:
            spectra[tag.removeprefix("spectrum/")] = {
                "before": _quantiles(there[-2]),
                "after": _quantiles(there[-1]),
            }
    return spectra


def _histograms(folder: Path) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={HISTOGRAMS: 0})
    accumulator.Reload()
    return {tag: accumulator.Histograms(tag) for tag in accumulator.Tags()["histograms"]}


def _quantiles(histogram: Any) -> np.ndarray:
    """Falling quantiles of a histogram: exact at both ends, within a bucket (a tenth of the value) between."""
    counts = np.asarray(histogram.bucket, dtype=np.float64)
    edges = np.concatenate([[histogram.min], np.asarray(histogram.bucket_limit, dtype=np.float64)])
    edges = np.clip(edges, histogram.min, histogram.max)
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return np.interp(np.linspace(1.0, 0.0, POINTS), cumulative, edges)
