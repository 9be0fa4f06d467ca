"""ShrinkPerturbReset and SrDqnReset: old weights mixed with fresh ones, everywhere or below the linear layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..options import ShrinkPerturbOptions
from .base import LayerwiseReset
from .rules import NamedParameter, Redraw, Rule, ShrinkPerturb


@dataclass(frozen=True)
class ShrinkPerturbReset(LayerwiseReset):
    """Shrink and perturb (Ash and Adams 2020, arXiv 1910.08475) on every parameter: c * old + (1 - c) * fresh."""

    name: ClassVar[str] = "shrink_perturb"
    options: ShrinkPerturbOptions = field(default_factory=ShrinkPerturbOptions)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return ShrinkPerturb(self.options.shrink_factor)


@dataclass(frozen=True)
class SrDqnReset(ShrinkPerturbReset):
    """Shrink and perturb the encoder, redraw the linear layers: SR-SPR's scheme (D'Oro et al. 2023) for a DQN.

    FIRE's DQN comparison calls it SR-DQN. Linear weights and biases are redrawn, everything else is mixed.
    """

    name: ClassVar[str] = "sr_dqn"

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return Redraw() if parameter.is_linear else super().rule_for(parameter)
