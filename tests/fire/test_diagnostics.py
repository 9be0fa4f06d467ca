"""Diagnostics against closed forms, and their promise to leave no trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fire import diagnostics
from tests.fire.fire_networks import ARCHITECTURES, batch_for, make_slot
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
    here, fresh = diagnostics.trainability(slot, batch, generator(), steps=150, learning_rate=1e-2)
    assert fresh < 0.5 * here


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_diagnosing_leaves_no_trace_and_gives_the_documented_keys(kind: str) -> None:
    slot, batch = make_slot(kind), batch_for(kind)
    slot.module.train()
    values = {name: value.clone() for name, value in slot.module.state_dict().items()}
    pointers = [p.data_ptr() for p in slot.module.parameters()]
    gradients = [p.grad.clone() for p in slot.module.parameters()]
    random_state = torch.random.get_rng_state()
    scalars = diagnostics.diagnose({"net": slot}, batch, generator(), steps=3)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(values[name], value) for name, value in slot.module.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, slot.module.parameters(), strict=True))
    assert pointers == [p.data_ptr() for p in slot.module.parameters()]
    assert all(module.training for module in slot.module.modules())
    assert set(scalars) == {key.replace("<network>", "net") for key in diagnostics.DIAGNOSTIC_KEYS}
    assert all(math.isfinite(value) for value in scalars.values())
    moved = slot.initial().state_dict()
    distance = sum(
        (values[n].double() - moved[n].double()).square().sum() for n, _ in slot.module.named_parameters()
    )
    assert scalars["plasticity/net/distance_to_init"] == pytest.approx(float(distance) ** 0.5)
