"""Reset: what all strategies share; LayerwiseReset: strategies that give each parameter one rule by what it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from ..network.memory import region
from ..network.slot import NetworkSlot
from ..options import LayerwiseOptions, ResetOptions, SourceOptions
from .plan import Plan, Write
from .rules import Keep, NamedParameter, Rule

if TYPE_CHECKING:
    from .tracked import Tracker


@dataclass(frozen=True)
class Reset:
    """A strategy: it plans changes of weights, and its options say how; optimizer and target are not its business.

    Subclasses name the class of their options, whose defaults are the strategy's.
    """

    name: ClassVar[str]
    structural: ClassVar[bool] = False

    options: ResetOptions = field(default_factory=ResetOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        """Return the changes for all networks; writes nothing."""
        raise NotImplementedError

    @property
    def conv_form(self) -> str:
        """The matrices that a convolution is seen as, in the plan and in the report."""
        return "slices"

    @property
    def num_minibatches(self) -> int:
        """How many minibatches the probe batch should hold."""
        return 1

    def tracker(self) -> Tracker | None:
        """A fresh object that watches every update of one run; None for strategies that act on a schedule."""
        return None

    def new_network(self, slot: NetworkSlot, generator: torch.Generator) -> nn.Module:
        """A network to take new weights from: drawn anew, or the run's first one if the options rewind."""
        rewind = isinstance(self.options, SourceOptions) and self.options.source == "rewind"
        return slot.initial() if rewind else slot.build(generator)


@dataclass(frozen=True)
class LayerwiseReset(Reset):
    """A reset that gives each parameter one rule, by what the parameter is."""

    options: LayerwiseOptions = field(default_factory=LayerwiseOptions)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        """The rule for one parameter."""
        raise NotImplementedError

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        groups: dict[Rule, list[NamedParameter]] = defaultdict(list)
        seen: set[Hashable] = set()
        plan = Plan()
        for network, slot in slots.items():
            found = []
            for each in named_parameters(network, slot, self.conv_form):
                key = region(each.parameter)
                if key not in seen and each.parameter.numel():
                    found.append(each)
                seen.add(key)
            rules = [self.rule_for(p) for p in found]
            if any(rule.needs_fresh for rule in rules):
                fresh = self.new_network(slot, generator)
                found = [_with_fresh(network, p, fresh) for p in found]
                plan.writes += self.buffer_writes(network, slot, fresh)
            for rule, parameter in zip(rules, found, strict=True):
                if not isinstance(rule, Keep):
                    groups[rule].append(parameter)
        if seen and not groups:
            raise ValueError(f"reset {self.name} finds no weight layer to change in {', '.join(slots)}")
        for rule, parameters in groups.items():
            plan.writes += rule(parameters, generator)
        self.complete(plan, slots, batch)
        return plan

    def complete(self, plan: Plan, slots: Mapping[str, NetworkSlot], batch: Any) -> None:
        """Add to ``plan`` what depends on its changes as a whole; nothing unless a subclass says otherwise."""

    def buffer_writes(self, network: str, slot: NetworkSlot, fresh: nn.Module) -> list[Write]:
        """Changes of buffers, such as running statistics; none unless a subclass says otherwise."""
        return []


def named_parameters(network: str, slot: NetworkSlot, conv_form: str) -> list[NamedParameter]:
    """All parameters of a network that a reset may touch, each with its weight layer."""
    layers = slot.layers(conv_form)
    weights = {layer.weight: layer for layer in layers}
    biases = {layer.bias: layer for layer in layers if layer.bias is not None}
    return [
        NamedParameter(
            f"{network}/{name}",
            parameter,
            weights.get(parameter) or biases.get(parameter),
            is_weight=parameter in weights,
        )
        for name, parameter in slot.named_parameters()
    ]


def _with_fresh(network: str, parameter: NamedParameter, fresh: nn.Module) -> NamedParameter:
    """The parameter with its counterpart in ``fresh``; ValueError where there is none."""
    try:
        counterpart = fresh.get_parameter(parameter.name.removeprefix(f"{network}/"))
    except AttributeError as error:
        raise ValueError(
            f"a fresh network has no {parameter.name}: it was added by a structural reset, which only resets that "
            "draw nothing can follow"
        ) from error
    return replace(parameter, fresh=counterpart)
