"""SingularClip, calibrated partial resets, the decoupled isometry step, Normalize-and-Project: values by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from agents.networks import MLPQNetwork
from fire.network.flow import unit_flows
from fire.options import CalibratedPartialOptions
from fire.resets.calibrated_partial import replaced_share
from fire.resets.injection import InjectedHead
from fire.resets.orthogonal_decoupled import isometry_gradient
from fire.resets.registry import reset_networks
from fire.resets.singular_clip import clip_singular_values
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot, strategy, train_step

TRACKED = {
    "calibrated_partial": {"period": 2, "replacement_rate": 0.3, "sharpness": 2.0},
    "orthogonal_decoupled": {},
    "normalize_project": {},
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("form", ["flatten", "slices"])
def test_clipped_singular_values_and_the_same_singular_vectors(kind: str, form: str) -> None:
    slot = make_slot(kind)
    before = {layer.name: layer.matrices().double() for layer in slot.layers(form)}
    old = parameters(slot.module)
    options = {"min_singular_value": 0.4, "max_singular_value": 0.9, "conv_form": form}
    reset_networks({"net": slot}, strategy("singular_clip", **options), None, generator())
    for layer in slot.layers(form):
        left, values, right = torch.linalg.svd(before[layer.name], full_matrices=False)
        assert ((values < 0.4) | (values > 0.9)).any()
        expected = left @ torch.diag_embed(values.clip(0.4, 0.9)) @ right
        torch.testing.assert_close(layer.matrices().double(), expected, rtol=1e-5, atol=1e-6)
    weights = {id(layer.weight) for layer in slot.layers(form)}
    assert all(torch.equal(p, old[n]) for n, p in slot.module.named_parameters() if id(p) not in weights)


def test_a_clip_that_clips_nothing_and_one_that_cannot_be() -> None:
    slot = make_slot("mlp")
    before = parameters(slot.module)
    clip = strategy("singular_clip", min_singular_value=0.0, max_singular_value=1e3, roles=("hidden", "head"))
    reset_networks({"net": slot}, clip, None, generator())
    assert all(torch.equal(value, before[name]) for name, value in slot.module.named_parameters())
    with pytest.raises(ValueError, match=r"max_singular_value must lie in \[2, inf\], got 1"):
        strategy("singular_clip", min_singular_value=2, max_singular_value=1)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (3, 6, 6)])
@pytest.mark.parametrize("smallest", [0.1, 1e-5, 0.0])
def test_clipping_by_eigenvectors_is_clipping_by_svd(shape: tuple[int, ...], smallest: float) -> None:
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    values = torch.linspace(2.0, smallest, min(shape[-2:]), dtype=torch.float64)
    clipped = clip_singular_values((left * values) @ right, 0.0, 1.5)
    torch.testing.assert_close(clipped, (left * values.clip(0.0, 1.5)) @ right, rtol=1e-10, atol=1e-10)
    raised = clip_singular_values((left * values) @ right, 0.3, 3.0)
    torch.testing.assert_close(torch.linalg.svdvals(raised), values.clip(0.3).expand(*shape[:-2], -1))


def test_share_falls_from_the_rate_beyond_the_threshold() -> None:
    options = CalibratedPartialOptions(replacement_rate=0.1, sharpness=16, threshold=1.0)
    share = replaced_share(torch.tensor([0.0, 1.0, 1.1, 3.0], dtype=torch.float64), options)
    expected = [0.1, 0.1, 0.2 / (1 + 2.718281828459045**1.6), 0.2 / (1 + 2.718281828459045**32)]
    torch.testing.assert_close(share, torch.tensor(expected, dtype=torch.float64))


def test_calibrated_partial_reset_by_hand() -> None:
    """An MLP of two hidden layers, written out."""
    network = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    slot = make_slot("mlp")
    slot.module, slot.target = network, None
    slot.build = lambda g: copy.deepcopy(fresh)
    slot.forward = lambda batch: network(batch)
    slot.loss = lambda batch: network(batch).square().mean()
    fresh = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    options = {"period": 2, "replacement_rate": 0.3, "sharpness": 2.0, "decay": 0.6, "threshold": 0.9}
    tracker = strategy("calibrated_partial", **options).tracker()
    utility = [torch.ones(6).double(), torch.ones(4).double()]
    old = parameters(network)
    for step in range(2):
        batch = torch.randn(32, 5, generator=generator(step))
        network.zero_grad()
        network(batch).square().mean().backward()
        for index, layer in enumerate((network[0], network[2])):
            size = layer.weight.grad.abs().double().mean(1)
            utility[index] = 0.6 * utility[index] + 0.4 * size / size.mean()
        tracker.after_update({"net": slot}, batch, generator(9))
        if step == 0:
            assert all(torch.equal(value, old[name]) for name, value in network.named_parameters())
    first, second = (0.3 * (2 * torch.sigmoid(-2 * (u - 0.9))).clamp(max=1) for u in utility)
    assert 0.01 < first.min() < first.max() <= 0.3
    w = {name: value.double() for name, value in old.items()}
    w["0.weight"] = (1 - first)[:, None] * w["0.weight"] + first[:, None] * fresh[0].weight.double()
    w["2.weight"] = w["2.weight"] * (1 - first)
    w["2.weight"] = (1 - second)[:, None] * w["2.weight"] + second[:, None] * fresh[2].weight.double()
    w["4.weight"] = w["4.weight"] * (1 - second)
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach().double(), w[name], rtol=1e-5, atol=1e-6)
    for group in ("net/1", "net/3"):
        assert torch.equal(tracker.state[group]["utility"], torch.ones_like(tracker.state[group]["utility"]))


def test_calibrated_partial_follows_convolutions_into_linear_layers() -> None:
    """The share of a channel reaches all inputs behind the flattening that carry it."""
    slot = make_slot("conv")
    tracker = strategy("calibrated_partial", period=1, replacement_rate=1.0, threshold=1e9).tracker()
    fresh, old = slot.build(generator(3)), parameters(slot.module)
    tracker.after_update({"net": slot}, batch_for("conv"), generator(3))
    assert not unit_flows(slot, batch_for("conv")).left_alone
    # Everything replaced: incoming weights are the fresh ones, the head's are gone, biases and norms as they were.
    for name in ("0", "3", "6"):
        assert torch.equal(slot.module.get_parameter(f"{name}.weight"), fresh.get_parameter(f"{name}.weight"))
    assert not slot.module[8].weight.any()
    for name in ("0.bias", "1.weight", "8.bias"):
        assert torch.equal(slot.module.get_parameter(name), old[name])


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (3, 6, 2)])
def test_isometry_gradient_is_autograds(shape: tuple[int, ...]) -> None:
    w = torch.randn(shape, generator=generator(1), dtype=torch.float64, requires_grad=True)
    gram = w.mT @ w if shape[-2] >= shape[-1] else w @ w.mT
    (gram - torch.eye(gram.shape[-1], dtype=torch.float64)).square().sum().backward()
    torch.testing.assert_close(isometry_gradient(w.detach()), w.grad)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_decoupled_steps_end_at_isometries_and_leave_the_moments_alone(kind: str) -> None:
    slot = make_slot(kind, learning_rate=1e-2)
    tracker = strategy("orthogonal_decoupled", strength=2.0, roles=("input", "hidden")).tracker()
    moments = copy.deepcopy(slot.optimizer.state_dict()["state"])
    before = parameters(slot.module)
    first = slot.layers("flatten")[0]
    expected = first.matrices() - 1e-2 * 2.0 * isometry_gradient(first.matrices())
    tracker.after_update({"net": slot}, batch_for(kind), generator())
    torch.testing.assert_close(first.matrices(), expected)
    for _ in range(600):
        tracker.after_update({"net": slot}, batch_for(kind), generator())
    for layer in slot.layers("flatten"):
        if layer.role != "head":
            values = torch.linalg.svdvals(layer.matrices())
            torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-3, atol=1e-3)
    head = slot.layers()[-1]
    assert torch.equal(head.weight, before[f"{head.name}.weight"])
    for index, values in slot.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][key]) for key, value in values.items())


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_weights_return_to_the_norm_they_began_with(kind: str) -> None:
    slot = make_slot(kind, train_steps=0, learning_rate=0.1)
    first = slot.initial()
    tracker = strategy("normalize_project").tracker()
    for step in range(3):
        train_step(slot, batch_for(kind, seed=step))
        direction = {layer.name: layer.weight.detach().clone() for layer in slot.layers()}
        tracker.after_update({"net": slot}, batch_for(kind), generator())
    for layer in slot.layers():
        axes = (1, 2) if kind == "twin" else None
        rho = first.get_parameter(f"{layer.name}.weight").detach().double()
        norms = [
            w.detach().double().square().sum(axes).sqrt() for w in (rho, layer.weight, direction[layer.name])
        ]
        same = torch.allclose(norms[1], norms[0], rtol=1e-5)
        assert same == (layer.role != "head")
        assert not torch.allclose(norms[2], norms[0], rtol=1e-3)
        cosine = nn.functional.cosine_similarity(
            layer.weight.flatten(), direction[layer.name].flatten(), dim=0
        )
        assert cosine > 0.99


def test_an_injected_head_returns_to_the_norm_it_began_with() -> None:
    slot = make_slot("mlp", train_steps=0, learning_rate=0.1)
    for seed in range(2):
        reset_networks({"net": slot}, strategy("plasticity_injection"), batch_for("mlp"), generator(seed))
    injected = next(module for module in slot.module.modules() if isinstance(module, InjectedHead))
    norm = injected.new.weight.norm().item()
    tracker = strategy("normalize_project", roles=("input", "hidden", "head")).tracker()
    for seed in range(2):
        train_step(slot, batch_for("mlp", seed=seed))
        assert injected.new.weight.norm().item() != pytest.approx(norm, rel=1e-5)
        tracker.after_update({"net": slot}, batch_for("mlp"), generator())
        assert injected.new.weight.norm().item() == pytest.approx(norm, rel=1e-5)


def test_projection_changes_no_layer_normed_network() -> None:
    slot = make_slot("mlp")
    network = MLPQNetwork(5, 3, (16, 12), layer_norm=True)
    first = copy.deepcopy(network)
    slot.module, slot.initial = network, lambda: first
    with torch.no_grad():
        for layer in (network.hidden1, network.hidden2):
            layer.weight.mul_(4.0)
            nn.init.normal_(layer.bias, generator=generator(1))
    before = network(batch_for("mlp"))
    strategy("normalize_project").tracker().after_update({"net": slot}, batch_for("mlp"), generator())
    assert network.hidden1.weight.norm().item() == pytest.approx(first.hidden1.weight.norm().item(), rel=1e-5)
    torch.testing.assert_close(network(batch_for("mlp")), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
@pytest.mark.parametrize("name", list(TRACKED))
def test_a_resumed_tracker_goes_on_as_if_uninterrupted(name: str, kind: str) -> None:
    def advance(slot, tracker, steps: range) -> None:
        for step in steps:
            train_step(slot, batch_for(kind, seed=step))
            tracker.after_update({"net": slot}, batch_for(kind, seed=step), generator(step))

    slot, tracker = make_slot(kind, seed=4), strategy(name, **TRACKED[name]).tracker()
    advance(slot, tracker, range(3))
    again, resumed = make_slot(kind, seed=4), strategy(name, **TRACKED[name]).tracker()
    again.module.load_state_dict(slot.module.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(slot.optimizer.state_dict()))
    resumed.load_state_dict(copy.deepcopy(tracker.state_dict()))
    advance(slot, tracker, range(3, 7))
    advance(again, resumed, range(3, 7))
    assert all(
        torch.equal(a, b) for a, b in zip(slot.module.parameters(), again.module.parameters(), strict=True)
    )
    plain = make_slot(kind, seed=4)
    for step in range(7):
        train_step(plain, batch_for(kind, seed=step))
    assert not torch.equal(plain.layers()[0].weight, slot.layers()[0].weight)
