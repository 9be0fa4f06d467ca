"""Values of the rival resets on networks small enough to check by hand."""

from __future__ import annotations

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fire.network.probe import minibatches
from fire.network.slot import NetworkSlot
from fire.regularizers import l2_init, parseval
from fire.resets.injection import InjectedHead, restore_structure
from fire.resets.registry import reset_networks
from fire.resets.units import unit_groups
from tests.fire.fire_networks import ARCHITECTURES, batch_for, initialise, make_slot, strategy, train_step


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def slot_of(module: nn.Module, **options) -> NetworkSlot:
    """A slot around ``module`` whose fresh networks have weights of 5 and biases of 6."""

    def build(generator: torch.Generator) -> nn.Module:
        fresh = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in fresh.named_parameters():
                parameter.fill_(5.0 if "weight" in name else 6.0)
        return fresh

    return NetworkSlot(
        module=module,
        optimizer=torch.optim.Adam(module.parameters(), lr=1e-3),
        build=build,
        initial=lambda: build(generator()),
        forward=lambda batch: module(batch),
        loss=lambda batch: module(batch).square().mean(),
        **options,
    )


# ---- units ----


def test_unit_groups_of_a_residual_network() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp, self.norm = nn.Linear(3, 4), nn.LayerNorm(4)
            self.fc1, self.relu, self.fc2 = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)
            self.body, self.tanh = nn.Linear(4, 6), nn.Tanh()
            self.mean, self.log_std = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.inp(x)
            x = x + self.fc2(self.relu(self.fc1(self.norm(x))))
            x = self.tanh(self.body(x))
            return self.mean(x) + self.log_std(x)

    groups = unit_groups(slot_of(Residual(), heads=("mean", "log_std")), torch.randn(5, 3))
    flow = [(g.name, g.producer.name, tuple(c.name for c in g.consumers)) for g in groups]
    assert flow == [("relu", "fc1", ("fc2",)), ("tanh", "body", ("mean", "log_std"))]


def test_redo_on_neighbouring_layers_leaves_zero_between_recycled_units() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with torch.no_grad():
        for layer in (module[0], module[2], module[4]):
            layer.weight.fill_(1.0)
            layer.bias.fill_(0.5)
        module[0].bias[1] = module[2].bias[2] = -1e3
    slot = slot_of(module)
    slot.loss(torch.rand(8, 2)).backward()
    slot.optimizer.step()
    with torch.no_grad():
        for state in slot.optimizer.state.values():
            state["exp_avg"].fill_(9.0)
            state["exp_avg_sq"].fill_(9.0)
        module[0].weight.fill_(1.0)
        module[2].weight.fill_(1.0)
        module[4].weight.fill_(1.0)
    reset_networks({"q": slot}, strategy("redo", dormancy_threshold=0.0), torch.rand(8, 2), generator())
    assert module[0].weight.tolist() == [[1, 1], [5, 5], [1, 1]]
    assert module[0].bias[1] == 0 and module[2].bias[2] == 0 and module[0].bias[0] != 0
    # unit 2 gets fresh incoming weights, except from unit 1, which was recycled itself
    assert module[2].weight.tolist() == [[1, 0, 1], [1, 0, 1], [5, 0, 5]]
    assert module[4].weight.tolist() == [[1, 1, 0]]
    moments = slot.optimizer.state[module[2].weight]
    for key in ("exp_avg", "exp_avg_sq"):
        assert moments[key].tolist() == [[9, 0, 9], [9, 0, 9], [0, 0, 0]]
    assert moments["step"] == 1


def test_redo_of_a_channel_zeroes_its_flattened_inputs() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.copy_(torch.tensor([0.0, -1e3]))
        module[3].weight.fill_(1.0)
    reset_networks({"q": slot_of(module)}, strategy("redo"), torch.rand(4, 1, 3, 3), generator())
    assert module[0].weight.flatten(1).tolist() == [[1] * 4, [5] * 4]
    assert module[3].weight.tolist() == [[1] * 4 + [0] * 4] * 3


def test_redo_recycles_members_of_an_ensemble_separately() -> None:
    slot = make_slot("twin")
    with torch.no_grad():
        slot.module.fc1.bias[1, 3] = -1e3
    before = parameters(slot.module)
    reset_networks({"c": slot}, strategy("redo", dormancy_threshold=0.0), batch_for("twin"), generator())
    changed = (slot.module.fc1.weight != before["fc1.weight"]).any(-1)
    assert changed.nonzero().tolist() == [[1, 3]]
    assert (slot.module.fc2.weight[1, :, 3] == 0).all() and (slot.module.fc2.weight[0, :, 3] != 0).all()


# ---- layerwise variants ----


def test_sr_dqn_and_fire_dqn_treat_convolutions_and_linear_layers_apart() -> None:
    for reset in (strategy("sr_dqn", shrink_factor=0.4), strategy("fire_dqn")):
        slot = make_slot("conv")
        before = parameters(slot.module)
        reset_networks({"q": slot}, reset, None, generator())
        fresh = parameters(slot.build(generator()))
        now = parameters(slot.module)
        for name in ("6.weight", "6.bias", "8.weight", "8.bias"):
            assert torch.equal(now[name], fresh[name])
        if reset.name == "sr_dqn":
            torch.testing.assert_close(now["0.weight"], 0.4 * before["0.weight"] + 0.6 * fresh["0.weight"])
        else:
            assert torch.equal(now["0.bias"], before["0.bias"])
            values = torch.linalg.svdvals(now["3.weight"][:, :, 1, 1].double())
            torch.testing.assert_close(values, torch.full_like(values, (6 / 8) ** 0.5 / 4), rtol=2e-6, atol=0)


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_random_orthogonal_has_fires_spectrum_and_forgets_the_weights(kind: str) -> None:
    first, second = make_slot(kind, seed=0), make_slot(kind, seed=1)
    for slot in (first, second):
        reset_networks({"q": slot}, strategy("random_orthogonal"), None, generator())
    for a, b in zip(first.layers(), second.layers(), strict=True):
        assert torch.equal(a.weight, b.weight)
        values = torch.linalg.svdvals(a.matrices().double())
        torch.testing.assert_close(values, values.mean().expand_as(values), rtol=2e-6, atol=0)


# ---- DASH ----


def test_dash_by_hand() -> None:
    module = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]]))
    direction = torch.tensor([[2.0, 0.0], [-3.0, -4.0], [2.0, 2.0]])
    slot = slot_of(module)
    slot.loss = lambda batch: -(module.weight * direction).sum()
    reset_networks({"q": slot}, strategy("dash", min_shrink=0.1), torch.zeros(8), generator())
    expected = torch.tensor([[1.0, 0.0], [0.3, 0.4], [0.0, 2.0 * 0.5**0.5]])
    torch.testing.assert_close(module.weight.detach(), expected)


def test_dash_follows_the_running_mean_of_minibatch_gradients_and_leaves_norms() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.LayerNorm(1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[3.0, 4.0]]))
        module[0].bias.fill_(2.0)
    slot = slot_of(module)
    # The gradient of minibatch t is minus its first row: (1, 0), then (0, 1); bias and norm have none.
    slot.loss = lambda batch: -(module[0].weight * batch[0]).sum()
    batch = torch.tensor([[1.0, 0.0], [9.0, 9.0], [0.0, 1.0], [9.0, 9.0]])
    reset_networks(
        {"q": slot}, strategy("dash", min_shrink=0.2, alpha=0.3, num_batches=2), batch, generator()
    )
    mean = torch.tensor([0.7 * 0.3, 0.3])
    cosine = float((mean @ torch.tensor([3.0, 4.0])) / (5 * mean.norm()))
    torch.testing.assert_close(module[0].weight.detach(), cosine * torch.tensor([[3.0, 4.0]]))
    assert module[0].bias.item() == pytest.approx(0.4) and module[1].weight.item() == 1.0


def test_minibatches_split_every_kind_of_batch() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        y: torch.Tensor

    x = torch.arange(7)
    first, second = minibatches({"a": Pair(x, 10 * x), "b": [x]}, 2)
    assert first["a"].y.tolist() == [0, 10, 20] and second["b"][0].tolist() == [3, 4, 5]
    assert isinstance(first["a"], Pair) and minibatches(x, 1)[0] is x
    with pytest.raises(ValueError, match="7 samples do not make 8 minibatches"):
        minibatches(x, 8)
    with pytest.raises(TypeError, match="batch of type str"):
        minibatches("batch", 2)


# ---- plasticity injection ----


@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_injection_preserves_outputs_exactly_and_learns_only_the_new_head(kind: str) -> None:
    slot, batch = make_slot(kind), batch_for(kind)
    slot.module.eval()
    before = slot.module(batch)
    learning = sum(p.numel() for p in slot.module.parameters() if p.requires_grad)
    for repetition in range(2):
        reset_networks({"q": slot}, strategy("plasticity_injection"), batch, generator(repetition))
        assert torch.equal(slot.module(batch), before)
        assert torch.equal(slot.target.eval()(batch), before)
        assert sum(p.numel() for p in slot.module.parameters() if p.requires_grad) == learning
    head = slot.module.head if kind == "twin" else slot.module[-1]
    frozen = parameters(head.old), parameters(head.start)
    train_step(slot, batch)
    assert not torch.equal(slot.module.eval()(batch), before)
    for part, values in zip((head.old, head.start), frozen, strict=True):
        assert all(torch.equal(values[name], value) for name, value in part.named_parameters())


def test_injected_structure_is_restored_from_a_state_dict() -> None:
    slot, batch = make_slot("mlp"), batch_for("mlp")
    for repetition in range(2):
        reset_networks({"q": slot}, strategy("plasticity_injection"), batch, generator(repetition))
    train_step(slot, batch)
    saved = copy.deepcopy((slot.module.state_dict(), slot.target.state_dict(), slot.optimizer.state_dict()))
    other = make_slot("mlp", seed=3)
    restore_structure(other, saved[0])
    for part, state in zip((other.module, other.target, other.optimizer), saved, strict=True):
        part.load_state_dict(state)
    for s in (slot, other):
        train_step(s, batch)
    assert isinstance(other.module[5], InjectedHead) and isinstance(other.module[5].old, InjectedHead)
    for name, value in slot.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])
    flags = [[p.requires_grad for p in s.module.parameters()] for s in (slot, other)]
    assert flags[0] == flags[1]


def test_only_resets_that_draw_nothing_can_follow_an_injection() -> None:
    slot, batch = make_slot("mlp"), batch_for("mlp")
    reset_networks({"q": slot}, strategy("plasticity_injection"), batch, generator())
    before = parameters(slot.module)
    with pytest.raises(ValueError, match=r"a fresh network has no q/5\.start\.weight"):
        reset_networks({"q": slot}, strategy("full"), batch, generator())
    assert all(torch.equal(before[name], value) for name, value in slot.module.named_parameters())
    reset_networks({"q": slot}, strategy("fire"), batch, generator())


# ---- continual backprop and self-normalised resets ----


def test_continual_backprop_recycles_the_least_useful_mature_units_at_its_rate() -> None:
    module = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[3.0, -0.1, 2.0, -4.0]]))
    slot = slot_of(module)
    tracker = strategy("cbp", replacement_rate=0.125, maturity=2).tracker()
    batch = torch.ones(4, 1)
    counts = [tracker.after_update({"q": slot}, batch, generator())["q"] for _ in range(4)]
    # Four mature units from the third update on owe half a unit each: one unit after the fourth.
    assert counts == [0, 0, 0, 1]
    assert module[0].weight.flatten().tolist() == [1, 5, 1, 1]
    assert module[2].weight.flatten().tolist() == [3, 0, 2, -4]
    assert tracker.state["q/1"]["age"].tolist() == [[4, 0, 4, 4]]
    utility = 3 * (1 - 0.99**4)
    assert tracker.state["q/1"]["utility"][0, 0].item() == pytest.approx(utility)


def test_continual_backprop_does_not_take_a_young_unit_for_a_useless_one() -> None:
    module = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.fill_(1.0)
        module[0].bias.zero_()
        module[2].weight.copy_(torch.tensor([[1.0, 2.0]]))
    slot = slot_of(module)
    tracker = strategy("cbp", replacement_rate=0.5, maturity=2).tracker()
    tracker.after_update({"q": slot}, torch.ones(4, 1), generator())
    # The more useful unit is younger: its running utility 2 (1 - 0.99^3) lies below 1 (1 - 0.99^101).
    state = tracker.state["q/1"]
    state["age"].copy_(torch.tensor([[100.0, 2.0]]))
    state["utility"].copy_(torch.tensor([[1 - 0.99**100, 2 * (1 - 0.99**2)]]))
    assert tracker.after_update({"q": slot}, torch.ones(4, 1), generator())["q"] == 1
    assert state["age"].tolist() == [[0, 3]]


def test_fresh_weights_are_used_once_and_networks_are_drawn_rarely() -> None:
    slot = make_slot("mlp")
    built = []
    build = slot.build
    slot.build = lambda generator: built.append(1) or build(generator)
    tracker = strategy("cbp", replacement_rate=0.1, maturity=0).tracker()
    rows = set()
    recycled = 0
    for step in range(60):
        before = slot.module[0].weight.detach().clone()
        recycled += tracker.after_update({"net": slot}, batch_for("mlp", step), generator(step))["net"]
        for row in slot.module[0].weight[(slot.module[0].weight != before).any(dim=1)]:
            assert tuple(row.tolist()) not in rows
            rows.add(tuple(row.tolist()))
    assert len(rows) > 16  # more than the layer has units
    assert 1 < len(built) < recycled / 2


def test_self_normalized_resets_judge_a_unit_by_its_own_past() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(2))
        module[0].bias.zero_()
    slot = slot_of(module)
    tracker = strategy("snr", percentile=0.9, min_firings=10, max_silence=100).tracker()
    recycled = []
    for step in range(200):
        active = [1.0, 1.0 if step % 20 == 0 else -1.0]  # unit 0 fires always, unit 1 every 20 updates
        if step >= 190:
            active[0] = -1.0
        tracker.after_update({"q": slot}, torch.tensor([active]), generator())
        if not torch.equal(module[0].weight[0], torch.tensor([1.0, 0.0])):
            recycled.append(step)
            break
    assert recycled == [191]  # second silent update of a unit that never was silent for two
    assert torch.equal(module[0].weight[1], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "reset", [strategy("cbp", replacement_rate=0.2, maturity=1), strategy("snr", max_silence=2)]
)
@pytest.mark.parametrize("kind", list(ARCHITECTURES))
def test_trackers_resume_where_they_stopped_and_draw_from_the_generator_alone(reset, kind: str) -> None:
    slot = make_slot(kind)
    tracker = reset.tracker()
    assert set(tracker.after_update({"net": slot}, batch_for(kind), generator(0))) == {"net"}
    copied = copy.deepcopy(slot.module.state_dict()), copy.deepcopy(slot.optimizer.state_dict())
    resumed_slot, resumed = make_slot(kind, seed=4), reset.tracker()
    resumed_slot.module.load_state_dict(copied[0])
    resumed_slot.optimizer.load_state_dict(copied[1])
    resumed.load_state_dict(tracker.state_dict())
    random_state = torch.random.get_rng_state()
    for step in range(4):
        tracker.after_update({"net": slot}, batch_for(kind, step), generator(step))
        resumed.after_update({"net": resumed_slot}, batch_for(kind, step), generator(step))
    assert torch.equal(random_state, torch.random.get_rng_state())
    for name, value in slot.module.state_dict().items():
        assert torch.equal(value, resumed_slot.module.state_dict()[name])


# ---- regularizers ----


def test_l2_init_and_its_gradient() -> None:
    module = initialise(nn.Linear(3, 2), generator())
    initial = {name: value - 0.5 for name, value in parameters(module).items()}
    loss = l2_init(module, initial, strength=0.1)
    assert loss.item() == pytest.approx(0.5 * 0.1 * 8 * 0.25)
    loss.backward()
    torch.testing.assert_close(module.weight.grad, torch.full((2, 3), 0.05))


def test_parseval_vanishes_on_orthogonal_rows_and_leaves_the_head_alone() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 2), nn.Flatten(), nn.Linear(4, 3))
    nn.init.orthogonal_(module[0].weight)
    assert parseval(module, 1.0).item() == pytest.approx(0, abs=1e-10)
    with torch.no_grad():
        module[0].weight.mul_(2)
        module[2].weight.fill_(7.0)
    assert parseval(module, 0.5).item() == pytest.approx(0.5 * 4 * 9, rel=1e-5)
    parseval(module, 0.5).backward()
    assert module[0].weight.grad.abs().sum() > 0 and module[2].weight.grad is None


def test_parseval_leaves_every_named_head_alone() -> None:
    module = nn.ModuleDict({"body": nn.Linear(3, 3), "mean": nn.Linear(3, 2), "log_std": nn.Linear(3, 2)})
    parseval(module, 1.0, heads=("mean", "log_std")).backward()
    assert module["body"].weight.grad is not None and module["mean"].weight.grad is None


def test_regularizers_know_injected_heads() -> None:
    slot, batch = make_slot("mlp"), batch_for("mlp")
    initial = parameters(slot.initial())
    reset_networks({"q": slot}, strategy("plasticity_injection"), batch, generator())
    expected = sum(
        (value.double() - initial[name].double()).square().sum()
        for name, value in slot.module.named_parameters()
        if name in initial
    )
    assert l2_init(slot.module, initial, 2.0).item() == pytest.approx(float(expected.detach()), rel=1e-5)
    assert parseval(slot.module, 1.0, heads=("5",)).isfinite()


@pytest.mark.parametrize("reset", [strategy("cbp"), strategy("snr")])
def test_what_a_checkpoint_hands_a_tracker_goes_to_the_networks_device(reset) -> None:
    slot, tracker, resumed = make_slot("mlp"), reset.tracker(), reset.tracker()
    tracker.after_update({"net": slot}, batch_for("mlp"), generator())
    resumed.load_state_dict(tracker.state_dict(), "meta")
    assert resumed.state and all(t.is_meta for group in resumed.state.values() for t in group.values())
