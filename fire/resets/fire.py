"""FireReset and FireDqnReset: weights become the nearest scaled isometries (FIRE, arXiv 2602.08040)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..network.slot import NetworkSlot
from ..options import FireDqnOptions, FireOptions
from .base import LayerwiseReset
from .isometry import complete_isometries
from .plan import Plan
from .rules import NamedParameter, Orthogonalize, Redraw, Rule, rule_for_chosen


@dataclass(frozen=True)
class FireReset(LayerwiseReset):
    """FIRE (arXiv 2602.08040): every weight becomes the nearest isometry times its layer's scale.

    Biases, norms, embeddings and buffers are kept, as in the authors' released code, unless ``biases`` says otherwise.
    """

    name: ClassVar[str] = "fire"
    options: FireOptions = field(default_factory=FireOptions)

    @property
    def conv_form(self) -> str:
        return self.options.conv_form

    def complete(self, plan: Plan, slots: Mapping[str, NetworkSlot], batch: Any) -> None:
        complete_isometries(plan, slots, batch, self.options)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        o = self.options
        return rule_for_chosen(
            parameter, o, Orthogonalize(o.scale, o.strength, o.method, o.num_iters, o.null, o.parts)
        )


@dataclass(frozen=True)
class FireDqnReset(FireReset):
    """FIRE on convolutions, linear layers redrawn: the DQN variant of FIRE's released code.

    Biases of convolutions are kept. On a network without convolutions this is a full reset of its linear layers.
    """

    name: ClassVar[str] = "fire_dqn"
    options: FireDqnOptions = field(default_factory=FireDqnOptions)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return Redraw() if parameter.is_linear else super().rule_for(parameter)
