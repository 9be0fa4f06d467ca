"""What a reset keeps of a network: its policy, its values and its features on a probe batch, before against after."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..network.memory import as_numbers
from ..network.probe import leave_no_trace, record_forward
from ..network.slot import NetworkSlot, Policy

KEPT = ("policy_kl", "greedy_agreement", "action_mse", "value_correlation", "feature_cka")


class Behaviour(NamedTuple):
    """What a network does on a batch.

    Attributes:
        policy: see ``NetworkSlot.policy``; None: it is no policy.
        values: (networks, predictions); None: it predicts no values.
        features: the head's inputs, (networks, samples, features); None: it has no head.
    """

    policy: Policy | None
    values: Tensor | None
    features: Tensor | None


def behaviour(slot: NetworkSlot, batch: Any) -> Behaviour:
    """Look at a network on ``batch`` without leaving a trace; two forward passes at most."""
    seen = record_forward(slot, batch)
    values = None
    if slot.predicts_values:
        values = seen.output.double().reshape(slot.ensemble_size or 1, -1)
    if slot.policy is None:
        return Behaviour(None, values, seen.features)
    with leave_no_trace(slot), torch.no_grad():
        return Behaviour(slot.policy(batch), values, seen.features)


def kept(before: Behaviour, after: Behaviour) -> dict[str, float]:
    """Compare two looks at a network on one batch, under those of the names ``KEPT`` that apply.

    ``greedy_agreement`` is for greedy actions, ``policy_kl`` for Gaussian policies, ``action_mse`` for deterministic
    ones. Networks of an ensemble are compared one by one and averaged. What does not exist, such as the correlation of
    values that are all equal, is left out.
    """
    return all_kept({"": before}, {"": after})[""]


def all_kept(before: Mapping[str, Behaviour], after: Mapping[str, Behaviour]) -> dict[str, dict[str, float]]:
    """:func:`kept` of several networks by name; the host waits for a GPU once for all of them."""
    compared = {name: _compared(seen, after[name]) for name, seen in before.items()}
    numbers = as_numbers(
        {(name, key): value for name, each in compared.items() for key, value in each.items()}
    )
    return {
        name: {key: numbers[name, key] for key in each if math.isfinite(numbers[name, key])}
        for name, each in compared.items()
    }


def _compared(before: Behaviour, after: Behaviour) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if before.policy is not None and after.policy is not None:
        found |= _policies(before.policy, after.policy)
    if before.values is not None and after.values is not None:
        found["value_correlation"] = correlation(before.values, after.values).mean()
    if before.features is not None and after.features is not None:
        pairs = zip(before.features, after.features, strict=True)
        found["feature_cka"] = torch.stack([linear_cka(old, new) for old, new in pairs]).mean()
    return found


def _policies(before: Policy, after: Policy) -> dict[str, Tensor]:
    if isinstance(before, tuple) and isinstance(after, tuple):
        return {"policy_kl": gaussian_kl(*before, *after)}
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    if before.is_floating_point():
        return {"action_mse": (before.double() - after.double()).square().mean()}
    return {"greedy_agreement": (before == after).double().mean()}


def gaussian_kl(mean: Tensor, log_std: Tensor, new_mean: Tensor, new_log_std: Tensor) -> Tensor:
    """KL(old || new) of diagonal Gaussians (samples, dimensions) in nats, summed over dimensions, mean over samples.

    A function that both are passed through, such as the tanh of a squashed policy, does not change it as long as the
    function can be inverted.
    """
    mean, log_std, new_mean, new_log_std = (each.double() for each in (mean, log_std, new_mean, new_log_std))
    squares = (2 * (log_std - new_log_std)).exp() + ((mean - new_mean) * (-new_log_std).exp()).square()
    return (new_log_std - log_std + 0.5 * squares - 0.5).sum(-1).mean()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension; NaN where one of them does not vary."""
    first, second = (x.double() - x.double().mean(-1, keepdim=True) for x in (first, second))
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear centred kernel alignment of two sets of features (Kornblith et al. 2019, arXiv 1905.00414, section 3).

    ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) for features centred over the samples: 1 where they agree up to a rotation
    and one factor, 0 where no direction of one varies with the other. It is computed from the samples' Gram matrices.

    Args:
        first, second: (samples, features), of as many samples; the numbers of features may differ.

    Returns:
        Scalar float64; NaN where one of them does not vary.
    """
    grams = []
    for features in (first, second):
        centred = features.double() - features.double().mean(0)
        grams.append(centred @ centred.mT)
    return (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())
