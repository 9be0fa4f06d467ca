"""DQN: exploration, one update against a plain re-computation, target copies, state."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents.dqn import DQN
from agents.replay import Batch
from configs.schema import DQNConfig

OBS, ACTIONS = 4, 3


def make(seed=0, **options):
    config = DQNConfig(hidden_widths=(16, 16), learning_rate=1e-2, **options)
    return DQN(
        config, (OBS,), ACTIONS, learning_starts=100, total_steps=1_000, seed=seed, device=torch.device("cpu")
    )


def batch(seed=0, size=8):
    g = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(size, OBS, generator=g),
        action=torch.randint(ACTIONS, (size,), generator=g),
        reward=torch.randn(size, generator=g),
        discount=torch.where(torch.rand(size, generator=g) < 0.3, 0.0, 0.99),
        next_obs=torch.randn(size, OBS, generator=g),
    )


def test_epsilon_schedule_and_its_frequency():
    agent = make(epsilon_end=0.1, epsilon_fraction=0.5)
    assert [agent.epsilon(step) for step in (0, 100, 350, 600, 999)] == pytest.approx(
        [1.0, 1.0, 0.55, 0.1, 0.1]
    )
    obs = np.zeros((20_000, OBS), np.float32)
    greedy = agent.act_greedy(obs[:1])[0]
    share = np.mean(agent.act(obs, 350) != greedy)
    # Explores with 0.55 and then differs from greedy in 2 of 3 draws; standard error 0.0034.
    assert share == pytest.approx(0.55 * 2 / 3, abs=5 * 0.0034)


def test_every_environment_draws_for_itself():
    agent = make(epsilon_start=0.5)
    obs = np.zeros((2, OBS), np.float32)
    greedy = agent.act_greedy(obs)[0]
    explored = np.array([agent.act(obs, 0) != greedy for _ in range(3_000)])
    # One joint draw for all environments, as in the published script, would give a correlation far above zero.
    assert abs(np.corrcoef(explored.T)[0, 1]) < 5 / np.sqrt(3_000)


@pytest.mark.parametrize("kind", ["huber", "mse"])
@pytest.mark.parametrize("double_q", [False, True])
def test_one_update_equals_the_algorithm_written_out(double_q, kind):
    agent, data = make(double_q=double_q, loss=kind), batch()
    for parameter in agent.target_q.parameters():
        nn.init.normal_(parameter, std=0.3)
    q, target = copy.deepcopy(agent.q), agent.target_q
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-2, eps=1.5e-4, foreach=False, fused=False)
    loss = 0.0
    for i in range(8):
        with torch.no_grad():
            values = target(data.next_obs[i])
            best = (q if double_q else target)(data.next_obs[i]).argmax()
            y = data.reward[i] + data.discount[i] * values[best]
        error = (q(data.obs[i])[data.action[i]] - y).abs()
        huber = torch.where(error < 1, 0.5 * error**2, error - 0.5)
        loss = loss + (error**2 if kind == "mse" else huber) / 8
    loss.backward()
    optimizer.step()
    losses = agent.learn(data)
    torch.testing.assert_close(losses["loss"], loss.detach())
    for name, value in q.state_dict().items():
        torch.testing.assert_close(agent.q.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_betas_and_weight_decay_are_those_of_adamw_written_out():
    agent, data = make(adam_betas=(0.5, 0.7), weight_decay=0.1), batch()
    reference = make()
    mean = square = torch.zeros_like(agent.q.hidden1.weight)
    for _ in range(3):
        weight = agent.q.hidden1.weight.detach().clone()
        reference.q.load_state_dict(agent.q.state_dict())
        reference.target_q.load_state_dict(agent.target_q.state_dict())
        reference.learn(data)
        gradient = reference.q.hidden1.weight.grad
        step = agent.update_step + 1
        mean = 0.5 * mean + 0.5 * gradient
        square = 0.7 * square + 0.3 * gradient**2
        moved = 1e-2 * (mean / (1 - 0.5**step)) / ((square / (1 - 0.7**step)).sqrt() + 1.5e-4)
        agent.learn(data)
        torch.testing.assert_close(
            agent.q.hidden1.weight, weight * (1 - 1e-2 * 0.1) - moved, rtol=1e-4, atol=1e-6
        )


def test_target_is_copied_on_its_period_and_only_then():
    agent = make(target_update_period=3)
    first = copy.deepcopy(agent.target_q.state_dict())
    for step in range(1, 7):
        agent.learn(batch(step))
        same_as_online = all(
            torch.equal(v, agent.q.state_dict()[k]) for k, v in agent.target_q.state_dict().items()
        )
        assert same_as_online == (step % 3 == 0)
        if step < 3:
            assert all(torch.equal(v, first[k]) for k, v in agent.target_q.state_dict().items())


def test_state_round_trip_continues_bit_for_bit():
    agent, copied = make(target_update_period=2), make(seed=3, target_update_period=2)
    for seed in range(3):
        agent.learn(batch(seed))
    copied.load_state_dict(copy.deepcopy(agent.state_dict()))
    obs = np.random.default_rng(0).normal(size=(6, OBS)).astype(np.float32)
    for seed in range(3, 6):
        assert torch.equal(agent.learn(batch(seed))["loss"], copied.learn(batch(seed))["loss"])
        assert np.array_equal(agent.act(obs, 300), copied.act(obs, 300))
    for name, value in agent.target_q.state_dict().items():
        assert torch.equal(value, copied.target_q.state_dict()[name])


def test_seeds_decide_the_first_weights():
    assert torch.equal(make().q.hidden1.weight, make().q.hidden1.weight)
    assert not torch.equal(make().q.hidden1.weight, make(seed=1).q.hidden1.weight)
    agent = make()
    first = agent.q.hidden1.weight.clone()
    agent.learn(batch())
    assert torch.equal(agent.networks()["q"].initial()[0].weight, first)
