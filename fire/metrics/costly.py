"""Costlier looks at plasticity: more ranks, curvature, gradient agreement, distance travelled, trainability.

``diagnose`` collects them for all networks; it takes seconds where ``measure`` takes milliseconds, so call it
rarely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.probe import leave_no_trace, minibatches, num_samples, record_forward
from ..network.slot import NetworkSlot
from .cheap import effective_rank, joint_norm
from .trials import gradients, trainability, trial_update

# Gradients whose agreement is measured: the probe batch is cut into so many minibatches, or fewer if it is small.
GRADIENT_BATCHES = 8

DIAGNOSTIC_KEYS = (
    "plasticity/<network>/stable_rank",
    "plasticity/<network>/feature_rank",
    "plasticity/<network>/pca_rank",
    "plasticity/<network>/distance_to_init",
    "plasticity/<network>/effective_learning_rate",
    "plasticity/<network>/update_norm",
    "plasticity/<network>/relative_update_norm",
    "plasticity/<network>/hessian_top_eigenvalue",
    "plasticity/<network>/gradient_cosine",
    "plasticity/<network>/gradient_rank",
    "plasticity/<network>/optimization_readiness",
    "plasticity/<network>/coadaptation",
    "plasticity/<network>/trainability_loss",
    "plasticity/<network>/trainability_loss_fresh",
)


def stable_rank(matrix: Tensor) -> float:
    """||A||_F^2 / ||A||_2^2 (Rudelson and Vershynin 2007); 0 for a zero matrix (samples, features)."""
    values = torch.linalg.svdvals(matrix.double())
    return float(values.square().sum() / values[0].square()) if values[0] > 0 else 0.0


def feature_rank(features: Tensor, threshold: float = 0.01) -> float:
    """Number of singular values of features / sqrt(samples) above ``threshold`` (Lyle et al. 2022, arXiv
    2204.09560).
    """
    values = torch.linalg.svdvals(features.double() / len(features) ** 0.5)
    return float((values > threshold).sum())


def pca_rank(features: Tensor, threshold: float = 0.01) -> float:
    """Smallest k whose leading squared singular values hold 1 - threshold of their sum (Yang et al. 2020,
    arXiv 1909.12255); 0 for all-zero features.
    """
    squares = torch.linalg.svdvals(features.double()).square()
    if squares.sum() == 0:
        return 0.0
    return float((squares.cumsum(0) < (1 - threshold) * squares.sum()).sum() + 1)


def coadaptation(features: Tensor, next_features: Tensor) -> float:
    """Mean dot product of features of consecutive state-action pairs (DR3, Kumar et al. 2022, arXiv
    2112.04716).

    Args:
        features, next_features: (samples, features) of (s, a) and of (s', a') with a' from the policy.
    """
    return float((features.double() * next_features.double()).sum(dim=-1).mean())


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """||after - before|| / ||before|| over all tensors together: the update norm relative to the weights."""
    moved = joint_norm([a.double() - b.double() for a, b in zip(after, before, strict=True)])
    return moved / joint_norm(before)


def spectra(slots: Mapping[str, NetworkSlot]) -> dict[str, Tensor]:
    """Singular values of every weight layer, all its matrices together, under ``spectrum/<network>/<layer>``."""
    return {
        f"spectrum/{network}/{layer.name}": torch.linalg.svdvals(layer.matrices().double()).flatten()
        for network, slot in slots.items()
        for layer in slot.layers()
    }


def spectra_work(slots: Mapping[str, NetworkSlot]) -> float:
    """Multiplications that ``spectra`` needs, up to a factor: m n min(m, n) for each m x n matrix, summed."""
    matrices = (layer.matrices() for slot in slots.values() for layer in slot.layers())
    return float(sum(each.numel() * min(each.shape[-2:]) for each in matrices))


def gradient_covariance(slot: NetworkSlot, batches: Sequence[Any]) -> Tensor:
    """Cosines between the gradients on each pair of ``batches``, (n, n) float64 (Lyle et al. 2023, arXiv
    2303.01486).

    With batches of one sample these are the paper's; large off-diagonal sizes mean that samples interfere.
    """
    flat = torch.stack(
        [torch.cat([g.flatten() for g in gradients(slot, batch)]).double() for batch in batches]
    )
    flat = flat / flat.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return flat @ flat.mT


def optimization_readiness(slot: NetworkSlot, batches: Sequence[Any]) -> float | None:
    """Gradient strength times gradient reliability, S R (Wang et al. 2026, arXiv 2605.09044).

    S = ||g||^2 / L and R = ||g||^2 / E_B ||g_B||^2, g being the gradient and L the loss on all ``batches`` together,
    g_B the gradient on one of them: large where a small step gains much of the loss and minibatches agree on it. The
    formula is taken from a description of the paper, which itself could not be had.

    Args:
        batches: minibatches of equal size.

    Returns:
        None where the loss is not positive, which S needs (an actor's loss may have any sign).
    """
    flat = torch.stack(
        [torch.cat([g.flatten() for g in gradients(slot, batch)]).double() for batch in batches]
    )
    with leave_no_trace(slot), torch.no_grad():
        loss = torch.stack([slot.loss(batch).double() for batch in batches]).mean()
    if not loss > 0:
        return None
    strength = flat.mean(0).square().sum()
    spread = flat.square().sum(1).mean()
    return float(strength**2 / (loss * spread)) if spread > 0 else 0.0


def hessian_top_eigenvalue(
    slot: NetworkSlot, batch: Any, generator: torch.Generator, num_iters: int = 50, tolerance: float = 1e-3
) -> float:
    """Hessian eigenvalue of largest size of ``slot.loss``, signed, by power iteration on Hessian-vector
    products.

    Args:
        generator: CPU generator of the first vector.
        num_iters: Hessian-vector products at most; each costs about two gradients.
        tolerance: relative change of the Rayleigh quotient at which to stop.
    """
    parameters = [p for p in slot.module.parameters() if p.requires_grad]
    vector = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    eigenvalue = 0.0
    with leave_no_trace(slot), torch.enable_grad():
        slopes = torch.autograd.grad(slot.loss(batch), parameters, create_graph=True, allow_unused=True)
        pairs = [(g, i) for i, g in enumerate(slopes) if g is not None and g.requires_grad]
        for _ in range(num_iters if pairs else 0):
            norm = joint_norm(vector)
            if norm == 0:
                return 0.0
            vector = [v / norm for v in vector]
            found = torch.autograd.grad(
                [g for g, _ in pairs],
                parameters,
                grad_outputs=[vector[i] for _, i in pairs],
                retain_graph=True,
                allow_unused=True,
            )
            product = [torch.zeros_like(v) if p is None else p for p, v in zip(found, vector, strict=True)]
            previous = eigenvalue
            eigenvalue = float(
                sum((p.double() * v.double()).sum() for p, v in zip(product, vector, strict=True))
            )
            vector = product
            if abs(eigenvalue - previous) <= tolerance * abs(eigenvalue):
                break
    return eigenvalue


def diagnose(
    slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator, *, steps: int = 100
) -> dict[str, float]:
    """Run the diagnostics of every network and return them under the keys of ``DIAGNOSTIC_KEYS``.

    Leaves everything as it was, like :func:`fire.metrics.cheap.measure`; draws from ``generator`` (CPU) only.
    Ranks and co-adaptation of ensembles are averaged over its networks. What a network cannot have is left out:
    co-adaptation without ``slot.forward_next``, ranks without a head.
    """
    scalars: dict[str, float] = {}
    for network, slot in slots.items():
        values = _of_features(slot, batch)
        parameters = {n: p.detach() for n, p in slot.module.named_parameters()}
        first = dict(slot.initial().named_parameters())
        shared = [
            name for name in parameters if name in first and parameters[name].shape == first[name].shape
        ]
        values["distance_to_init"] = joint_norm([parameters[n] - first[n].detach() for n in shared])
        values["effective_learning_rate"] = joint_norm(gradients(slot, batch)) / joint_norm(
            [*parameters.values()]
        )
        values["hessian_top_eigenvalue"] = hessian_top_eigenvalue(slot, batch, generator)
        values["update_norm"], values["relative_update_norm"] = trial_update(slot, batch)
        values |= _of_gradients(slot, batch)
        here, fresh = trainability(slot, batch, generator, steps=steps)
        values |= {"trainability_loss": here, "trainability_loss_fresh": fresh}
        scalars |= {f"plasticity/{network}/{name}": value for name, value in values.items()}
    return scalars


def _of_features(slot: NetworkSlot, batch: Any) -> dict[str, float]:
    features = record_forward(slot, batch).features
    if features is None:
        return {}
    ranks: dict[str, Callable[[Tensor], float]] = {
        "stable_rank": stable_rank,
        "feature_rank": feature_rank,
        "pca_rank": pca_rank,
    }
    values = {name: sum(map(rank, features)) / len(features) for name, rank in ranks.items()}
    following = None if slot.forward_next is None else record_forward(slot, batch, slot.forward_next).features
    if following is not None:
        pairs = list(zip(features, following, strict=True))
        values["coadaptation"] = sum(coadaptation(*pair) for pair in pairs) / len(pairs)
    return values


def _of_gradients(slot: NetworkSlot, batch: Any) -> dict[str, float]:
    count = min(GRADIENT_BATCHES, num_samples(batch))
    if count < 2:
        return {}
    parts = minibatches(batch, count)
    cosines = gradient_covariance(slot, parts)
    between = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    values = {"gradient_cosine": float(between), "gradient_rank": effective_rank(cosines)}
    readiness = optimization_readiness(slot, parts)
    return values if readiness is None else {**values, "optimization_readiness": readiness}
