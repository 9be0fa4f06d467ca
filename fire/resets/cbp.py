"""ContinualBackprop: after every update the least useful mature units are drawn anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..options import ContinualBackpropOptions
from .tracked import TrackedReset, UnitTracker
from .units import UnitGroup, outgoing_sums


@dataclass(frozen=True)
class ContinualBackprop(TrackedReset):
    """Continual backprop (Dohare et al. 2024, Nature 632): after each update recycle the least useful mature units.

    Utility u <- eta u + (1 - eta) E|h| sum|w_out|, compared as u / (1 - eta^age) (eq. 8), so that young units
    are not judged by their start at zero. Each layer (of each network of an ensemble) recycles ``replacement_rate``
    of its mature units (age above ``maturity``) per update, fractions carried over. torch's Adam counts steps for each
    tensor, so a recycled unit's bias correction is that of its layer, where the paper restarts it. The authors'
    code also adds a removed unit's mean contribution to the next layer's bias; this does not.
    """

    name: ClassVar[str] = "cbp"
    options: ContinualBackpropOptions = field(default_factory=ContinualBackpropOptions)

    def tracker(self) -> UnitTracker:
        return UtilityTracker(self.options)


class UtilityTracker(UnitTracker):
    """Utility, age and carried-over fractions of continual backprop."""

    def __init__(self, options: ContinualBackpropOptions) -> None:
        super().__init__()
        self.options = options

    def select(self, key: str, group: UnitGroup) -> Tensor:
        size = group.activations.abs().mean(dim=1).double()  # (networks, units)
        state = self.state.setdefault(
            key,
            {
                "utility": torch.zeros_like(size),
                "age": torch.zeros_like(size),
                "owed": torch.zeros_like(size[:, :1]),
            },
        )
        decay = self.options.decay
        state["utility"].mul_(decay).add_(size * outgoing_size(group), alpha=1 - decay)
        state["age"] += 1

        mature = state["age"] > self.options.maturity
        state["owed"] += self.options.replacement_rate * mature.sum(dim=1, keepdim=True)
        due = state["owed"].floor().clamp(max=mature.sum(dim=1, keepdim=True))
        state["owed"] -= due
        corrected = state["utility"] / (1 - decay ** state["age"]) if decay < 1 else state["utility"]
        order = torch.where(mature, corrected, torch.inf).argsort(dim=1)
        chosen = torch.zeros_like(mature).scatter(
            1, order, torch.arange(size.shape[1], device=size.device) < due
        )
        for name in ("utility", "age"):
            state[name].masked_fill_(chosen, 0)
        return chosen


def outgoing_size(group: UnitGroup) -> Tensor:
    """sum |w_out| of every unit over all consumers, (networks, units), float64."""
    sizes = [
        outgoing_sums(layer, inputs, layer.weight.detach().abs().double())
        for layer, inputs in zip(group.consumers, group.inputs, strict=True)
    ]
    return sum(sizes, torch.zeros_like(sizes[0]))
