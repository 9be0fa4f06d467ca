"""What all resets share: the plan of changes, the options every strategy has, rules by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..network.slot import NetworkSlot
from ..options import ResetOptions
from .rules import Entry, Keep, Rule

Write = tuple[str, Tensor, Tensor]


@dataclass
class Plan:
    """Changes that a reset wants, carried out together.

    Attributes:
        writes: (name, destination, new value) with equal shapes.
        actions: changes of structure, run after the writes; they must not fail.
    """

    writes: list[Write] = field(default_factory=list)
    actions: list[Callable[[], None]] = field(default_factory=list)

    def value_of(self, tensor: Tensor) -> Tensor:
        """The value ``tensor`` will have."""
        return next(
            (value for _, destination, value in self.writes if destination is tensor), tensor.detach()
        )

    def check(self) -> None:
        """Raise ValueError where a new value has another shape or is not finite."""
        for name, destination, value in self.writes:
            if destination.shape != value.shape:
                raise ValueError(
                    f"{name} has shape {tuple(destination.shape)} but its new value {tuple(value.shape)}; "
                    "build() and initial() must return the same architecture"
                )
        by_device: dict[torch.device, list[tuple[str, Tensor]]] = defaultdict(list)
        for name, _, value in self.writes:
            if value.is_floating_point():
                by_device[value.device].append((name, value))
        for values in by_device.values():
            # Asked once for all of them: every answer is a wait for the device.
            finite = torch.stack([value.isfinite().all() for _, value in values]).tolist()
            bad = next((name for (name, _), good in zip(values, finite, strict=True) if not good), None)
            if bad is not None:
                raise ValueError(f"the new value of {bad} holds NaN or infinity; nothing was changed")

    def write(self) -> None:
        """Copy every value into its destination's storage, then change structures."""
        if self.writes:
            torch._foreach_copy_([d.detach() for _, d, _ in self.writes], [v for *_, v in self.writes])
        for action in self.actions:
            action()


@dataclass(frozen=True)
class Reset(ResetOptions):
    """Base of all strategies. Subclasses plan changes; optimizer and target are treated as these fields
    say.
    """

    name: ClassVar[str]
    structural: ClassVar[bool] = False
    # The matrices that a convolution is seen as, in the plan and in the report.
    conv_form: ClassVar[str] = "slices"

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        """Return the changes for all networks; writes nothing."""
        raise NotImplementedError

    @property
    def num_probes(self) -> int:
        """How many minibatches the probe batch should hold."""
        return 1

    def tracker(self) -> Any:
        """What must watch every update for this strategy: a :class:`~fire.resets.recycling.UnitTracker`, or None."""
        return None


@dataclass(frozen=True)
class LayerwiseReset(Reset):
    """A reset that gives each parameter one rule, by what the parameter is.

    Subclasses inherit ``fire.options.LayerwiseOptions`` and, with rules that need new weights, ``SourceOptions``.
    """

    def rule_for(self, entry: Entry) -> Rule:
        """The rule for one parameter."""
        raise NotImplementedError

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        groups: dict[Rule, list[Entry]] = defaultdict(list)
        seen: set[int] = set()
        plan = Plan()
        for network, slot in slots.items():
            entries = entries_of(network, slot, self.conv_form)
            entries = [entry for entry in entries if id(entry.parameter) not in seen]
            seen.update(id(entry.parameter) for entry in entries)
            rules = [self.rule_for(entry) for entry in entries]
            if any(rule.needs_fresh for rule in rules):
                fresh = slot.build(generator) if self.source == "redraw" else slot.initial()
                entries = [_with_fresh(network, entry, fresh) for entry in entries]
                plan.writes += self.buffer_writes(network, slot, fresh)
            for rule, entry in zip(rules, entries, strict=True):
                if not isinstance(rule, Keep):
                    groups[rule].append(entry)
        for rule, entries in groups.items():
            values = rule(entries, generator)
            plan.writes += [(e.name, e.parameter, value) for e, value in zip(entries, values, strict=True)]
        return plan

    def buffer_writes(self, network: str, slot: NetworkSlot, fresh: nn.Module) -> list[Write]:
        """Changes of buffers, such as running statistics; none unless a subclass says otherwise."""
        return []


def entries_of(network: str, slot: NetworkSlot, conv_form: str) -> list[Entry]:
    """All parameters of a network that a reset may touch, each with its weight layer."""
    layers = slot.layers(conv_form)
    weights = {id(layer.weight): layer for layer in layers}
    biases = {id(layer.bias): layer for layer in layers if layer.bias is not None}
    entries = []
    for name, parameter in slot.named_parameters():
        layer = weights.get(id(parameter)) or biases.get(id(parameter))
        entries.append(Entry(f"{network}/{name}", parameter, layer, id(parameter) in weights))
    return entries


def _with_fresh(network: str, entry: Entry, fresh: nn.Module) -> Entry:
    """The entry with its counterpart in ``fresh``; ValueError where there is none."""
    try:
        counterpart = fresh.get_parameter(entry.name.removeprefix(f"{network}/"))
    except AttributeError as error:
        raise ValueError(
            f"a fresh network has no {entry.name}: it was added by a structural reset, which only resets that "
            "draw nothing can follow"
        ) from error
    return replace(entry, fresh=counterpart)
