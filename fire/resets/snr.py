"""SelfNormalizedReset: after every update units that are silent unusually long are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..options import SelfNormalizedOptions
from .tracked import TrackedReset, UnitTracker
from .units import UnitGroup


@dataclass(frozen=True)
class SelfNormalizedReset(TrackedReset):
    """Self-normalised resets (Farias and Jozefiak 2024, arXiv 2410.20098): recycle units silent for unusually long.

    A unit fires in an update if it is positive for some sample. It is recycled when its present silence
    exceeds the ``percentile`` of its own past times between firings, or ``max_silence``. Times are kept in
    bins that grow by 2^(1/4), so a threshold is exact to 19 %; a unit needs ``min_firings`` of them before
    its percentile counts.

    This is the rule itself, judged after every update. The authors' released code (src/algorithms/snr.py of
    ajozefiak/SelfNormalizedResets) approximates it: it sets a threshold per unit every few tasks, to the
    percentile or, where that lies above the old threshold, to a multiple of the old one, between one update and
    ``max_silence``; it leaves out intervals of a single update, and a recycled unit keeps its past.
    """

    name: ClassVar[str] = "snr"
    options: SelfNormalizedOptions = field(default_factory=SelfNormalizedOptions)

    def tracker(self) -> UnitTracker:
        return SilenceTracker(self.options)


class SilenceTracker(UnitTracker):
    """Present silence and histogram of past intervals of every unit."""

    BINS_PER_OCTAVE = 4

    def __init__(self, options: SelfNormalizedOptions) -> None:
        super().__init__()
        self.options = options

    def bin_of(self, intervals: Tensor) -> Tensor:
        """Index of the bin of each interval (at least 1)."""
        return (intervals.clamp(min=1).log2() * self.BINS_PER_OCTAVE).round().long()

    def select(self, key: str, group: UnitGroup) -> Tensor:
        fired = (group.activations > 0).any(dim=1)  # (networks, units)
        longest = torch.tensor(float(self.options.max_silence), dtype=torch.float64)
        num_bins = int(self.bin_of(longest)) + 1
        state = self.state.setdefault(
            key,
            {
                "silence": torch.zeros(fired.shape, dtype=torch.float64, device=fired.device),
                "histogram": torch.zeros((*fired.shape, num_bins), dtype=torch.float64, device=fired.device),
            },
        )
        silence, histogram = state["silence"], state["histogram"]
        silence += 1
        interval = self.bin_of(silence).clamp(max=num_bins - 1).unsqueeze(-1)
        histogram.scatter_add_(-1, interval, fired.double().unsqueeze(-1))
        silence.masked_fill_(fired, 0)

        count = histogram.sum(-1)
        below = (histogram.cumsum(-1) < self.options.percentile * count.unsqueeze(-1)).sum(-1)
        threshold = torch.exp2(
            (below.float() + 0.5) / self.BINS_PER_OCTAVE
        )  # upper edge of the percentile's bin
        judged = count >= self.options.min_firings
        chosen = (judged & (silence > threshold)) | (silence > self.options.max_silence)
        silence.masked_fill_(chosen, 0)
        histogram.masked_fill_(chosen.unsqueeze(-1), 0)
        return chosen
