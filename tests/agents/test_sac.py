"""One SAC update against a plain re-computation with torch.distributions and unfused optimizers; side effects."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from agents.networks import ObservationNormalizer
from agents.replay import Batch
from agents.sac import SAC
from configs.schema import SACConfig

OBS, ACTION, BATCH = 5, 3, 16
CONFIG = SACConfig(actor_width=8, critic_width=12, critic_blocks=1, learning_rate=3e-3)
CPU = torch.device("cpu")


def make(seed=0, config=CONFIG):
    agent = SAC(config, OBS, ACTION, 500, seed, CPU)
    agent.observe(np.random.default_rng(0).normal(2.0, 3.0, (50, OBS)).astype(np.float32))
    return agent


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(BATCH, OBS, generator=g),
        action=torch.rand(BATCH, ACTION, generator=g) * 2 - 1,
        reward=torch.randn(BATCH, generator=g),
        discount=torch.where(torch.rand(BATCH, generator=g) < 0.3, 0.0, 0.99),
        next_obs=torch.randn(BATCH, OBS, generator=g),
    )


def test_one_update_equals_the_algorithm_written_out():
    """Order and formulas of SimBa's SAC: actor, temperature, critics with the new actor and temperature, target."""
    agent, data = make(), batch()
    actor, critic, target = (copy.deepcopy(m) for m in (agent.actor, agent.critic, agent.target_critic))
    log_alpha = torch.tensor(math.log(0.01), requires_grad=True)
    adamw = {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "foreach": False, "fused": False}
    actor_optimizer = torch.optim.AdamW(actor.parameters(), weight_decay=1e-2, **adamw)
    critic_optimizer = torch.optim.AdamW(critic.parameters(), weight_decay=1e-2, **adamw)
    alpha_optimizer = torch.optim.AdamW([log_alpha], weight_decay=0.0, **adamw)
    # The agent's own noise, drawn in the order in which its losses need it.
    noise = torch.Generator()
    noise.set_state(agent.generators["noise"].get_state())

    def policy(obs):
        mean, log_std = actor(obs)
        base = Independent(Normal(mean, log_std.exp()), 1)
        distribution = TransformedDistribution(base, [TanhTransform(cache_size=1)])
        action = torch.tanh(mean + log_std.exp() * torch.randn(mean.shape, generator=noise))
        return action, distribution.log_prob(action)

    action, log_prob = policy(data.obs)
    q1, q2 = critic(data.obs, action)
    (log_alpha.exp().detach() * log_prob - torch.minimum(q1, q2)).mean().backward()
    actor_optimizer.step()
    critic_optimizer.zero_grad()

    entropy = -log_prob.mean().detach()
    (log_alpha.exp() * (entropy - (-0.5 * ACTION))).backward()
    alpha_optimizer.step()

    with torch.no_grad():
        next_action, next_log_prob = policy(data.next_obs)
        t1, t2 = target(data.next_obs, next_action)
        y = data.reward + data.discount * (torch.minimum(t1, t2) - log_alpha.exp() * next_log_prob)
    q1, q2 = critic(data.obs, data.action)
    ((q1 - y) ** 2 + (q2 - y) ** 2).mean().backward()
    critic_optimizer.step()

    agent.learn(data)
    torch.testing.assert_close(agent.temperature.log_alpha, log_alpha)
    for mine, reference in ((agent.actor, actor), (agent.critic, critic)):
        for name, value in reference.state_dict().items():
            torch.testing.assert_close(
                mine.state_dict()[name], value, rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    for (name, value), (_, online), (_, old) in zip(
        agent.target_critic.named_parameters(),
        critic.named_parameters(),
        target.named_parameters(),
        strict=True,
    ):
        torch.testing.assert_close(value, 0.995 * old + 0.005 * online, rtol=1e-4, atol=1e-6, msg=name)


class PlainCritic(torch.nn.Module):
    """One critic in plain layers, with the weights of critic ``index`` of the agent's batched critics."""

    def __init__(self, state, index):
        super().__init__()
        weights = {n: v[index] for n, v in state.items() if not n.startswith("normalizer")}
        self.weights = torch.nn.ParameterDict({n.replace(".", "/"): v.clone() for n, v in weights.items()})

    def forward(self, inputs):
        w = {n.replace("/", "."): v for n, v in self.weights.items()}

        def linear(x, name):
            return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

        x = linear(inputs, "encoder.embed")
        for block in ("encoder.block1", "encoder.block2"):
            hidden = torch.relu(linear(norm(x, f"{block}.norm"), f"{block}.expand"))
            x = x + linear(hidden, f"{block}.project")
        return linear(norm(x, "encoder.norm"), "value").squeeze(-1)


def test_updates_equal_two_separate_critics_with_autograds_own_gradients():
    """The batched critics, their hand-written weight gradient and the frozen pass against plain layers."""
    agent = make(config=dataclasses.replace(CONFIG, critic_blocks=2))
    actor = copy.deepcopy(agent.actor)
    critics, targets = (
        [PlainCritic(m.state_dict(), i) for i in range(2)] for m in (agent.critic, agent.target_critic)
    )
    log_alpha = torch.tensor(math.log(0.01), requires_grad=True)
    plain = {"lr": 3e-3, "foreach": False, "fused": False}
    actor_optimizer = torch.optim.AdamW(actor.parameters(), **plain)
    alpha_optimizer = torch.optim.AdamW([log_alpha], weight_decay=0.0, **plain)
    critic_optimizers = [torch.optim.AdamW(q.parameters(), **plain) for q in critics]
    noise = torch.Generator()
    noise.set_state(agent.generators["noise"].get_state())

    def low(models, obs, action):
        inputs = torch.cat([actor.normalizer(obs), action], 1)
        return torch.minimum(*(model(inputs) for model in models))

    def policy(obs):
        mean, log_std = actor(obs)
        raw = mean + log_std.exp() * torch.randn(mean.shape, generator=noise)
        log_prob = Normal(mean, log_std.exp()).log_prob(raw) - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return torch.tanh(raw), log_prob.sum(1)

    def descend(optimizer, loss):
        parameters = optimizer.param_groups[0]["params"]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()

    for seed in range(4):
        data = batch(seed)
        action, log_prob = policy(data.obs)
        descend(
            actor_optimizer, (log_alpha.exp().detach() * log_prob - low(critics, data.obs, action)).mean()
        )
        descend(alpha_optimizer, log_alpha.exp() * (0.5 * ACTION - log_prob.detach().mean()))
        with torch.no_grad():
            action, log_prob = policy(data.next_obs)
            value = low(targets, data.next_obs, action) - log_alpha.exp() * log_prob
            wanted = data.reward + data.discount * value
        inputs = torch.cat([actor.normalizer(data.obs), data.action], 1)
        for critic, optimizer in zip(critics, critic_optimizers, strict=True):
            descend(optimizer, F.mse_loss(critic(inputs), wanted))
        with torch.no_grad():
            for critic, target in zip(critics, targets, strict=True):
                for online, slow in zip(critic.parameters(), target.parameters(), strict=True):
                    slow.mul_(1 - 0.005).add_(online, alpha=0.005)
        agent.learn(data)

    torch.testing.assert_close(agent.temperature.log_alpha, log_alpha)
    for mine, reference in zip(agent.actor.parameters(), actor.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-4)
    for batched, separate in ((agent.critic, critics), (agent.target_critic, targets)):
        for index, model in enumerate(separate):
            for name, value in model.weights.items():
                mine = batched.get_parameter(name.replace("/", "."))[index]
                torch.testing.assert_close(
                    mine, value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
                )


def test_target_critic_is_a_copy_that_shares_the_normalizer():
    agent = make()
    assert agent.target_critic.normalizer is agent.critic.normalizer is agent.actor.normalizer
    assert len(list(agent.critic.parameters())) == len(list(agent.target_critic.parameters()))
    for online, target in zip(agent.critic.parameters(), agent.target_critic.parameters(), strict=True):
        assert torch.equal(online, target) and online.data_ptr() != target.data_ptr()
        assert not target.requires_grad


def test_twin_critics_and_actor_start_from_different_draws():
    agent = make()
    first, second = agent.critic.value.weight
    assert not torch.equal(first, second)
    other = make(seed=1)
    assert not torch.equal(agent.actor.mean.weight, other.actor.mean.weight)
    assert torch.equal(agent.actor.mean.weight, make().actor.mean.weight)


def test_initial_networks_are_the_runs_first_weights_even_after_training():
    agent = make()
    first = {name: copy.deepcopy(slot.module.state_dict()) for name, slot in agent.networks().items()}
    agent.learn(batch())
    for name, slot in agent.networks().items():
        for key, value in slot.initial().named_parameters():
            assert torch.equal(value, first[name][key])


def test_acting_is_in_bounds_explores_and_leaves_statistics_alone():
    agent = make()
    obs = np.random.default_rng(1).normal(size=(4, OBS)).astype(np.float32)
    count = agent.normalizer.count.clone()
    one, two = agent.act(obs, 0), agent.act(obs, 0)
    assert one.shape == (4, ACTION) and one.dtype == np.float32
    assert (np.abs(one) <= 1).all() and not np.array_equal(one, two)
    greedy = agent.act_greedy(obs)
    assert np.array_equal(greedy, agent.act_greedy(obs))
    mean, _ = agent.actor(torch.as_tensor(obs))
    np.testing.assert_allclose(greedy, torch.tanh(mean).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert torch.equal(agent.normalizer.count, count)


def test_probe_losses_are_deterministic_and_touch_nothing():
    agent, data = make(), batch()
    agent.learn(data)
    before = copy.deepcopy(agent.state_dict())
    for slot in agent.networks().values():
        assert torch.equal(slot.loss(data), slot.loss(data))
    after = agent.state_dict()
    assert torch.equal(before["noise"], after["noise"])
    for name in ("actor", "critic", "target_critic"):
        for key, value in before[name].items():
            assert torch.equal(value, after[name][key])


def test_reset_temperature_restores_value_and_optimizer():
    agent = make()
    for _ in range(3):
        agent.learn(batch())
    assert agent.temperature.log_alpha.item() != pytest.approx(math.log(0.01), abs=1e-6)
    agent.reset_temperature()
    assert agent.temperature.log_alpha.item() == pytest.approx(math.log(0.01))
    assert all(not value.any() for value in agent.alpha_optimizer.state[agent.temperature.log_alpha].values())


def test_reset_normalizer_forgets_observations_in_place():
    agent = make()
    first = dict(ObservationNormalizer(len(agent.normalizer.mean)).named_buffers())
    storage = agent.normalizer.mean.data_ptr()
    agent.observe(5 + np.arange(4 * first["mean"].numel(), dtype=np.float32).reshape(4, -1))
    assert not torch.equal(agent.normalizer.shift, first["shift"])
    agent.reset_normalizer()
    assert all(torch.equal(value, first[name]) for name, value in agent.normalizer.named_buffers())
    assert agent.normalizer.mean.data_ptr() == storage


def test_state_round_trip_continues_bit_for_bit():
    agent, copied = make(), make(seed=7)
    for seed in range(3):
        agent.learn(batch(seed))
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    obs = np.ones((2, OBS), np.float32)
    for seed in range(3, 6):
        one, two = agent.learn(batch(seed)), copied.learn(batch(seed))
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert np.array_equal(agent.act(obs, 0), copied.act(obs, 0))
    assert copied.update_step == 6


def test_discount_rule_of_simba():
    # L = 1000 frames at action repeat 2 is 500 transitions: 0.99; clipped to [0.95, 0.995].
    assert make().gamma == pytest.approx(0.99)
    assert SAC(CONFIG, OBS, ACTION, 50, 0, CPU).gamma == pytest.approx(0.95)
    assert SAC(CONFIG, OBS, ACTION, 5_000, 0, CPU).gamma == pytest.approx(0.995)
    assert SAC(SACConfig(actor_width=8, critic_width=8, gamma=0.9), OBS, ACTION, 500, 0, CPU).gamma == 0.9
