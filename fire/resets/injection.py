"""PlasticityInjection: freeze the head and learn a new one on top, without changing any output.

It adds modules, so a checkpoint must rebuild them before loading: call :func:`restore_structure` with the state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..network.slot import NetworkSlot
from ..options import PlasticityInjectionOptions
from .base import Plan, Reset


class InjectedHead(nn.Module):
    """h(x) + h_new(x) - h_start(x): ``old`` and ``start`` frozen, ``new`` learning, ``start`` equal to new
    at first.
    """

    def __init__(self, old: nn.Module, new: nn.Module) -> None:
        super().__init__()
        # The learning head comes last, where the metrics look for the output layer.
        self.start = copy.deepcopy(new).requires_grad_(False)
        self.old = old.requires_grad_(False)
        self.new = new

    def forward(self, x: Tensor) -> Tensor:
        """Exactly ``old(x)`` as long as ``new`` has not moved."""
        return self.old(x) + (self.new(x) - self.start(x))


@dataclass(frozen=True)
class PlasticityInjection(Reset):
    """Plasticity injection (Nikishin et al. 2023, arXiv 2305.15555): q = h(x) + h_new(x) - h_start(x).

    The number of learning parameters stays; the rest of the network keeps learning. Structural: references
    to the old head's parameters, compiled functions and CUDA graphs go out of date. The target gets the
    same structure, its own output unchanged too; with ``target="sync"`` it then becomes a copy.
    """

    name: ClassVar[str] = "plasticity_injection"
    structural: ClassVar[bool] = True
    options: PlasticityInjectionOptions = field(default_factory=PlasticityInjectionOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        plan = Plan()
        for slot in slots.values():
            names = [self.options.head] if self.options.head else head_names(slot)
            fresh = self.new_network(slot, generator)
            heads = [(name, fresh.get_submodule(name)) for name in names]
            for name, _ in heads:
                slot.module.get_submodule(name)
            plan.actions.append(partial(inject, slot, heads))
        return plan


def head_names(slot: NetworkSlot) -> list[str]:
    """Names of the submodules to inject, also where they were injected before."""
    if slot.injected or slot.heads:
        return list(slot.injected or slot.heads)
    name = next(layer.name for layer in slot.layers() if layer.role == "head")
    parts = name.split(".")
    for end in range(len(parts)):
        if isinstance(slot.module.get_submodule(".".join(parts[:end])), InjectedHead):
            return [".".join(parts[:end])]
    return [name]


def inject(slot: NetworkSlot, heads: Sequence[tuple[str, nn.Module]]) -> None:
    """Wrap the named submodules of network and target; the optimizer then holds the new parameters, not the
    frozen.
    """
    for name, new in heads:
        if slot.target is not None:
            _wrap(slot.target, name, copy.deepcopy(new))
        frozen = [*slot.module.get_submodule(name).parameters()]
        _wrap(slot.module, name, new)
        _replace_in_optimizer(slot.optimizer, frozen, [*new.parameters()])


def restore_structure(slot: NetworkSlot, state: Mapping[str, Tensor]) -> None:
    """Inject heads until the module has the structure ``state`` (its state dict) was saved with.

    Call it before loading states into module, target and optimizer. Which values the heads get does not
    matter.
    """
    while True:
        have = slot.module.state_dict().keys()
        missing = {key.split(".start.")[0] for key in state if ".start." in key and key not in have}
        if not missing:
            return
        name = min(missing, key=len)
        inject(slot, [(name, copy.deepcopy(slot.module.get_submodule(name)))])


def _wrap(module: nn.Module, name: str, new: nn.Module) -> None:
    old = module.get_submodule(name)
    new.requires_grad_(any(p.requires_grad for p in old.parameters()))
    new.train(old.training)
    module.set_submodule(name, InjectedHead(old, new))


def _replace_in_optimizer(
    optimizer: torch.optim.Optimizer, frozen: Sequence[nn.Parameter], new: Sequence[nn.Parameter]
) -> None:
    """Put the learning ones of ``new`` where the first of ``frozen`` stood; drop the rest and their state."""
    gone = {id(parameter) for parameter in frozen}
    for group in optimizer.param_groups:
        position = next((i for i, p in enumerate(group["params"]) if id(p) in gone), None)
        if position is not None:
            kept = [p for p in group["params"] if id(p) not in gone]
            group["params"] = kept[:position] + [p for p in new if p.requires_grad] + kept[position:]
    for parameter in frozen:
        optimizer.state.pop(parameter, None)
