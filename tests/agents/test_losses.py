"""Losses against torch.distributions and numbers worked out by hand."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from agents import losses


def test_tanh_gaussian_sample_matches_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    # Small enough that the reference, which goes back through atanh, keeps its digits.
    mean, log_std, noise = 0.5 * torch.randn(3, 64, 5, dtype=torch.float64, generator=generator)
    action, log_prob = losses.tanh_gaussian_sample(mean, log_std, noise)
    base = Independent(Normal(mean, log_std.exp()), 1)
    reference = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    torch.testing.assert_close(action, torch.tanh(mean + log_std.exp() * noise))
    torch.testing.assert_close(log_prob, reference.log_prob(action), rtol=1e-7, atol=1e-7)


def test_tanh_log_prob_is_finite_where_tanh_saturates():
    action, log_prob = losses.tanh_gaussian_sample(
        torch.tensor([[40.0]]), torch.zeros(1, 1), torch.zeros(1, 1)
    )
    # log N(0; 0, 1) - log(1 - tanh(40)^2), the latter being log 4 - 80 up to terms of order e^-80.
    assert action.item() == 1.0
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - (math.log(4.0) - 80.0))


def test_sac_td_target_by_hand():
    target = losses.sac_td_target(
        reward=torch.tensor([1.0, 2.0]),
        discount=torch.tensor([0.9, 0.0]),
        next_q=torch.tensor([[5.0, 7.0], [4.0, 8.0]]),
        next_log_prob=torch.tensor([2.0, 1.0]),
        alpha=torch.tensor(0.5),
    )
    # 1 + 0.9 (min(5, 4) - 0.5 * 2) = 3.7; a terminated transition is its reward alone.
    torch.testing.assert_close(target, torch.tensor([3.7, 2.0]))


def test_sac_critic_loss_by_hand():
    q = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # (0^2 + 1^2) / 2 + (2^2 + 1^2) / 2
    assert losses.sac_critic_loss(q, torch.tensor([1.0, 1.0])).item() == 3.0


def test_sac_actor_loss_by_hand():
    q = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    # mean(0.1 * (2, 4) - (1, 0))
    loss = losses.sac_actor_loss(q, torch.tensor([2.0, 4.0]), torch.tensor(0.1))
    assert loss.item() == pytest.approx(((0.2 - 1.0) + (0.4 - 0.0)) / 2)


def test_temperature_gradient_goes_through_exp():
    log_alpha = torch.tensor(math.log(0.2), requires_grad=True)
    losses.temperature_loss(log_alpha, entropy=torch.tensor(1.5), target_entropy=-0.5).backward()
    assert log_alpha.grad.item() == pytest.approx(0.2 * 2.0)


def test_dqn_and_double_dqn_targets_by_hand():
    reward, discount = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0])
    target_values = torch.tensor([[1.0, 4.0], [9.0, 9.0]])
    online_values = torch.tensor([[3.0, 2.0], [0.0, 1.0]])
    plain = losses.dqn_td_target(reward, discount, target_values, target_values)
    double = losses.dqn_td_target(reward, discount, target_values, online_values)
    torch.testing.assert_close(plain, torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(double, torch.tensor([1.5, 1.0]))


def test_dqn_loss_is_huber_on_the_taken_actions():
    q = torch.tensor([[0.0, 0.5], [3.0, 0.0]])
    # errors 0.5 (quadratic: 0.125) and 3 (linear: 2.5)
    loss = losses.dqn_loss(q, torch.tensor([1, 0]), torch.tensor([0.0, 0.0]))
    assert loss.item() == pytest.approx((0.125 + 2.5) / 2)
