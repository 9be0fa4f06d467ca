"""ReDo: dormant units drawn anew, when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..metrics.cheap import dormant_units
from ..network.flow import unit_flows
from ..network.slot import NetworkSlot
from ..options import ReDoOptions
from .base import Plan, Reset
from .units import recycle, unit_groups


@dataclass(frozen=True)
class ReDo(Reset):
    """ReDo (Sokar et al. 2023, arXiv 2302.12902): recycle units whose normalised activation is at most the threshold.

    Incoming weights are drawn anew, bias and outgoing weights zeroed; output layers have no units of their own.
    Units of which it cannot be proved what they feed are left alone, and the report lists them.
    """

    name: ClassVar[str] = "redo"
    options: ReDoOptions = field(default_factory=ReDoOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        plan = Plan()
        for network, slot in slots.items():
            flows = unit_flows(slot, batch)
            plan.left_alone += [(f"{network}/{name}", reason) for name, reason in flows.left_alone]
            marked = [
                (group, dormant_units(group.activations, self.options.dormancy_threshold))
                for group in unit_groups(slot, batch, flows)
            ]
            plan.writes += recycle(network, slot, marked, slot.build(generator))
        return plan
