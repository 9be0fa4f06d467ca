"""DQN on stacked frames: one update written out, every reset of the registry, plasticity metrics, state."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from agents.dqn import DQN
from agents.replay import Batch
from configs import loader
from configs.schema import DQNConfig
from fire.metrics.cheap import measure
from fire.options import OPTIONS
from fire.resets.injection import InjectedHead
from fire.resets.registry import REGISTRY, reset_networks

ACTIONS, SIZE = 5, 8  # DASH wants a sample for each of its 8 minibatches
# Under these every strategy finds something to do.
NEEDED = {"redo": {"dormancy_threshold": 0.9}}


def make(seed=0, **options):
    config = DQNConfig(learning_rate=1e-3, **options)
    return DQN(config, (4, 84, 84), ACTIONS, 100, 1_000, seed, torch.device("cpu"))


def batch(seed=0, size=SIZE):
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (size, 5, 84, 84), generator=g, dtype=torch.uint8)
    return Batch(
        obs=frames[:, :-1],
        action=torch.randint(ACTIONS, (size,), generator=g),
        reward=torch.randn(size, generator=g),
        discount=torch.where(torch.rand(size, generator=g) < 0.3, 0.0, 0.99),
        next_obs=frames[:, 1:],
    )


@pytest.mark.parametrize("double_q", [False, True])
def test_one_update_equals_the_algorithm_written_out(double_q):
    agent, data = make(double_q=double_q), batch()
    agent.learn(batch(1))  # online and target differ
    q, target = copy.deepcopy(agent.q), agent.target_q
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3, eps=1.5e-4, foreach=False, fused=False)
    optimizer.load_state_dict(copy.deepcopy(agent.optimizer.state_dict()))
    optimizer.param_groups[0].update(fused=False, foreach=False)
    with torch.no_grad():
        values = target(data.next_obs)
        best = (q if double_q else target)(data.next_obs).argmax(1)
        y = data.reward + data.discount * values[torch.arange(SIZE), best]
    loss = F.huber_loss(q(data.obs)[torch.arange(SIZE), data.action], y)
    loss.backward()
    optimizer.step()
    torch.testing.assert_close(agent.learn(data)["loss"], loss.detach())
    for name, value in q.state_dict().items():
        torch.testing.assert_close(agent.q.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_acting_is_greedy_in_the_values_and_takes_bytes():
    agent = make()
    obs = batch().obs.numpy()
    assert np.array_equal(agent.act_greedy(obs), agent.q(batch().obs).argmax(1).numpy())
    assert agent.act(obs, 0).shape == (SIZE,)


@pytest.mark.parametrize("name", list(REGISTRY))
def test_every_reset_applies_and_learning_goes_on(name):
    agent = make()
    agent.learn(batch(1))
    pointers = {n: p.data_ptr() for n, p in agent.q.named_parameters()}
    slot = agent.networks()["q"]
    reset = REGISTRY[name](OPTIONS[name](**NEEDED.get(name, {})))
    data = batch(2, size=SIZE * reset.num_minibatches)
    report = reset_networks({"q": slot}, reset, data, torch.Generator().manual_seed(3)).scalars()
    assert all(np.isfinite(value) for value in report.values())
    if not REGISTRY[name].structural:
        assert pointers == {n: p.data_ptr() for n, p in agent.q.named_parameters()}
    held = {id(p) for group in agent.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in agent.q.parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in agent.q.named_parameters()}
    agent.learn(batch(3))
    for n, p in agent.q.named_parameters():
        assert p.isfinite().all()
        assert torch.equal(p, before[n]) == (not p.requires_grad), n


def test_fire_dqn_and_sr_dqn_treat_convolutions_and_linear_layers_differently():
    for name in ("fire_dqn", "sr_dqn"):
        agent = make()
        agent.learn(batch(1))
        slot = agent.networks()["q"]
        old = {n: p.detach().clone() for n, p in agent.q.named_parameters()}
        reset_networks({"q": slot}, REGISTRY[name](), batch(2), torch.Generator().manual_seed(3))
        new = dict(agent.q.named_parameters())
        fresh = slot.build(torch.Generator().manual_seed(3)).state_dict()
        assert torch.equal(new["head.fc1.weight"], fresh["head.fc1.weight"])
        assert not new["head.fc2.bias"].any()
        conv = "encoder.conv2.weight"
        if name == "fire_dqn":
            # Each of the 16 slices (64, 32) is its polar factor times sqrt(64 / 32) / 16 (FIRE's released scale).
            for slice_old, slice_new in zip(
                old[conv].flatten(2).unbind(2), new[conv].flatten(2).unbind(2), strict=True
            ):
                u, _, vh = torch.linalg.svd(slice_old.double(), full_matrices=False)
                torch.testing.assert_close(
                    slice_new.detach().double(), u @ vh * 2**0.5 / 16, rtol=0, atol=1e-6
                )
            assert torch.equal(new["encoder.conv2.bias"], old["encoder.conv2.bias"])
        else:
            torch.testing.assert_close(new[conv].detach(), 0.2 * old[conv] + 0.8 * fresh[conv])


def test_plasticity_injection_doubles_everything_behind_the_convolutions():
    agent = make()
    agent.learn(batch(1))
    before = agent.q(batch().obs)
    reset_networks(agent.networks(), REGISTRY["plasticity_injection"](), batch(2), torch.Generator())
    assert isinstance(agent.q.head, InjectedHead)
    assert torch.equal(agent.q(batch().obs), before)
    trained = {n for n, p in agent.q.named_parameters() if p.requires_grad}
    layers = ("head.new.fc1", "head.new.fc2", "encoder.conv1", "encoder.conv2", "encoder.conv3")
    assert trained == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    heads = [layer.name for layer in agent.networks()["q"].layers() if layer.role == "head"]
    assert heads == ["head.new.fc2"]
    agent.learn(batch(3))
    copied = make(seed=1)
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    assert torch.equal(agent.learn(batch(4))["loss"], copied.learn(batch(4))["loss"])
    assert torch.equal(agent.q(batch().obs), copied.q(batch().obs))


def test_the_published_injection_rewinds_the_new_head_and_keeps_the_targets_output():
    """FIRE's script: both new heads are the stored first one, a new Adam, a target with heads of its own."""
    config, _ = loader.load(
        ["--algo", "dqn", "--env", "Asterix", "--reset", "plasticity_injection_paper_dqn"]
    )
    agent = make()
    first = {n: p.detach().clone() for n, p in agent.q.head.named_parameters()}
    for seed in range(1, 4):
        agent.learn(batch(seed))
    slot = agent.networks()["q"]
    obs = batch().obs
    outputs = [network(obs).detach() for network in (slot.module, slot.target)]
    assert not torch.equal(*outputs), "the target lags behind"
    reset = REGISTRY[config.reset.strategy](config.reset.options)
    reset_networks({"q": slot}, reset, batch(4), torch.Generator().manual_seed(3))
    for network, output in zip((slot.module, slot.target), outputs, strict=True):
        assert torch.equal(network(obs), output)
        for head in (network.head.new, network.head.start):
            assert all(torch.equal(p, first[n]) for n, p in head.named_parameters())
    for state in slot.optimizer.state.values():
        assert not any(value.any() for value in state.values())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_dormant_units_are_counted_over_batch_and_space(layer_norm):
    agent = make(layer_norm=layer_norm)
    with torch.no_grad():
        agent.q.encoder.conv2.bias[:16] = -1e3  # a quarter of the channels never fires
    data = batch(size=8)
    metrics = measure(agent.networks(), data, dormancy_threshold=0.0)
    activations = {}
    x = data.obs
    for name, module in agent.q.encoder.named_children():
        x = module(x)
        if name.startswith("relu"):
            activations[f"encoder.{name}"] = x.movedim(1, -1).flatten(0, -2).clone()
    activations["head.relu4"] = agent.q.head[:-1](x)
    for name, values in activations.items():
        dormant = (values.abs().sum(0) == 0).float().mean().item()
        assert metrics[f"plasticity_layers/q/dormant_ratio/{name}"] == pytest.approx(dormant)
    assert metrics["plasticity_layers/q/dormant_ratio/encoder.relu2"] >= 0.25
    assert metrics["plasticity/q/srank"] <= 8


@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "pixel_network": "nips"}])
def test_state_round_trip_continues_bit_for_bit(options):
    agent, copied = (make(seed, target_update_period=2, **options) for seed in (0, 3))
    for seed in range(2):
        agent.learn(batch(seed))
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    for seed in range(2, 4):
        assert torch.equal(agent.learn(batch(seed))["loss"], copied.learn(batch(seed))["loss"])
        assert np.array_equal(agent.act(batch().obs.numpy(), 300), copied.act(batch().obs.numpy(), 300))
    for name, value in agent.q.state_dict().items():
        assert torch.equal(value, copied.q.state_dict()[name])
