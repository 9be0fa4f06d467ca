"""What learning would do from here: steps that are taken on the real network and taken back, in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..network.probe import leave_no_trace
from ..network.slot import NetworkSlot
from ..resets.injection import InjectedHead
from .cheap import joint_norm


def gradients(slot: NetworkSlot, batch: Any) -> list[Tensor]:
    """Gradient of ``slot.loss`` for every learning parameter, zero where it has none; ``.grad`` stays as it was."""
    parameters = [p for p in slot.module.parameters() if p.requires_grad]
    with leave_no_trace(slot), torch.enable_grad():
        found = torch.autograd.grad(slot.loss(batch), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@torch.no_grad()
def trial_update(slot: NetworkSlot, batch: Any) -> tuple[float, float]:
    """Size of the step that the optimizer would make on ``batch``, weight decay included, and its ratio to the weights.

    Weights, optimizer state and gradients are put back afterwards, in place.

    Returns:
        ||Delta theta|| and ||Delta theta|| / ||theta|| over the learning parameters: the effective learning rate
        as it acts, where gradient norm over weight norm leaves the optimizer out.
    """
    parameters = [p for p in slot.module.parameters() if p.requires_grad]
    found = gradients(slot, batch)
    before = [p.detach().clone() for p in parameters]
    state = slot.optimizer.state
    saved = {
        p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in state[p].items()}
        for p in parameters
        if p in state
    }
    _step(slot.optimizer, parameters, found)
    moved = joint_norm([p.double() - b.double() for p, b in zip(parameters, before, strict=True)])
    for parameter, value in zip(parameters, before, strict=True):
        parameter.copy_(value)
        if parameter not in saved:
            state.pop(parameter, None)
            continue
        for key, old in saved[parameter].items():
            if isinstance(old, Tensor):
                state[parameter][key].copy_(old)
            else:
                state[parameter][key] = old
    size = joint_norm(before)
    return moved, moved / size if size > 0 else 0.0


def trainability(
    slot: NetworkSlot,
    batch: Any,
    generator: torch.Generator,
    *,
    steps: int = 100,
    learning_rate: float = 1e-3,
) -> tuple[float, float]:
    """How well the network can fit random targets, from here and from fresh weights (after Lyle et al. 2023).

    Standard normal targets for the output on ``batch``, Adam, mean squared error. Weights, buffers and
    optimizer are put back afterwards.

    Returns:
        Loss after ``steps`` updates from the present weights, and from ``slot.build``'s. Predicting zero
        gives about 1.
    """
    with leave_no_trace(slot), torch.no_grad():
        shape = slot.forward(batch).shape
    targets = torch.randn(shape, generator=generator)
    saved = copy.deepcopy(slot.module.state_dict())
    fresh = _fresh_state(slot, generator)

    def fit() -> float:
        parameters = [p for p in slot.module.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=learning_rate)
        goal = targets.to(parameters[0])
        for _ in range(steps):
            loss = nn.functional.mse_loss(slot.forward(batch), goal)
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            _step(optimizer, parameters, found)
        with torch.no_grad():
            return float(nn.functional.mse_loss(slot.forward(batch), goal))

    return _at(slot, saved, saved, fit), _at(slot, fresh, saved, fit)


def _fresh_state(slot: NetworkSlot, generator: torch.Generator) -> dict[str, Tensor]:
    """Values of a fresh network in the structure of the present one: injected heads are injected there too."""
    fresh = slot.build(generator)
    injected = [name for name, module in slot.module.named_modules() if isinstance(module, InjectedHead)]
    for name in sorted(injected, key=len):
        head = fresh.get_submodule(name)
        fresh.set_submodule(name, InjectedHead(copy.deepcopy(head), head))
    return fresh.state_dict()


def _step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], found: Sequence[Tensor | None]
) -> None:
    """One optimizer step along ``found`` that moves nothing else and leaves every ``.grad`` as it was."""
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [parameter.grad for parameter in everything]
    for parameter in everything:
        parameter.grad = None
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter, gradient in zip(everything, kept, strict=True):
        parameter.grad = gradient


def _at(
    slot: NetworkSlot, state: Mapping[str, Tensor], saved: Mapping[str, Tensor], call: Callable[[], float]
) -> float:
    """Run ``call`` with the module's values set to ``state``, then set them to ``saved``, in place."""
    try:
        slot.module.load_state_dict(state)
        with leave_no_trace(slot), torch.enable_grad():
            return call()
    finally:
        slot.module.load_state_dict(saved)
