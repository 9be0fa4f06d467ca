"""Resets of single units: ReDo, continual backprop, self-normalised resets.

ReDo looks at the network when asked. The other two watch it after every update: ``reset.tracker()`` returns
an object whose ``after_update`` is called then and whose state belongs into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..metrics.cheap import dormant_units
from ..network.slot import NetworkSlot
from ..options import ContinualBackpropOptions, ReDoOptions, SelfNormalizedOptions, TrackedOptions
from .base import Plan, Reset
from .units import UnitGroup, outgoing_sums, recycle, unit_groups


@dataclass(frozen=True)
class ReDo(ReDoOptions, Reset):
    """ReDo (Sokar et al. 2023, arXiv 2302.12902): recycle units whose normalised activation is at most the
    threshold.

    Incoming weights are drawn anew, bias and outgoing weights zeroed; output layers have no units of their
    own.
    """

    name: ClassVar[str] = "redo"

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        plan = Plan()
        for network, slot in slots.items():
            marked = [
                (group, dormant_units(group.activations, self.dormancy_threshold))
                for group in unit_groups(slot, batch)
            ]
            plan.writes += recycle(network, slot, marked, slot.build(generator))
        return plan


@dataclass(frozen=True)
class TrackedReset(TrackedOptions, Reset):
    """Base of resets that act after every update through their tracker; applied on a schedule they do
    nothing.
    """

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()

    def tracker(self) -> UnitTracker:
        """A fresh tracker for one run."""
        raise NotImplementedError


class UnitTracker:
    """Per-unit statistics of all networks, and the units to recycle after each update.

    Fresh incoming weights come from one fresh network, which is drawn anew when a unit needs its part of it
    a second time: drawing a whole network for every recycled unit would cost more than the update.
    """

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Tensor]] = {}
        self._fresh: dict[str, nn.Module] = {}

    @torch.no_grad()
    def after_update(
        self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator
    ) -> dict[str, int]:
        """Update the statistics on ``batch``, recycle units and return how many in each network.

        Draws from ``generator`` (a CPU generator) only; runs ``slot.forward`` once for each network.
        """
        counts = {}
        devices = {p.device for slot in slots.values() for p in slot.module.parameters()}
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            for network, slot in slots.items():
                marked = []
                for group in unit_groups(slot, batch):
                    marked.append((group, self.select(f"{network}/{group.name}", group)))
                counts[network] = sum(int(units.sum()) for _, units in marked)
                if counts[network]:
                    plan = Plan(
                        recycle(network, slot, marked, self._fresh_for(network, slot, marked, generator))
                    )
                    plan.check()
                    plan.write()
        return counts

    def _fresh_for(
        self,
        network: str,
        slot: NetworkSlot,
        marked: Sequence[tuple[UnitGroup, Tensor]],
        generator: torch.Generator,
    ) -> nn.Module:
        """A fresh network whose weights into the marked units have not been used yet."""
        pool = self.state.setdefault(f"{network}/fresh network", {})
        spent = any(bool((pool[group.name] & units).any()) for group, units in marked if group.name in pool)
        if not pool or spent:
            pool.clear()
            pool["seed"] = torch.randint(2**62, (), generator=generator)
            self._fresh.pop(network, None)
        if network not in self._fresh:
            self._fresh[network] = slot.build(torch.Generator().manual_seed(int(pool["seed"])))
        for group, units in marked:
            pool[group.name] = pool.get(group.name, torch.zeros_like(units)) | units
        return self._fresh[network]

    def select(self, key: str, group: UnitGroup) -> Tensor:
        """Update the statistics of one group and mark the units (members, units) to recycle."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Statistics by ``network/activation``, and which fresh weights are spent, for the checkpoint."""
        return {
            key: {name: value.clone() for name, value in group.items()} for key, group in self.state.items()
        }

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device | str | None = None
    ) -> None:
        """Continue from :meth:`state_dict`; ``device`` is that of the networks, None: where the state lies."""
        self._fresh = {}
        self.state = {
            key: {name: value.to(device=device, copy=True) for name, value in group.items()}
            for key, group in state.items()
        }


@dataclass(frozen=True)
class ContinualBackprop(ContinualBackpropOptions, TrackedReset):
    """Continual backprop (Dohare et al. 2024, Nature 632): after each update recycle the least useful
    mature units.

    Utility u <- eta u + (1 - eta) E|h| sum|w_out|, compared as u / (1 - eta^age) (eq. 8), so that young units
    are not judged by their start at zero. Each layer and member recycles ``replacement_rate`` of its mature
    units (age above ``maturity``) per update, fractions carried over. torch's Adam counts steps for each
    tensor, so a recycled unit's bias correction is that of its layer, where the paper restarts it. The authors'
    code also adds a removed unit's mean contribution to the next layer's bias; this does not.
    """

    name: ClassVar[str] = "cbp"

    def tracker(self) -> UnitTracker:
        return UtilityTracker(self)


class UtilityTracker(UnitTracker):
    """Utility, age and carried-over fractions of continual backprop."""

    def __init__(self, options: ContinualBackprop) -> None:
        super().__init__()
        self.options = options

    def select(self, key: str, group: UnitGroup) -> Tensor:
        size = group.activations.abs().mean(dim=1).double()  # (members, units)
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
    """sum |w_out| of every unit over all consumers, (members, units), float64."""
    units = group.activations.shape[-1]
    return sum(outgoing_sums(layer, layer.weight.detach().abs().double(), units) for layer in group.consumers)


@dataclass(frozen=True)
class SelfNormalizedReset(SelfNormalizedOptions, TrackedReset):
    """Self-normalised resets (Farias and Jozefiak 2024, arXiv 2410.20098): recycle units silent for
    unusually long.

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

    def tracker(self) -> UnitTracker:
        return SilenceTracker(self)


class SilenceTracker(UnitTracker):
    """Present silence and histogram of past intervals of every unit."""

    BINS_PER_OCTAVE = 4

    def __init__(self, options: SelfNormalizedReset) -> None:
        super().__init__()
        self.options = options

    def bin_of(self, intervals: Tensor) -> Tensor:
        """Index of the bin of each interval (at least 1)."""
        return (intervals.clamp(min=1).log2() * self.BINS_PER_OCTAVE).round().long()

    def select(self, key: str, group: UnitGroup) -> Tensor:
        fired = (group.activations > 0).any(dim=1)  # (members, units)
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
        threshold = torch.exp2((below + 0.5) / self.BINS_PER_OCTAVE)  # upper edge of the percentile's bin
        judged = count >= self.options.min_firings
        chosen = (judged & (silence > threshold)) | (silence > self.options.max_silence)
        silence.masked_fill_(chosen, 0)
        histogram.masked_fill_(chosen.unsqueeze(-1), 0)
        return chosen
