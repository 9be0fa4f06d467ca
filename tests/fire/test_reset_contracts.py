"""What every reset in the registry must keep, on three kinds of network."""

from __future__ import annotations

import copy

import pytest
import torch

from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, reset_networks
from fire.resets.report import RESET_KEYS
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot, strategy, train_step

CASES = [(name, kind) for name in REGISTRY for kind in ARCHITECTURES]
# Strategies that draw nothing for ordinary weights, and options under which the others find something to do.
TRACKED = {name for name, reset in REGISTRY.items() if reset().tracker() is not None}
DETERMINISTIC = {"none", "optimizer_only", "fire", "dash", "singular_clip"} | TRACKED
NEEDED = {
    "redo": {"dormancy_threshold": 0.9},
    "singular_clip": {"min_singular_value": 0.9, "max_singular_value": 1.0},
}


def make(name: str, **options):
    return strategy(name, **NEEDED.get(name, {}), **options)


def apply(name: str, kind: str, seed: int = 1, **options):
    slot = make_slot(kind)
    batch, generator = batch_for(kind), torch.Generator().manual_seed(seed)
    report = reset_networks({"net": slot}, make(name, **options), batch, generator, probe=batch)
    return slot, report


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name, kind", CASES)
def test_storage_optimizer_and_finiteness(name: str, kind: str) -> None:
    slot = make_slot(kind)
    pointers = {n: p.data_ptr() for n, p in slot.module.named_parameters()}
    identities = [id(p) for p in slot.module.parameters()]
    reset_networks({"net": slot}, make(name), batch_for(kind), torch.Generator().manual_seed(1))
    if not REGISTRY[name].structural:
        assert pointers == {n: p.data_ptr() for n, p in slot.module.named_parameters()}
        assert identities == [id(p) for p in slot.module.parameters()]
    held = [id(p) for group in slot.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in slot.module.parameters() if p.requires_grad)
    assert all(value.isfinite().all() for value in slot.module.state_dict().values())
    before = state(slot.module)
    train_step(slot, batch_for(kind))
    assert not equal(before, state(slot.module))


@pytest.mark.parametrize("name, kind", CASES)
def test_same_seed_same_result_and_global_random_state(name: str, kind: str) -> None:
    first, _ = apply(name, kind, seed=1)
    random_state = torch.random.get_rng_state()
    again, _ = apply(name, kind, seed=1)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert equal(state(first.module), state(again.module))
    other, _ = apply(name, kind, seed=2)
    assert equal(state(first.module), state(other.module)) == (name in DETERMINISTIC)


@pytest.mark.parametrize("name, kind", CASES)
def test_target_is_synced_or_kept(name: str, kind: str) -> None:
    target_options = OPTIONS[name].__dataclass_fields__["target"].metadata["choices"]
    for target in target_options:
        slot, _ = apply(name, kind, target=target)
        if target == "sync":
            assert equal(state(slot.target), state(slot.module))
        elif target == "same":
            # As if the target had been the network; "twin" shares its normaliser's values, which no reset touches.
            other = make_slot(kind)
            other.module.load_state_dict(other.target.state_dict())
            options = {"batch": batch_for(kind), "generator": torch.Generator().manual_seed(1)}
            reset_networks({"net": other}, make(name, target="keep"), **options)
            assert equal(state(slot.target), state(other.module))
            assert not equal(state(slot.target), state(make_slot(kind).target))
        elif REGISTRY[name].structural:
            before = make_slot(kind).target.eval()
            assert torch.equal(slot.target.eval()(batch_for(kind)), before(batch_for(kind)))
        else:
            assert equal(state(slot.target), state(make_slot(kind).target))


@pytest.mark.parametrize("name, kind", CASES)
def test_optimizer_state_is_zeroed_or_kept(name: str, kind: str) -> None:
    for optimizer in OPTIONS[name].__dataclass_fields__["optimizer"].metadata["choices"]:
        slot = make_slot(kind)
        before = {p: {k: v.clone() for k, v in s.items()} for p, s in slot.optimizer.state.items()}
        weights = {p: p.detach().clone() for p in before}
        reset_networks(
            {"net": slot}, make(name, optimizer=optimizer), batch_for(kind), torch.Generator().manual_seed(1)
        )
        if optimizer == "rebuild":
            assert not set(slot.optimizer.state) & set(slot.module.parameters())
        for parameter, values in slot.optimizer.state.items():
            for key, value in values.items():
                if optimizer == "zero":
                    expected = torch.zeros_like(value)
                elif name == "redo" and key != "step":
                    # Exactly the elements of recycled units, which ReDo rewrites, lose their moments.
                    expected = torch.where(parameter == weights[parameter], before[parameter][key], 0)
                else:
                    expected = before[parameter][key]
                assert torch.equal(value, expected), key


@pytest.mark.parametrize("name, kind", CASES)
def test_report_has_documented_finite_scalars(name: str, kind: str) -> None:
    layers = [layer.name for layer in make_slot(kind).layers()]
    _, report = apply(name, kind)
    known = {
        key.replace("<network>", "net").replace("<layer>", layer) for key in RESET_KEYS for layer in layers
    }
    scalars = report.scalars()
    assert set(scalars) <= known
    policies = {f"reset/net/{name}" for name in ("policy_kl", "greedy_agreement", "action_mse")}
    assert known - policies <= set(scalars)
    assert all(torch.tensor(value).isfinite() for value in scalars.values())


@pytest.mark.parametrize("name, kind", CASES)
def test_a_failing_network_leaves_all_networks_alone(name: str, kind: str) -> None:
    def fail(*arguments):
        raise ValueError("bad/ cannot be built")

    good, bad = make_slot(kind), make_slot(kind)
    bad.build = bad.initial = fail
    with torch.no_grad():
        bad.layers()[0].weight.fill_(float("nan"))
    before = copy.deepcopy(state(good.module)), copy.deepcopy(good.optimizer.state_dict())
    try:
        reset_networks({"good": good, "bad": bad}, make(name), batch_for(kind), torch.Generator())
    except ValueError as error:
        assert "bad/" in str(error)
        assert equal(before[0], state(good.module))
        after = good.optimizer.state_dict()["state"]
        for index, values in before[1]["state"].items():
            assert all(torch.equal(values[key], after[index][key]) for key in values)
    else:
        # Those read no weight and build nothing.
        assert name in {"none", "optimizer_only", "random_orthogonal"} | TRACKED


@pytest.mark.parametrize("name", list(REGISTRY))
def test_preserved_submodules_are_untouched(name: str) -> None:
    before = state(make_slot("twin").module.normaliser)
    slot, _ = apply(name, "twin")
    assert equal(before, state(slot.module.normaliser))


def test_unknown_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="optimizer 'fresh' is not one of zero, rebuild, keep"):
        strategy("full", optimizer="fresh")
