"""NoReset and OptimizerReset: the baseline, and the control for resets that also renew the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..network.slot import NetworkSlot
from ..options import NoResetOptions, OptimizerResetOptions
from .base import Plan, Reset


@dataclass(frozen=True)
class NoReset(Reset):
    """Change nothing: the baseline."""

    name: ClassVar[str] = "none"
    options: NoResetOptions = field(default_factory=NoResetOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()


@dataclass(frozen=True)
class OptimizerReset(Reset):
    """Zero the optimizer state and change no weight: the control for every reset that also renews the optimizer."""

    name: ClassVar[str] = "optimizer_only"
    options: OptimizerResetOptions = field(default_factory=OptimizerResetOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()
