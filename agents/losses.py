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


def dqn_loss(q: Tensor, action: Tensor, td_target: Tensor, kind: str = "huber") -> Tensor:
    """Mean loss on the taken actions, ``q (B, num_actions)``, ``action (B,)`` int64: Huber with threshold 1, or mse."""
    taken = q.gather(1, action.unsqueeze(1)).squeeze(1)
    return F.mse_loss(taken, td_target) if kind == "mse" else F.smooth_l1_loss(taken, td_target)


def categorical_td_target(
    atoms: Tensor,
    reward: Tensor,
    discount: Tensor,
    next_log_probs: Tensor,
    next_log_prob: Tensor,
    alpha: Tensor,
) -> Tensor:
    """Distribution of the soft target on ``atoms`` (Bellemare et al. 2017, arXiv 1707.06887, equation 7).

    The next state's distribution is that of the critic with the smaller mean (XQC, arXiv 2509.25174, released code).
    Each of its atoms moves to ``r + discount (z - alpha log pi)``, is clipped to the range of the atoms, and gives its
    mass to its two neighbours, to the nearer one more.

    Args:
        atoms: ``(M,)`` values at equal distances, rising.
        reward, discount, next_log_prob: ``(B,)``, the last one of the action that the policy takes next.
        next_log_probs: ``(E, B, M)`` logarithms of the target network's probabilities of the atoms.
        alpha: temperature, scalar.

    Returns:
        ``(B, M)`` probabilities without gradient.
    """
    probs = next_log_probs.exp()
    smaller = (probs * atoms).sum(-1).argmin(0)
    probs = probs.gather(0, smaller[None, :, None].expand(1, -1, len(atoms))).squeeze(0)
    moved = reward.unsqueeze(1) + discount.unsqueeze(1) * (atoms - alpha * next_log_prob.unsqueeze(1))
    moved = moved.clamp(atoms[0], atoms[-1])
    # Sums of dense shares instead of additions at indices, whose order on a GPU differs from run to run.
    distance = (moved.unsqueeze(2) - atoms).abs() / (atoms[1] - atoms[0])
    return ((1.0 - distance).clamp(min=0.0) * probs.unsqueeze(2)).sum(1).detach()


def categorical_critic_loss(log_probs: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy summed over critics: ``log_probs (E, B, M)``, ``target (B, M)`` probabilities."""
    return -(target * log_probs).sum(-1).mean(1).sum()
