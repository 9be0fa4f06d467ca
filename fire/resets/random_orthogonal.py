"""RandomOrthogonalReset: the control that separates FIRE's isometry from its closeness to the old weights (SFE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..network.slot import NetworkSlot
from ..options import IsometryOptions
from .base import LayerwiseReset
from .isometry import rescale_biases
from .plan import Plan, Write
from .rules import NamedParameter, RandomOrthogonal, Rule, rule_for_chosen


@dataclass(frozen=True)
class RandomOrthogonalReset(LayerwiseReset):
    """Replace every weight by a Haar-random isometry times the layer's scale, whatever it was; the rest is kept."""

    name: ClassVar[str] = "random_orthogonal"
    options: IsometryOptions = field(default_factory=IsometryOptions)

    @property
    def conv_form(self) -> str:
        return self.options.conv_form

    def writes_after(self, slots: Mapping[str, NetworkSlot], batch: Any, plan: Plan) -> list[Write]:
        return rescale_biases(slots, self.options, plan)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return rule_for_chosen(parameter, self.options, RandomOrthogonal(self.options.scale))
