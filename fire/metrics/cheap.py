"""Plasticity metrics as pure functions with their definitions, and ``measure``, which collects them for all networks.

The networks of an ensemble are measured one by one and averaged, never stacked: two critics with three useful
directions each have rank three, not six. Definitions and sources of every key stand in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.probe import leave_no_trace, record_forward
from ..network.scale import layer_scale
from ..network.slot import NetworkSlot
from ..polar.isometry import dfi_of_gram, short_gram

METRIC_KEYS = (
    "plasticity/<network>/dfi",
    "plasticity/<network>/dfi/<layer>",
    "plasticity/<network>/dfi_scaled",
    "plasticity/<network>/dfi_scaled/<layer>",
    "plasticity/<network>/dormant_ratio",
    "plasticity/<network>/dormant_ratio/<layer>",
    "plasticity/<network>/zero_activation_ratio",
    "plasticity/<network>/zero_activation_ratio/<layer>",
    "plasticity/<network>/srank",
    "plasticity/<network>/effective_rank",
    "plasticity/<network>/feature_norm",
    "plasticity/<network>/weight_norm",
    "plasticity/<network>/weight_norm/<layer>",
    "plasticity/<network>/gradient_norm",
)


def dormant_units(activations: Tensor, threshold: float) -> Tensor:
    """Mark units with score E|h_i| / mean_k E|h_k| at most ``threshold`` (Sokar et al. 2023, arXiv
    2302.12902, eq. 1).

    Args:
        activations: (..., samples, units), after the nonlinearity. The mean over k runs over the units of
            one layer.
        threshold: the paper's tau.

    Returns:
        (..., units), bool. Where every unit of a layer is silent, all are dormant.
    """
    size = activations.double().abs().mean(dim=-2)
    return size <= threshold * size.mean(dim=-1, keepdim=True)


def zero_units(activations: Tensor) -> Tensor:
    """Mark units that are exactly zero on every sample; (..., samples, units) to (..., units), bool."""
    return (activations == 0).all(dim=-2)


def srank(features: Tensor, threshold: float = 0.01) -> float:
    """Smallest k whose leading singular values hold at least 1 - threshold of their sum (Kumar et al. 2021,
    arXiv 2010.14498, eq. 1).

    Args:
        features: (samples, features). All-zero features have srank 0.
    """
    shares = _singular_value_shares(features)
    return float((shares.cumsum(0) < (1 - threshold) * shares.sum()).sum() + 1) if shares.sum() > 0 else 0.0


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for all-zero features.

    Args:
        features: (samples, features).
    """
    shares = _singular_value_shares(features)
    return float(torch.special.entr(shares).sum().exp()) if shares.sum() > 0 else 0.0


def feature_norm(features: Tensor) -> float:
    """Mean Euclidean norm of a sample's features; ``features`` is (samples, features)."""
    return float(torch.linalg.vector_norm(features.double(), dim=-1).mean())


def joint_norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all elements of all tensors together."""
    return float(sum((t.double().square().sum() for t in tensors), torch.zeros(())).sqrt())


def measure(
    slots: Mapping[str, NetworkSlot],
    batch: Any,
    *,
    dormancy_threshold: float = 0.1,
    srank_threshold: float = 0.01,
) -> dict[str, float]:
    """Measure every network on ``batch`` and return the figures under the keys of ``METRIC_KEYS``.

    Leaves parameters, ``.grad``, optimizer, buffers, training mode and the global random state as they
    were. Metrics a network cannot have are left out: dormancy without activation modules, ranks without a
    head.
    """
    scalars: dict[str, float] = {}
    for network, slot in slots.items():
        prefix = f"plasticity/{network}"
        scalars |= {f"{prefix}/{key}": value for key, value in _weights(slot).items()}
        scalars |= {
            f"{prefix}/{key}": value
            for key, value in _activations(slot, batch, dormancy_threshold, srank_threshold).items()
        }
        scalars[f"{prefix}/gradient_norm"] = _gradient_norm(slot, batch)
    return scalars


def _weights(slot: NetworkSlot) -> dict[str, float]:
    scalars: dict[str, float] = {"dfi": 0.0, "dfi_scaled": 0.0}
    for layer in slot.layers():
        gram = short_gram(layer.matrices())
        for key, scale in (("dfi", 1.0), ("dfi_scaled", layer_scale(layer, "paper"))):
            scalars[f"{key}/{layer.name}"] = float(dfi_of_gram(gram, scale).sum())
            scalars[key] += scalars[f"{key}/{layer.name}"]
        scalars[f"weight_norm/{layer.name}"] = _mean_norm([layer.weight.detach()], slot.ensemble_size)
    scalars["weight_norm"] = _mean_norm([p.detach() for p in slot.module.parameters()], slot.ensemble_size)
    return scalars


def _activations(
    slot: NetworkSlot, batch: Any, dormancy_threshold: float, srank_threshold: float
) -> dict[str, float]:
    seen = record_forward(slot, batch)
    scalars: dict[str, float] = {}
    for key, marks in (
        ("dormant_ratio", {a.name: dormant_units(a.values, dormancy_threshold) for a in seen.activations}),
        ("zero_activation_ratio", {a.name: zero_units(a.values) for a in seen.activations}),
    ):
        if marks:
            scalars |= {f"{key}/{name}": float(mark.double().mean()) for name, mark in marks.items()}
            scalars[key] = float(torch.cat([mark.flatten() for mark in marks.values()]).double().mean())
    if seen.features is not None:
        networks = list(seen.features)
        scalars["srank"] = _mean([srank(f, srank_threshold) for f in networks])
        scalars["effective_rank"] = _mean([effective_rank(f) for f in networks])
        scalars["feature_norm"] = _mean([feature_norm(f) for f in networks])
    return scalars


def _gradient_norm(slot: NetworkSlot, batch: Any) -> float:
    parameters = [p for p in slot.module.parameters() if p.requires_grad]
    with leave_no_trace(slot), torch.enable_grad():
        gradients = torch.autograd.grad(slot.loss(batch), parameters, allow_unused=True)
    return _mean_norm([g for g in gradients if g is not None], slot.ensemble_size)


def _mean_norm(tensors: Sequence[Tensor], ensemble_size: int | None) -> float:
    """Joint norm, averaged over the networks of an ensemble; a tensor without the leading dimension counts in each."""
    if ensemble_size is None:
        return joint_norm(tensors)
    return _mean(
        [
            joint_norm([t[e] if t.ndim and t.shape[0] == ensemble_size else t for t in tensors])
            for e in range(ensemble_size)
        ]
    )


def _singular_value_shares(features: Tensor) -> Tensor:
    singular_values = torch.linalg.svdvals(features.double())
    total = singular_values.sum()
    return singular_values / total if total > 0 else singular_values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
