"""Losses and targets as pure functions of tensors; B batch, E critics, A action size.

No function here knows ``terminated``: the replay buffer folds it into ``discount`` (gamma**n, or 0 after an end).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def tanh_gaussian_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparameterised action and its log-probability under a tanh-squashed Gaussian.

    Args:
        mean, log_std, noise: ``(B, A)``, noise standard normal.

    Returns:
        action ``(B, A)`` in (-1, 1) and log-probability ``(B,)``:
        ``log N(u; mean, std) - sum log(1 - tanh(u)^2)`` (Haarnoja et al. 2018, arXiv 1812.05905, appendix C),
        the last term in the form ``2 (log 2 - u - softplus(-2u))``, which does not cancel for large ``|u|``.
    """
    pre_tanh = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_det = 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))
    return torch.tanh(pre_tanh), (log_normal - log_det).sum(-1)


def sac_td_target(
    reward: Tensor, discount: Tensor, next_q: Tensor, next_log_prob: Tensor, alpha: Tensor
) -> Tensor:
    """Soft target ``r + discount (min_e Q'_e - alpha log pi)`` (Haarnoja et al. 2018, equation 6, clipped critics).

    Args:
        reward, discount, next_log_prob: ``(B,)``.
        next_q: ``(E, B)`` from the target network.
        alpha: temperature, scalar.

    Returns:
        ``(B,)`` without gradient.
    """
    return (reward + discount * (next_q.amin(0) - alpha * next_log_prob)).detach()


def sac_critic_loss(q: Tensor, td_target: Tensor) -> Tensor:
    """Mean squared error summed over critics, without the factor 1/2 (as SimBa): ``q (E, B)``, target ``(B,)``."""
    return (q - td_target).square().mean(1).sum()


def sac_actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """``mean(alpha log pi - min_e Q_e)`` (Haarnoja et al. 2018, equation 7): ``q (E, B)``, ``log_prob (B,)``."""
    return (alpha * log_prob - q.amin(0)).mean()


def temperature_loss(log_alpha: Tensor, entropy: Tensor, target_entropy: float) -> Tensor:
    """``alpha (entropy - target)`` with the gradient through ``exp`` (equation 18 as SimBa writes it)."""
    return log_alpha.exp() * (entropy.detach() - target_entropy)


def dqn_td_target(reward: Tensor, discount: Tensor, next_q_target: Tensor, next_q_select: Tensor) -> Tensor:
    """``r + discount Q'(s', argmax_a Q_select(s', a))``.

    ``next_q_select`` is the target network's own values for DQN (Mnih et al. 2015) and the online network's for
    Double DQN (van Hasselt et al. 2016, equation 4). Q-values are ``(B, num_actions)``; returns ``(B,)`` detached.
    """
    action = next_q_select.argmax(1, keepdim=True)
    return (reward + discount * next_q_target.gather(1, action).squeeze(1)).detach()


def dqn_loss(q: Tensor, action: Tensor, td_target: Tensor) -> Tensor:
    """Mean Huber loss with threshold 1 on the taken actions: ``q (B, num_actions)``, ``action (B,)`` int64."""
    taken = q.gather(1, action.unsqueeze(1)).squeeze(1)
    return F.smooth_l1_loss(taken, td_target)
