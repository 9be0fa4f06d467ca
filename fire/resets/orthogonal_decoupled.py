"""OrthogonalDecoupled: after every update a step towards isometries, outside of the optimizer's moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..network.slot import NetworkSlot
from ..options import OrthogonalDecoupledOptions
from .tracked import TrackedReset, Tracker, WeightTracker


@dataclass(frozen=True)
class OrthogonalDecoupled(TrackedReset):
    """AdamO's isometry step (Rosseau et al. 2026, arXiv 2606.09762): FIRE made continuous.

    W <- W - eta lambda grad R(W), R(W) = ||W^T W - I||_F^2 on W's short side, eta the optimizer's learning rate, beside
    the optimizer's own step and outside of its moments, as AdamW does with weight decay. AdamO takes both gradients at
    the same weights; here the isometry's is taken after the optimizer's step, which differs by O(eta^2). Convolutions
    count as one (out, in * kernel) matrix. The default lambda is ours.
    """

    name: ClassVar[str] = "orthogonal_decoupled"
    options: OrthogonalDecoupledOptions = field(default_factory=OrthogonalDecoupledOptions)

    def tracker(self) -> Tracker:
        return IsometryStep(self.options)


class IsometryStep(WeightTracker):
    """One step of gradient descent on the deviation from isometry after each update; it keeps no state."""

    def __init__(self, options: OrthogonalDecoupledOptions) -> None:
        super().__init__(options.roles, "flatten")
        self.options = options

    @torch.no_grad()
    def act(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> dict[str, int]:
        for network, slot in slots.items():
            rates = {p: group["lr"] for group in slot.optimizer.param_groups for p in group["params"]}
            for layer in self.layers(network, slot):
                if layer.weight in rates:
                    step = layer.weight_from(isometry_gradient(layer.matrices()))
                    # The learning rate may be a tensor, of a captured optimizer.
                    layer.weight.sub_(step * (rates[layer.weight] * self.options.strength))
        return {}


def isometry_gradient(matrices: Tensor) -> Tensor:
    """Gradient of ||W^T W - I||_F^2 for tall (..., out, in) matrices, of ||W W^T - I||_F^2 for wide ones."""
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    identity = torch.eye(tall.shape[-1], dtype=tall.dtype, device=tall.device)
    gradient = 4 * tall @ (tall.mT @ tall - identity)
    return gradient if tall is matrices else gradient.mT
