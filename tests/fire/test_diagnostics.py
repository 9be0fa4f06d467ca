"""Diagnostics against closed forms, and their promise to leave no trace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from fire.metrics import costly as diagnostics
from fire.metrics.trials import trainability, trial_update
from fire.resets.registry import reset_networks
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot, strategy
from tests.fire.test_metrics import features_with, slot_of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ranks_by_hand() -> None:
    features = features_with([4.0, 2.0, 2.0])
    assert diagnostics.stable_rank(features) == pytest.approx((16 + 4 + 4) / 16)
    assert diagnostics.pca_rank(features, threshold=4 / 24 + 1e-9) == 2
    assert diagnostics.pca_rank(features, threshold=0.01) == 3
    spectrum = [40**0.5 * s for s in (1.0, 0.02, 0.009)]  # divided by sqrt(40 samples): 1, 0.02, 0.009
    assert diagnostics.feature_rank(features_with(spectrum)) == 2
    zero = torch.zeros(5, 3)
    assert diagnostics.stable_rank(zero) == diagnostics.pca_rank(zero) == diagnostics.feature_rank(zero) == 0


def test_coadaptation_and_relative_change_by_hand() -> None:
    features, following = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [5.0, -1.0]])
    assert diagnostics.coadaptation(features, following) == pytest.approx((3 - 3) / 2)
    assert diagnostics.relative_change(
        [torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0])]
    ) == pytest.approx(0.2)


def quadratic_slot(eigenvalues: list[float]):
    """A slot whose loss is x^T A x / 2 in its only parameter, A having the given eigenvalues."""
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator()))[0]
    matrix = (basis * torch.tensor(eigenvalues)) @ basis.T
    module = nn.Linear(size, 1, bias=False)
    slot = slot_of(module)
    slot.loss = lambda batch: 0.5 * module.weight[0] @ matrix @ module.weight[0]
    return slot


@pytest.mark.parametrize("eigenvalues", [[5.0, 2.0, 1.0], [1.0, -7.0, 3.0]])
def test_hessian_top_eigenvalue_of_a_quadratic(eigenvalues: list[float]) -> None:
    slot = quadratic_slot(eigenvalues)
    found = diagnostics.hessian_top_eigenvalue(slot, None, generator(), num_iters=200, tolerance=1e-6)
    assert found == pytest.approx(max(eigenvalues, key=abs), rel=1e-3)


def test_hessian_of_a_linear_loss_is_zero() -> None:
    module = nn.Linear(3, 1)
    slot = slot_of(module)
    slot.loss = lambda batch: module(batch).sum()
    assert diagnostics.hessian_top_eigenvalue(slot, torch.ones(2, 3), generator()) == 0


def test_gradient_covariance_of_a_linear_model() -> None:
    module = nn.Linear(2, 1, bias=False)
    slot = slot_of(module)
    slot.loss = lambda batch: module(batch).sum()  # the gradient is the input itself
    samples = [torch.tensor([x]) for x in ([1.0, 0.0], [1.0, 1.0], [0.0, -2.0])]
    half = math.sqrt(0.5)
    expected = torch.tensor([[1, half, 0], [half, 1, -half], [0, -half, 1]], dtype=torch.float64)
    torch.testing.assert_close(diagnostics.gradient_covariance(slot, samples), expected)


def test_spectra_are_the_singular_values() -> None:
    slot = make_slot("conv")
    found = diagnostics.spectra({"q": slot})
    assert list(found) == ["spectrum/q/0", "spectrum/q/3", "spectrum/q/6", "spectrum/q/8"]
    assert len(found["spectrum/q/0"]) == 9 * 3
    assert float(found["spectrum/q/6"].square().sum()) == pytest.approx(
        float(slot.module[6].weight.detach().double().square().sum())
    )


def test_trainability_tells_a_dead_network_from_a_fresh_one() -> None:
    slot, batch = make_slot("conv"), batch_for("conv")
    with torch.no_grad():
        slot.module[6].bias.fill_(-100.0)  # every unit below the head is silent
    here, fresh = trainability(slot, batch, generator(), steps=150, learning_rate=1e-2)
    assert fresh < 0.5 * here


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_trial_update_is_the_first_step_of_adam(weight_decay: float) -> None:
    slot, batch = make_slot("mlp", train_steps=0), batch_for("mlp")
    slot.optimizer = torch.optim.AdamW(slot.module.parameters(), lr=1e-2, eps=0.0, weight_decay=weight_decay)
    before = [p.detach().clone() for p in slot.module.parameters()]
    slopes = diagnostics.gradients(slot, batch)
    # The first step of Adam is the sign of the gradient times the learning rate; AdamW also shrinks by lr * decay.
    steps = [-1e-2 * (g.sign() + weight_decay * p) for g, p in zip(slopes, before, strict=True)]
    expected = float(torch.cat([step.flatten() for step in steps]).norm())
    size = float(torch.cat([p.flatten() for p in before]).norm())
    assert trial_update(slot, batch) == (
        pytest.approx(expected, rel=1e-5),
        pytest.approx(expected / size, rel=1e-5),
    )
    assert not slot.optimizer.state
    assert all(torch.equal(p, b) for p, b in zip(slot.module.parameters(), before, strict=True))


def test_trial_update_moves_nothing_that_shares_the_optimizer() -> None:
    slot, other = make_slot("mlp", train_steps=1), nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    slot.optimizer.add_param_group({"params": [other]})
    before = {p: {k: v.clone() for k, v in s.items()} for p, s in slot.optimizer.state.items()}
    trial_update(slot, batch_for("mlp"))
    assert torch.equal(other, torch.ones(2)) and torch.equal(other.grad, torch.ones(2))
    assert slot.optimizer.state.keys() == before.keys()
    for parameter, values in before.items():
        assert all(torch.equal(value, slot.optimizer.state[parameter][key]) for key, value in values.items())


def test_agreeing_and_opposing_gradients() -> None:
    module = nn.Linear(2, 1, bias=False)
    slot = slot_of(module)
    slot.loss = lambda batch: module(batch).sum()
    same, opposed = torch.ones(16, 2), torch.ones(16, 2)
    opposed[::4], opposed[1::4] = -1, -1  # every second of the 8 minibatches of 2
    found = diagnostics.diagnose({"q": slot}, same, generator(), steps=1)
    assert found["plasticity/q/gradient_cosine"] == pytest.approx(1.0)
    assert found["plasticity/q/gradient_rank"] == pytest.approx(1.0)
    found = diagnostics.diagnose({"q": slot}, opposed, generator(), steps=1)
    assert found["plasticity/q/gradient_cosine"] == pytest.approx((2 * 4 * 3 - 2 * 16) / (8 * 7))


def test_optimization_readiness_by_hand() -> None:
    module = nn.Linear(2, 1, bias=False)
    nn.init.ones_(module.weight)
    slot = slot_of(module)
    slot.loss = lambda batch: module(batch).square().mean()
    # x = (1, 0) and (0, 2): losses 1 and 4, gradients (2, 0) and (0, 8); together 2.5 and (1, 4).
    batches = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])]
    assert diagnostics.optimization_readiness(slot, batches) == pytest.approx((17 / 2.5) * (17 / 34))
    assert diagnostics.optimization_readiness(slot, batches[:1] * 2) == pytest.approx(4 / 1)
    slot.loss = lambda batch: -module(batch).mean()
    assert diagnostics.optimization_readiness(slot, batches) is None


def test_coadaptation_needs_next_features() -> None:
    slot, batch = make_slot("twin"), batch_for("twin")
    assert "plasticity/q/coadaptation" not in diagnostics.diagnose({"q": slot}, batch, generator(), steps=1)
    slot.forward_next = slot.forward
    found = diagnostics.diagnose({"q": slot}, batch, generator(), steps=1)["plasticity/q/coadaptation"]
    features = diagnostics.record_forward(
        slot, batch
    ).features  # (2, samples, features): per critic, then averaged
    assert found == pytest.approx(float(features.double().square().sum(-1).mean()), rel=1e-6)


def test_trainability_after_two_injections() -> None:
    slot, batch = make_slot("mlp"), batch_for("mlp")
    for seed in range(2):
        reset_networks({"q": slot}, strategy("plasticity_injection"), batch, generator(seed))
    before = {name: value.clone() for name, value in slot.module.state_dict().items()}
    here, fresh = trainability(slot, batch, generator(), steps=2)
    assert math.isfinite(here) and math.isfinite(fresh)
    assert all(torch.equal(before[name], value) for name, value in slot.module.state_dict().items())


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_diagnosing_leaves_no_trace_and_gives_the_documented_keys(kind: str) -> None:
    slot, batch = make_slot(kind), batch_for(kind)
    slot.forward_next = slot.forward
    slot.module.train()
    values = {name: value.clone() for name, value in slot.module.state_dict().items()}
    pointers = [p.data_ptr() for p in slot.module.parameters()]
    gradients = [p.grad.clone() for p in slot.module.parameters()]
    moments = copy.deepcopy(slot.optimizer.state_dict()["state"])
    random_state = torch.random.get_rng_state()
    scalars = diagnostics.diagnose({"net": slot}, batch, generator(), steps=3)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(values[name], value) for name, value in slot.module.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, slot.module.parameters(), strict=True))
    state = slot.optimizer.state_dict()["state"]
    assert all(
        torch.equal(value, state[i][key]) for i, each in moments.items() for key, value in each.items()
    )
    assert pointers == [p.data_ptr() for p in slot.module.parameters()]
    assert all(module.training for module in slot.module.modules())
    assert set(scalars) == {key.replace("<network>", "net") for key in diagnostics.DIAGNOSTIC_KEYS}
    assert all(math.isfinite(value) for value in scalars.values())
    moved = slot.initial().state_dict()
    distance = sum(
        (values[n].double() - moved[n].double()).square().sum() for n, _ in slot.module.named_parameters()
    )
    assert scalars["plasticity/net/distance_to_init"] == pytest.approx(float(distance) ** 0.5)
