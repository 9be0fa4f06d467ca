"""Plasticity metrics as pure functions with their definitions, and ``measure``, which collects them for all networks.

The networks of an ensemble are measured one by one and averaged, never stacked: two critics with three useful
directions each have rank three, not six. Definitions and sources of every key stand in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.memory import as_numbers
from ..network.probe import leave_no_trace, record_forward
from ..network.scale import layer_scale
from ..network.slot import NetworkSlot
from ..polar.isometry import closest_scale, dfi_of_gram, short_gram

METRIC_KEYS = (
    "plasticity/<network>/dfi",
    "plasticity_layers/<network>/dfi/<layer>",
    "plasticity/<network>/dfi_scaled",
    "plasticity_layers/<network>/dfi_scaled/<layer>",
    "plasticity/<network>/dfi_any_scale",
    "plasticity_layers/<network>/dfi_any_scale/<layer>",
    "plasticity/<network>/dormant_ratio",
    "plasticity_layers/<network>/dormant_ratio/<layer>",
    "plasticity/<network>/zero_activation_ratio",
    "plasticity_layers/<network>/zero_activation_ratio/<layer>",
    "plasticity/<network>/srank",
    "plasticity/<network>/effective_rank",
    "plasticity/<network>/feature_norm",
    "plasticity/<network>/weight_norm",
    "plasticity_layers/<network>/weight_norm/<layer>",
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
    return _srank(_singular_value_shares(features), threshold)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for all-zero features.

    Args:
        features: (samples, features).
    """
    return _effective_rank(_singular_value_shares(features))


def feature_norm(features: Tensor) -> float:
    """Mean Euclidean norm of a sample's features; ``features`` is (samples, features)."""
    return float(_feature_norm(features))


def joint_norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm of all elements of all tensors together."""
    return float(_joint_norm(tensors))


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
    figures: dict[str, Tensor] = {}
    for network, slot in slots.items():
        found = _weights(slot) | _activations(slot, batch, dormancy_threshold, srank_threshold)
        found["gradient_norm"] = _gradient_norm(slot, batch)
        figures |= {f"{_group(key)}/{network}/{key}": value for key, value in found.items()}
    return as_numbers(figures)


def _group(key: str) -> str:
    """Layers have a group of their own, in which TensorBoard folds them away."""
    return "plasticity_layers" if "/" in key else "plasticity"


def _weights(slot: NetworkSlot) -> dict[str, Tensor]:
    zero = torch.zeros((), dtype=torch.float64)
    figures: dict[str, Tensor] = {"dfi": zero, "dfi_scaled": zero, "dfi_any_scale": zero}
    for layer in slot.layers():
        gram = short_gram(layer.matrices())
        scales: dict[str, Tensor | float] = {"dfi": 1.0, "dfi_scaled": layer_scale(layer, "paper")}
        scales["dfi_any_scale"] = closest_scale(gram)
        for key, scale in scales.items():
            figures[f"{key}/{layer.name}"] = dfi_of_gram(gram, scale).sum()
            figures[key] = figures[key] + figures[f"{key}/{layer.name}"]
        figures[f"weight_norm/{layer.name}"] = _mean_norm([layer.weight.detach()], slot.ensemble_size)
    figures["weight_norm"] = _mean_norm([p.detach() for p in slot.module.parameters()], slot.ensemble_size)
    return figures


def _activations(
    slot: NetworkSlot, batch: Any, dormancy_threshold: float, srank_threshold: float
) -> dict[str, Tensor]:
    seen = record_forward(slot, batch)
    figures: dict[str, Tensor] = {}
    for key, marks in (
        ("dormant_ratio", {a.name: dormant_units(a.values, dormancy_threshold) for a in seen.activations}),
        ("zero_activation_ratio", {a.name: zero_units(a.values) for a in seen.activations}),
    ):
        if marks:
            figures |= {f"{key}/{name}": mark.double().mean() for name, mark in marks.items()}
            figures[key] = torch.cat([mark.flatten() for mark in marks.values()]).double().mean()
    if seen.features is not None:
        # On the host, where LAPACK is faster at this size than the solver of a GPU.
        shares = [_singular_value_shares(features) for features in seen.features.cpu()]
        ranks = {
            "srank": [_srank(share, srank_threshold) for share in shares],
            "effective_rank": [_effective_rank(share) for share in shares],
        }
        figures |= {key: torch.tensor(_mean(found), dtype=torch.float64) for key, found in ranks.items()}
        figures["feature_norm"] = _mean([_feature_norm(features) for features in seen.features])
    return figures


def _gradient_norm(slot: NetworkSlot, batch: Any) -> Tensor:
    parameters = [p for p in slot.module.parameters() if p.requires_grad]
    with leave_no_trace(slot), torch.enable_grad():
        gradients = torch.autograd.grad(slot.loss(batch), parameters, allow_unused=True)
    return _mean_norm([g for g in gradients if g is not None], slot.ensemble_size)


def _mean_norm(tensors: Sequence[Tensor], ensemble_size: int | None) -> Tensor:
    """Joint norm, averaged over the networks of an ensemble; a tensor without the leading dimension counts in each."""
    if ensemble_size is None:
        return _joint_norm(tensors)
    return _mean(
        [
            _joint_norm([t[e] if t.ndim and t.shape[0] == ensemble_size else t for t in tensors])
            for e in range(ensemble_size)
        ]
    )


def _joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    return sum((t.double().square().sum() for t in tensors), torch.zeros(())).sqrt()


def _feature_norm(features: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features.double(), dim=-1).mean()


def _srank(shares: Tensor, threshold: float) -> float:
    return float((shares.cumsum(0) < (1 - threshold) * shares.sum()).sum() + 1) if shares.sum() > 0 else 0.0


def _effective_rank(shares: Tensor) -> float:
    return float(torch.special.entr(shares).sum().exp()) if shares.sum() > 0 else 0.0


def _singular_value_shares(features: Tensor) -> Tensor:
    singular_values = torch.linalg.svdvals(features.double())
    total = singular_values.sum()
    return singular_values / total if total > 0 else singular_values


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers or tensors."""
    return sum(values) / len(values)
