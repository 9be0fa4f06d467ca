"""CalibratedPartialReset: every so many updates weights of units that learn little move partly to fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..network.flow import UnitFlow, UnitFlows, unit_flows
from ..network.layers import WeightLayer
from ..network.probe import leave_no_trace
from ..network.slot import NetworkSlot
from ..options import CalibratedPartialOptions
from .plan import Plan, Write
from .tracked import TrackedReset, Tracker
from .units import spread_incoming, spread_outgoing


@dataclass(frozen=True)
class CalibratedPartialReset(TrackedReset):
    """Calibrated partial resets (CPR, arXiv 2607.24996).

    The utility of a hidden unit is a running mean, u <- d u + (1 - d) s, of its score s: the mean size of the gradient
    of its incoming weights over the mean score of its layer. Every ``period`` updates a share
    p = rate * min(1, 2 sigmoid(-k (u - threshold))) of each unit's incoming weights is replaced by fresh ones,
    W <- (1 - p) W + p W_fresh, its outgoing weights are multiplied by 1 - p, and all utilities return to 1. Biases and
    the optimizer's state stay.

    The paper could not be had; this follows the authors' released code (LucMc/continual-learning at 6fc2af3,
    optim/cpr.py) with its defaults. Where it differs: fresh weights come from the network's own initialiser (there He
    uniform), and the gradient is that of the training loss right after the update on the update's minibatch, which
    costs a second pass. Units of which it cannot be proved what they feed are left alone.
    """

    name: ClassVar[str] = "calibrated_partial"
    options: CalibratedPartialOptions = field(default_factory=CalibratedPartialOptions)

    def tracker(self) -> Tracker:
        return GradientUtility(self.options)


class GradientUtility(Tracker):
    """Utilities by ``network/activation`` and updates by network, and the partial resets that follow from them."""

    def __init__(self, options: CalibratedPartialOptions) -> None:
        super().__init__()
        self.options = options
        self._flows: dict[str, UnitFlows] = {}

    @property
    def left_alone(self) -> tuple[tuple[str, str], ...]:
        return tuple(
            (f"{network}/{name}", reason)
            for network, flows in self._flows.items()
            for name, reason in flows.left_alone
        )

    def act(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> dict[str, int]:
        for network, slot in slots.items():
            if network not in self._flows or not self._flows[network].still_hold(slot):
                self._flows[network] = unit_flows(slot, batch)
            flows = self._flows[network].flows
            if not flows:
                continue
            self._follow(network, slot, flows, batch)
            count = self.state.setdefault(network, {"updates": torch.zeros((), dtype=torch.int64)})["updates"]
            count += 1
            if int(count) % self.options.period == 0:
                plan = Plan(self._partial_resets(network, slot, flows, generator))
                plan.check()
                plan.write()
                for flow in flows:
                    self.state[f"{network}/{flow.name}"]["utility"].fill_(1.0)
        return {}

    def _follow(self, network: str, slot: NetworkSlot, flows: list[UnitFlow], batch: Any) -> None:
        weights = [flow.producer.weight for flow in flows]
        with leave_no_trace(slot), torch.enable_grad():
            gradients = torch.autograd.grad(slot.loss(batch), weights, allow_unused=True)
        for flow, gradient in zip(flows, gradients, strict=True):
            if gradient is None:
                continue
            size = mean_size(flow.producer, gradient)
            score = size / (size.mean(1, keepdim=True) + 1e-8)
            group = self.state.setdefault(f"{network}/{flow.name}", {"utility": torch.ones_like(score)})
            group["utility"].mul_(self.options.decay).add_(score, alpha=1 - self.options.decay)

    def _partial_resets(
        self, network: str, slot: NetworkSlot, flows: list[UnitFlow], generator: torch.Generator
    ) -> list[Write]:
        names = {parameter: name for name, parameter in slot.module.named_parameters()}
        fresh = slot.build(generator)
        values: dict[Tensor, Tensor] = {}
        for flow in flows:
            share = replaced_share(self.state[f"{network}/{flow.name}"]["utility"], self.options)
            weight = flow.producer.weight
            new = fresh.get_parameter(names[weight]).detach().to(weight)
            old = values.get(weight, weight.detach())
            values[weight] = torch.lerp(old, new, spread_incoming(flow.producer, share).to(weight.dtype))
            for consumer, inputs in zip(flow.consumers, flow.inputs, strict=True):
                old = values.get(consumer.weight, consumer.weight.detach())
                kept = 1 - spread_outgoing(consumer, inputs, share)
                values[consumer.weight] = old * kept.to(old.dtype)
        return [
            Write(f"{network}/{name}", parameter, values[parameter])
            for parameter, name in names.items()
            if parameter in values
        ]


def mean_size(layer: WeightLayer, gradient: Tensor) -> Tensor:
    """Mean absolute value over everything that leads into a unit, (networks, units) float64."""
    by_unit = gradient.detach().abs().double().movedim(layer.out_axis, -1)
    if layer.kind == "linear" and gradient.ndim > 2:
        return by_unit.mean(-2)
    return by_unit.flatten(0, -2).mean(0, keepdim=True)


def replaced_share(utility: Tensor, options: CalibratedPartialOptions) -> Tensor:
    """rate * min(1, 2 sigmoid(-k (u - threshold))): all of the rate up to the threshold, less and less beyond."""
    falling = 2 * torch.sigmoid(-options.sharpness * (utility - options.threshold))
    return options.replacement_rate * falling.clamp(max=1)
