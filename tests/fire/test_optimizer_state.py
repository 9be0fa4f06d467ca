"""An optimizer whose state was zeroed or rebuilt takes the steps of a new one, for every optimizer of torch.optim."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fire.resets.registry import reset_networks
from tests.fire.fire_networks import make_slot, strategy

OPTIONS: dict[str, list[dict]] = {
    "SGD": [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "dampening": 0.9},
        {"dampening": 0.9},
        {"momentum": 0.9, "foreach": True, "maximize": True},
        {"momentum": 0.9, "fused": True},
    ],
    "Adam": [
        {},
        {"amsgrad": True},
        {"foreach": True},
        {"fused": True},
        {"maximize": True, "weight_decay": 0.1},
    ],
    "AdamW": [{}, {"amsgrad": True, "fused": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True, "weight_decay": 0.1}, {"foreach": True}],
    "RAdam": [{}, {"foreach": True}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}, {"momentum": 0.9, "foreach": True}],
    "Rprop": [{}, {"foreach": True}],
    "ASGD": [{}, {"weight_decay": 0.1, "t0": 1.0}, {"foreach": True}],
    "Adagrad": [{}, {"initial_accumulator_value": 0.5}, {"lr_decay": 0.1, "foreach": True}],
    "Adadelta": [{}, {"foreach": True}],
    "Adamax": [{}, {"foreach": True}],
    "Adafactor": [{}],
    "Muon": [{}, {"nesterov": False}],
    "SparseAdam": [{}],
    "LBFGS": [{}, {"line_search_fn": "strong_wolfe"}],
}
CASES = [(name, options) for name, cases in OPTIONS.items() for options in cases]
REFUSED = {("LBFGS", "zero")}


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = [(p, torch.randn(p.shape, generator=generator)) for p in module.parameters()]
    is_sparse = isinstance(optimizer, torch.optim.SparseAdam)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        for parameter, gradient in pairs:
            parameter.grad = gradient.to_sparse() if is_sparse else gradient.clone()
        return sum(((p * g).sum() for p, g in pairs), torch.zeros(())).detach()

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def test_every_optimizer_is_covered() -> None:
    every = {
        n
        for n, k in vars(torch.optim).items()
        if isinstance(k, type) and issubclass(k, torch.optim.Optimizer)
    }
    assert every - {"Optimizer"} == set(OPTIONS)


@pytest.mark.parametrize("how", ["zero", "rebuild"])
@pytest.mark.parametrize("name, options", CASES, ids=lambda value: str(value))
def test_the_next_steps_are_those_of_a_new_optimizer(name: str, options: dict, how: str) -> None:
    slot = make_slot("mlp", train_steps=0)
    kind = getattr(torch.optim, name)
    torch.manual_seed(0)
    slot.module = nn.Sequential(
        nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)
    )  # Muon takes matrices alone
    slot.target = None
    slot.optimizer = kind(slot.module.parameters(), lr=0.01, **options)
    for seed in range(3):
        step(slot.module, slot.optimizer, seed)
    dampens = bool(options.get("momentum") and options.get("dampening"))
    reset = strategy("optimizer_only", optimizer=how)
    if (name, how) in REFUSED or (dampens and how == "zero"):
        before = copy.deepcopy(slot.optimizer.state_dict())
        with pytest.raises(
            TypeError, match=f"cannot zero the state of {name}.*use optimizer: rebuild or keep"
        ):
            reset_networks({"net": slot}, reset, None, torch.Generator())
        assert str(slot.optimizer.state_dict()) == str(before)
        return
    reset_networks({"net": slot}, reset, None, torch.Generator())
    other = copy.deepcopy(slot.module)
    fresh = kind(other.parameters(), lr=0.01, **options)
    for seed in range(3, 6):
        step(slot.module, slot.optimizer, seed)
        step(other, fresh, seed)
        for ours, theirs in zip(slot.module.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_part_of_lbfgs_cannot_be_rebuilt() -> None:
    slot = make_slot("mlp")
    slot.optimizer = torch.optim.LBFGS(slot.module.parameters())
    slot.preserve = ("0",)
    with pytest.raises(TypeError, match="cannot rebuild the state of LBFGS for a part of its parameters"):
        reset_networks(
            {"net": slot}, strategy("optimizer_only", optimizer="rebuild"), None, torch.Generator()
        )
