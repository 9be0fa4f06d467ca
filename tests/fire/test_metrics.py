"""Metrics on constructed activations and features, and the promise to leave no trace."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fire.metrics import cheap as metrics
from fire.network.probe import record_forward
from fire.network.slot import NetworkSlot
from tests.fire.fire_networks import ARCHITECTURES, BatchedLinear, batch_for, make_slot


def features_with(spectrum: list[float], samples: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(samples, len(spectrum), dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(12, len(spectrum), dtype=torch.float64, generator=generator))[0]
    return (left * torch.tensor(spectrum, dtype=torch.float64)) @ right.T


def test_dormant_units_by_hand() -> None:
    activations = torch.tensor([[1.0, 0.0, 0.05, 3.0], [-1.0, 0.0, 0.05, 3.0]])
    # scores: 1, 0, 0.05 and 3 over their mean 1.0125
    assert metrics.dormant_units(activations, 0.1).tolist() == [False, True, True, False]
    assert metrics.dormant_units(activations, 0.0).tolist() == [False, True, False, False]
    assert metrics.dormant_units(torch.zeros(3, 4), 0.1).all()


def test_zero_units_by_hand() -> None:
    assert metrics.zero_units(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1e-9, 1.0]])).tolist() == [
        True,
        False,
        False,
    ]


def test_srank_by_hand() -> None:
    assert metrics.srank(features_with([5.0, 4.0, 1.0]), threshold=0.1 + 1e-9) == 2
    assert metrics.srank(features_with([5.0, 4.0, 1.0]), threshold=0.05) == 3
    assert metrics.srank(features_with([1.0] * 7)) == 7
    assert metrics.srank(torch.zeros(5, 3)) == 0


def test_effective_rank_by_hand() -> None:
    assert metrics.effective_rank(features_with([2.0] * 5)) == pytest.approx(5)
    p = [0.75, 0.25]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert metrics.effective_rank(features_with([3.0, 1.0])) == pytest.approx(expected)
    assert metrics.effective_rank(torch.zeros(5, 3)) == 0


def test_norms_by_hand() -> None:
    assert metrics.feature_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(3.0)
    assert metrics.joint_norm([torch.tensor([3.0]), torch.tensor([[4.0]])]) == pytest.approx(5.0)


def slot_of(module: nn.Module, **options) -> NetworkSlot:
    return NetworkSlot(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        build=lambda generator: module,
        initial=lambda: module,
        forward=lambda batch: module(batch),
        loss=lambda batch: module(batch).square().mean(),
        **options,
    )


def test_activations_are_taken_after_the_nonlinearity_and_convolutions_over_batch_and_space() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    with torch.no_grad():
        module[0].bias[2] = -100.0
        module[3].bias[:2] = -100.0
    batch = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = record_forward(slot_of(module), batch)
    assert [(a.name, tuple(a.values.shape)) for a in seen.activations] == [
        ("1", (1, 16 * 36, 4)),
        ("4", (1, 16, 5)),
    ]
    assert torch.equal(seen.features[0], module[:5](batch))
    scalars = metrics.measure({"q": slot_of(module)}, batch, dormancy_threshold=0.0)
    assert scalars["plasticity_layers/q/zero_activation_ratio/1"] == pytest.approx(1 / 4)
    assert scalars["plasticity_layers/q/zero_activation_ratio/4"] >= 2 / 5
    dead = round(scalars["plasticity_layers/q/zero_activation_ratio/4"] * 5) + 1
    assert scalars["plasticity/q/zero_activation_ratio"] == pytest.approx(dead / 9)


def test_tokens_are_samples_and_shared_modules_are_told_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(3, 4), nn.Linear(4, 2), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.relu(self.b(self.relu(self.a(x))))

    seen = record_forward(slot_of(Shared()), torch.randn(6, 7, 3))
    assert [(a.name, tuple(a.values.shape)) for a in seen.activations] == [
        ("relu", (1, 42, 4)),
        ("relu_2", (1, 42, 2)),
    ]


def test_ensembles_are_measured_per_member() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.relu, self.head = BatchedLinear(2, 6, 6), nn.ReLU(), BatchedLinear(2, 6, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.relu(self.body(x.expand(2, *x.shape))))

    module = Twins()
    with torch.no_grad():
        module.body.weight.copy_(torch.stack([torch.eye(6), torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0]))]))
        module.head.weight.copy_(torch.tensor([[[2.0, 0, 0, 0, 0, 0]], [[4.0, 0, 0, 0, 0, 0]]]))
    batch = torch.eye(6)
    scalars = metrics.measure({"c": slot_of(module, ensemble_size=2)}, batch)
    assert scalars["plasticity/c/srank"] == pytest.approx((6 + 3) / 2)
    assert scalars["plasticity/c/effective_rank"] == pytest.approx((6 + 3) / 2)
    assert scalars["plasticity_layers/c/weight_norm/head"] == pytest.approx(3.0)
    assert scalars["plasticity/c/zero_activation_ratio"] == pytest.approx(3 / 12)


def test_gradient_norm_is_that_of_backward() -> None:
    slot = make_slot("mlp")
    expected = metrics.measure({"q": slot}, batch_for("mlp"))["plasticity/q/gradient_norm"]
    slot.optimizer.zero_grad()
    slot.loss(batch_for("mlp")).backward()
    total = sum(p.grad.double().square().sum() for p in slot.module.parameters()) ** 0.5
    assert expected == pytest.approx(float(total), rel=1e-6)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_measuring_leaves_no_trace_and_gives_documented_finite_keys(kind: str) -> None:
    slot, batch = make_slot(kind), batch_for(kind)
    slot.module.train()
    values = {name: value.clone() for name, value in slot.module.state_dict().items()}
    gradients = [p.grad.clone() for p in slot.module.parameters()]
    random_state = torch.random.get_rng_state()
    scalars = metrics.measure({"net": slot}, batch)
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert all(torch.equal(values[name], value) for name, value in slot.module.state_dict().items())
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, slot.module.parameters(), strict=True))
    assert all(module.training for module in slot.module.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in slot.module.modules())

    names = {layer.name for layer in slot.layers()} | {
        a.name for a in record_forward(slot, batch).activations
    }
    known = {
        key.replace("<network>", "net").replace("<layer>", name)
        for key in metrics.METRIC_KEYS
        for name in names
    }
    assert set(scalars) <= known
    assert {key for key in known if key.startswith("plasticity/")} <= set(scalars)
    assert all(key.startswith("plasticity_layers/") == (key.count("/") == 3) for key in scalars)
    assert all(math.isfinite(value) for value in scalars.values())


def test_hooks_are_removed_when_the_forward_pass_fails() -> None:
    slot = make_slot("mlp")
    with pytest.raises(RuntimeError):
        metrics.measure({"net": slot}, torch.randn(4, 99))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in slot.module.modules())
    assert all(module.training for module in slot.module.modules())
