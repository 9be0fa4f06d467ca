"""RandomOrthogonalReset: the control that separates FIRE's isometry from its closeness to the old weights (SFE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..network.slot import NetworkSlot
from ..options import IsometryOptions
from .base import LayerwiseReset
from .isometry import complete_isometries
from .plan import Plan
from .rules import NamedParameter, RandomOrthogonal, Rule, rule_for_chosen


@dataclass(frozen=True)
class RandomOrthogonalReset(LayerwiseReset):
    """Replace every weight by a Haar-random isometry times the layer's scale, whatever it was; the rest is kept."""

    name: ClassVar[str] = "random_orthogonal"
    options: IsometryOptions = field(default_factory=IsometryOptions)

    @property
    def conv_form(self) -> str:
        return self.options.conv_form

    def complete(self, plan: Plan, slots: Mapping[str, NetworkSlot], batch: Any) -> None:
        complete_isometries(plan, slots, batch, self.options)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return rule_for_chosen(
            parameter, self.options, RandomOrthogonal(self.options.scale, self.options.parts)
        )
