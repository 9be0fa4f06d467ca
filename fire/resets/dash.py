"""DashReset: shrink each weight vector by how badly it agrees with the direction of descent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..network.probe import leave_no_trace, minibatches
from ..network.slot import NetworkSlot
from ..options import DashOptions
from .base import Reset, named_parameters
from .plan import Plan, Write
from .rules import NamedParameter


@dataclass(frozen=True)
class DashReset(Reset):
    """Direction-aware shrinking (Shin et al. 2024, DASH, arXiv 2410.23495): w <- w * max(lambda, cos(w, -g)).

    w is one kernel of a convolution, one row of another weight, or a whole bias vector; norms and everything else
    stay, as in the authors' code. g is the running mean of the gradient of ``slot.loss`` over ``num_batches``
    minibatches of the batch, g <- (1 - alpha) g + alpha gradient. Vectors that training would grow keep their
    length; the others shrink, down to lambda.
    """

    name: ClassVar[str] = "dash"
    options: DashOptions = field(default_factory=DashOptions)

    @property
    def num_minibatches(self) -> int:
        return self.options.num_batches

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        plan = Plan()
        for network, slot in slots.items():
            vectors = [
                parameter
                for parameter in named_parameters(network, slot, self.conv_form)
                if parameter.parameter.requires_grad and parameter.layer is not None
            ]
            for parameter, gradient in zip(vectors, self._mean_gradients(slot, vectors, batch), strict=True):
                weight = parameter.parameter.detach()
                is_kernel = parameter.is_weight and not parameter.is_linear
                axes = tuple(range(2, weight.ndim)) if is_kernel else (-1,)
                factor = direction_agreement(weight, -gradient, axes).clamp(min=self.options.min_shrink)
                plan.writes.append(Write(parameter.name, parameter.parameter, weight * factor))
        return plan

    def _mean_gradients(self, slot: NetworkSlot, vectors: list[NamedParameter], batch: Any) -> list[Tensor]:
        parameters = [vector.parameter for vector in vectors]
        means = [torch.zeros_like(parameter) for parameter in parameters]
        for part in minibatches(batch, self.options.num_batches):
            with leave_no_trace(slot), torch.enable_grad():
                gradients = torch.autograd.grad(slot.loss(part), parameters, allow_unused=True)
            for mean, gradient in zip(means, gradients, strict=True):
                mean.lerp_(torch.zeros_like(mean) if gradient is None else gradient, self.options.alpha)
        return means


def direction_agreement(weight: Tensor, descent: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Cosine between ``weight`` and ``descent`` over ``axes``, kept as dimensions of size 1; 0 where either is zero."""
    product = (weight * descent).sum(axes, keepdim=True)
    size = weight.norm(dim=axes, keepdim=True) * descent.norm(dim=axes, keepdim=True)
    return torch.where(size > 0, product / torch.where(size > 0, size, 1), 0)
