"""Resets that treat every parameter by a rule: none, full, shrink and perturb, FIRE, and their variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ..network.slot import NetworkSlot
from ..options import (
    FireDqnOptions,
    FireOptions,
    FullOptions,
    IsometryOptions,
    NoResetOptions,
    OptimizerResetOptions,
    RandomOrthogonalOptions,
    ShrinkPerturbOptions,
)
from .base import LayerwiseReset, Plan, Reset, Write
from .rules import Entry, Keep, Orthogonalize, RandomOrthogonal, Redraw, Rule, ShrinkPerturb, Zero


@dataclass(frozen=True)
class NoReset(NoResetOptions, Reset):
    """Change nothing: the baseline."""

    name: ClassVar[str] = "none"

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()


@dataclass(frozen=True)
class FullReset(FullOptions, LayerwiseReset):
    """Replace every parameter and buffer by those of a fresh network (Nikishin et al. 2022, arXiv 2205.07802)."""

    name: ClassVar[str] = "full"

    def rule_for(self, entry: Entry) -> Rule:
        return Redraw()

    def buffer_writes(self, network: str, slot: NetworkSlot, fresh: nn.Module) -> list[Write]:
        values = dict(fresh.named_buffers())
        return [(f"{network}/{name}", buffer, values[name]) for name, buffer in slot.named_buffers()]


@dataclass(frozen=True)
class ShrinkPerturbReset(ShrinkPerturbOptions, LayerwiseReset):
    """Shrink and perturb (Ash and Adams 2020, arXiv 1910.08475) on every parameter: c * old + (1 - c) * fresh."""

    name: ClassVar[str] = "shrink_perturb"

    def rule_for(self, entry: Entry) -> Rule:
        return ShrinkPerturb(self.shrink_factor)


@dataclass(frozen=True)
class IsometryReset(IsometryOptions, LayerwiseReset):
    """Gives the weights of the chosen layers one rule; norms, embeddings and buffers are kept."""

    def rule_for(self, entry: Entry) -> Rule:
        if entry.layer is None or entry.layer.role not in self.roles:
            return Keep()
        if entry.is_weight:
            return self.weight_rule()
        return Zero() if self.biases == "zero" else Keep()

    def weight_rule(self) -> Rule:
        """The rule for weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class FireReset(FireOptions, IsometryReset):
    """FIRE (arXiv 2602.08040): every weight becomes the nearest isometry times its layer's scale.

    Biases, norms, embeddings and buffers are kept, as in the authors' released code, unless ``biases`` says otherwise.
    """

    name: ClassVar[str] = "fire"

    def weight_rule(self) -> Orthogonalize:
        return Orthogonalize(self.scale, self.strength, self.method, self.num_iters, self.null)


@dataclass(frozen=True)
class OptimizerReset(OptimizerResetOptions, Reset):
    """Zero the optimizer state and change no weight: the control for every reset that also renews the optimizer."""

    name: ClassVar[str] = "optimizer_only"

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()


@dataclass(frozen=True)
class SrDqnReset(ShrinkPerturbReset):
    """Shrink and perturb the encoder, redraw the linear layers: SR-SPR's scheme (D'Oro et al. 2023) for a
    DQN.

    FIRE's DQN comparison calls it SR-DQN. Linear weights and biases are redrawn, everything else is mixed.
    """

    name: ClassVar[str] = "sr_dqn"

    def rule_for(self, entry: Entry) -> Rule:
        linear = entry.layer is not None and entry.layer.kind == "linear"
        return Redraw() if linear else ShrinkPerturb(self.shrink_factor)


@dataclass(frozen=True)
class FireDqnReset(FireDqnOptions, FireReset):
    """FIRE on convolutions, linear layers redrawn: the DQN variant of FIRE's released code.

    Biases of convolutions are kept. On a network without convolutions this is a full reset of its linear
    layers.
    """

    name: ClassVar[str] = "fire_dqn"

    def rule_for(self, entry: Entry) -> Rule:
        if entry.layer is not None and entry.layer.kind == "linear":
            return Redraw()
        return super().rule_for(entry)


@dataclass(frozen=True)
class RandomOrthogonalReset(RandomOrthogonalOptions, IsometryReset):
    """Replace every weight by a Haar-random isometry times the layer's scale, whatever it was; the rest is
    kept.

    The control that separates FIRE's isometry from its closeness to the old weights (SFE).
    """

    name: ClassVar[str] = "random_orthogonal"

    def weight_rule(self) -> RandomOrthogonal:
        return RandomOrthogonal(self.scale)
