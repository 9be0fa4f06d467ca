"""Reset strategies: frozen dataclasses that are strategy and configuration in one; REGISTRY names them all.

A reset plans every change of every network first and writes only when the whole plan exists, so it happens
entirely or not at all. Parameters keep their storage: optimizers, targets, compiled functions and CUDA
graphs see the reset.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.fields import option
from fire.isometry import SCALES, layer_scale
from fire.orthogonalize import METHODS, NULL_POLICIES
from fire.report import ResetReport, describe
from fire.rules import Entry, Keep, Orthogonalize, Redraw, Rule, ShrinkPerturb
from fire.slot import NetworkSlot


@dataclass
class Plan:
    """Changes that a reset wants: (name, destination, new value) with equal shapes; written all together."""

    writes: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

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
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"the new value of {name} holds NaN or infinity; nothing was changed")

    def write(self) -> None:
        """Copy every value into its destination's storage."""
        for _, destination, value in self.writes:
            destination.copy_(value)


@dataclass(frozen=True)
class Reset:
    """Base of all strategies. Subclasses plan changes; optimizer and target are treated as these fields
    say.
    """

    name: ClassVar[str]
    structural: ClassVar[bool] = False

    optimizer: str = option(
        "zero",
        "optimizer state of the reset network: zero it (moments and step count) or keep it",
        choices=("zero", "keep"),
    )
    target: str = option(
        "sync",
        "target network: copy the reset network into it, or keep it as it is",
        choices=("sync", "keep"),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            choices, value = each.metadata.get("choices"), getattr(self, each.name)
            if choices is not None and value not in choices:
                raise ValueError(f"{each.name} {value!r} is not one of {', '.join(map(str, choices))}")

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        """Return the changes for all networks; writes nothing."""
        raise NotImplementedError


@dataclass(frozen=True)
class LayerwiseReset(Reset):
    """A reset that gives each parameter one rule, by what the parameter is.

    Attributes:
        source: whether rules that need new weights get freshly drawn ones or the run's first weights.
    """

    source: str = option(
        "redraw",
        "where new weights come from: drawn anew, or the run's first weights",
        choices=("redraw", "rewind"),
    )

    def rule_for(self, entry: Entry) -> Rule:
        """The rule for one parameter."""
        raise NotImplementedError

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        groups: dict[Rule, list[Entry]] = defaultdict(list)
        seen: set[int] = set()
        plan = Plan()
        for network, slot in slots.items():
            entries = [entry for entry in entries_of(network, slot) if id(entry.parameter) not in seen]
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

    def buffer_writes(
        self, network: str, slot: NetworkSlot, fresh: nn.Module
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Changes of buffers, such as running statistics; none unless a subclass says otherwise."""
        return []


@dataclass(frozen=True)
class NoReset(Reset):
    """Change nothing: the baseline."""

    name: ClassVar[str] = "none"

    optimizer: str = option("keep", "optimizer state: keep it", choices=("keep",))
    target: str = option("keep", "target network: keep it", choices=("keep",))

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()


@dataclass(frozen=True)
class FullReset(LayerwiseReset):
    """Replace every parameter and buffer by those of a fresh network (Nikishin et al. 2022, arXiv
    2205.07802).
    """

    name: ClassVar[str] = "full"

    def rule_for(self, entry: Entry) -> Rule:
        return Redraw()

    def buffer_writes(
        self, network: str, slot: NetworkSlot, fresh: nn.Module
    ) -> list[tuple[str, Tensor, Tensor]]:
        values = dict(fresh.named_buffers())
        return [(f"{network}/{name}", buffer, values[name]) for name, buffer in slot.named_buffers()]


@dataclass(frozen=True)
class ShrinkPerturbReset(LayerwiseReset):
    """Shrink and perturb (Ash and Adams 2020, arXiv 1910.08475) on every parameter: c * old + (1 - c) *
    fresh.
    """

    name: ClassVar[str] = "shrink_perturb"

    shrink_factor: float = option(
        0.2, "share of the old weights that is kept (0.2: FIRE's RL scripts; 0.8 in SR-SPR)", unit="0..1"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("shrink_factor", self.shrink_factor, low_allowed=True)

    def rule_for(self, entry: Entry) -> Rule:
        return ShrinkPerturb(self.shrink_factor)


@dataclass(frozen=True)
class FireReset(LayerwiseReset):
    """FIRE (arXiv 2602.08040): every weight becomes the nearest isometry times its layer's scale.

    Biases, norms, embeddings and buffers are kept, as in the authors' released code.
    """

    name: ClassVar[str] = "fire"

    scale: str = option("paper", "singular value of the result, see docs/resets.md", choices=SCALES)
    strength: float = option(1.0, "how far singular values move towards the scale; 1 is FIRE", unit="0..1")
    method: str = option("polar", "exact polar factor, or an approximating iteration", choices=METHODS)
    num_iters: int = option(10, "steps of newton_schulz or muon; polar ignores it", unit="steps")
    null: str = option(
        "random",
        "directions the weight does not have: completed at random, left zero, or an error",
        choices=NULL_POLICIES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("strength", self.strength)
        if self.num_iters < 1:
            raise ValueError(f"num_iters must be at least 1, got {self.num_iters}")

    def rule_for(self, entry: Entry) -> Rule:
        return self.orthogonalize() if entry.is_weight else Keep()

    def orthogonalize(self) -> Orthogonalize:
        """The rule for weights."""
        return Orthogonalize(self.scale, self.strength, self.method, self.num_iters, self.null)


REGISTRY: dict[str, type[Reset]] = {
    reset.name: reset for reset in (NoReset, FullReset, ShrinkPerturbReset, FireReset)
}


def reset_networks(
    slots: Mapping[str, NetworkSlot], reset: Reset, batch: Any, generator: torch.Generator
) -> ResetReport:
    """Apply ``reset`` to all networks, or, if anything fails, to none.

    Args:
        slots: networks by name; a parameter that several share is treated with the first.
        reset: the strategy.
        batch: probe batch, passed on to ``slot.forward`` and ``slot.loss`` by strategies that measure.
        generator: CPU generator of all random draws; the global random state stays as it was.

    Returns:
        What was done to each weight layer.

    Raises:
        ValueError: NaN or infinity in a weight to be orthogonalized, or in a new value.
        TypeError: ``reset.optimizer`` is ``"zero"`` and an optimizer's initial state is not zero.
    """
    start = time.perf_counter()
    if reset.optimizer == "zero":
        for slot in slots.values():
            slot.check_zeroable()
    with torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(slots)):
        plan = reset.plan(slots, batch, generator)
        plan.check()
        reports = [
            describe(network, layer, plan.value_of(layer.weight), layer_scale(layer))
            for network, slot in slots.items()
            for layer in slot.layers()
        ]
        plan.write()
        for slot in slots.values():
            if reset.optimizer == "zero":
                slot.zero_optimizer_state()
            if reset.target == "sync":
                slot.sync_target()
    return ResetReport(tuple(reports), time.perf_counter() - start)


def entries_of(network: str, slot: NetworkSlot) -> list[Entry]:
    """All parameters of a network that a reset may touch, each with its weight layer."""
    weights = {id(layer.weight): layer for layer in slot.layers()}
    biases = {id(layer.bias): layer for layer in slot.layers() if layer.bias is not None}
    entries = []
    for name, parameter in slot.named_parameters():
        layer = weights.get(id(parameter)) or biases.get(id(parameter))
        entries.append(Entry(f"{network}/{name}", parameter, layer, id(parameter) in weights))
    return entries


def _with_fresh(network: str, entry: Entry, fresh: nn.Module) -> Entry:
    name = entry.name.removeprefix(f"{network}/")
    return Entry(entry.name, entry.parameter, entry.layer, entry.is_weight, fresh.get_parameter(name))


def _cuda_devices(slots: Mapping[str, NetworkSlot]) -> list[torch.device]:
    devices = {p.device for slot in slots.values() for p in slot.module.parameters()}
    return [device for device in devices if device.type == "cuda"]


def _check_share(name: str, value: float, low_allowed: bool = False) -> None:
    if not (0 <= value <= 1 if low_allowed else 0 < value <= 1):
        raise ValueError(f"{name} must lie in {'[' if low_allowed else '('}0, 1], got {value}")
