"""TD3: one update written out with plain layers, the delay, exploration, state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents.networks import mlp
from agents.replay import Batch
from agents.td3 import TD3
from configs.schema import TD3Config

OBS, ACTION, BATCH = 4, 2, 8
CONFIG = TD3Config(hidden_widths=(16, 8), learning_rate=1e-2)


def make(seed=0):
    return TD3(CONFIG, OBS, ACTION, seed, torch.device("cpu"))


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, BATCH, OBS, generator=g)
    action = torch.rand(BATCH, ACTION, generator=g) * 2 - 1
    discount = torch.where(torch.rand(BATCH, generator=g) < 0.3, 0.0, 0.99)
    return Batch(obs, action, torch.randn(BATCH, generator=g), discount, next_obs)


def q_value(critic, index, obs, action):
    """One critic as three plain layers."""
    x = torch.cat([obs, action], 1)
    for name in ("hidden1", "hidden2", "output"):
        layer = critic.get_submodule(name)
        x = nn.functional.linear(x, layer.weight[index], layer.bias[index])
        x = x if name == "output" else x.relu()
    return x.squeeze(1)


def test_two_updates_equal_the_algorithm_written_out():
    """Algorithm 1 of Fujimoto et al. 2018: critics in both updates, actor and targets in the second."""
    agent = make()
    actor, critic = copy.deepcopy(agent.actor), copy.deepcopy(agent.critic)
    targets = copy.deepcopy((agent.target_actor, agent.target_critic))
    plain = {"lr": 1e-2, "foreach": False, "fused": False}
    actor_optimizer = torch.optim.Adam(actor.parameters(), **plain)
    critic_optimizer = torch.optim.Adam(critic.parameters(), **plain)
    for number in (1, 2):
        data, noise = batch(number), 3 * torch.randn(BATCH, ACTION)  # large: some of it is clipped
        losses = agent.learn(data, noise)
        assert ("actor_loss" in losses) == (number == 2)
        with torch.no_grad():
            smoothing = (0.2 * noise).clamp(-0.5, 0.5)
            next_action = (torch.tanh(targets[0](data.next_obs)) + smoothing).clamp(-1, 1)
            next_q = torch.minimum(*(q_value(targets[1], i, data.next_obs, next_action) for i in range(2)))
            y = data.reward + data.discount * next_q
        q = [q_value(critic, i, data.obs, data.action) for i in range(2)]
        critic_loss = sum(((each - y) ** 2).mean() for each in q)
        torch.testing.assert_close(losses["critic_loss"], critic_loss.detach())
        torch.testing.assert_close(losses["q_mean"], torch.stack(q).mean().detach())
        critic_optimizer.zero_grad()
        critic_loss.backward()
        critic_optimizer.step()
        if number == 2:
            actor_loss = -q_value(critic, 0, data.obs, torch.tanh(actor(data.obs))).mean()
            torch.testing.assert_close(losses["actor_loss"], actor_loss.detach())
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            for target, online in zip(targets, (actor, critic), strict=True):
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.data.mul_(0.995).add_(fast.data, alpha=0.005)
        pairs = ((agent.actor, actor), (agent.critic, critic))
        pairs += ((agent.target_actor, targets[0]), (agent.target_critic, targets[1]))
        for ours, theirs in pairs:
            for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert agent.update_pattern(4) == (1, 3)


def test_exploration_adds_clipped_noise_to_the_greedy_action():
    agent, obs = make(), np.random.default_rng(0).normal(size=(20_000, OBS)).astype(np.float32)
    greedy, taken = agent.act_greedy(obs), agent.act(obs, 0)
    assert greedy.shape == taken.shape == (20_000, ACTION) and taken.dtype == np.float32
    assert np.abs(taken).max() <= 1 and np.abs(greedy).max() < 0.85
    assert (taken - greedy).std() == pytest.approx(0.1, rel=0.02)
    assert not np.array_equal(agent.act(obs, 0), taken)


def test_first_weights_are_pytorchs_own_distribution():
    """Uniform within 1 / sqrt(fan in), for single layers and for those of the ensemble."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for net in (mlp([50, 400, 300, 1]), mlp([50, 400, 300, 1], 2)):
            for name, fan_in in (("hidden1", 50), ("hidden2", 400)):
                for parameter in net.get_submodule(name).parameters():
                    assert parameter.abs().max() <= fan_in**-0.5
                    assert parameter.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)


def test_a_restored_agent_goes_on_as_the_original():
    agent, obs = make(), np.ones((3, OBS), np.float32)
    for number in range(3):
        agent.learn(batch(number))
    copied = make(seed=5)
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    for number in range(3):
        one, other = agent.learn(batch(number)), copied.learn(batch(number))
        assert one == other
        assert np.array_equal(agent.act(obs, 0), copied.act(obs, 0))
