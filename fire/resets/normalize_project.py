"""NormalizeProject: after every update weights go back to the norm they began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..network.layers import WeightLayer
from ..network.slot import NetworkSlot
from ..options import NormalizeProjectOptions
from .tracked import TrackedReset, Tracker, WeightTracker


@dataclass(frozen=True)
class NormalizeProject(TrackedReset):
    """The projection of Normalize-and-Project (Lyle et al. 2024, arXiv 2407.01800).

    After each update W <- rho W / ||W||_F for the layers before norms, rho being the norm of the run's first weights. A
    norm makes the network blind to the size of the weights before it, whose growth then only lowers the effective
    learning rate; the projection keeps that rate as it was. The bias is multiplied by the same number, so that a layer
    that a norm follows computes the same as before. The other half, layer norm before each ReLU, is a matter of the
    network (``agent.layer_norm``); on a network without norms the projection changes its function. This follows the
    paper's abstract; the norms' gains and shifts are left to the optimizer.
    """

    name: ClassVar[str] = "normalize_project"
    options: NormalizeProjectOptions = field(default_factory=NormalizeProjectOptions)

    def tracker(self) -> Tracker:
        return NormProjection(self.options.roles)


class NormProjection(WeightTracker):
    """First norms by ``network/layer``, and the projection onto them."""

    @torch.no_grad()
    def act(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> dict[str, int]:
        for network, slot in slots.items():
            norms = self.state.setdefault(network, {})
            layers = self.layers(network, slot)
            if layers and not norms:
                names = {parameter: name for name, parameter in slot.module.named_parameters()}
                first = dict(slot.initial().named_parameters())
                for layer in layers:
                    name = names[layer.weight]
                    if (
                        name not in first
                    ):  # of a head that was injected: beside it lie the weights it began with
                        first[name] = slot.module.get_parameter(name.replace(".new.", ".start."))
                    norms[layer.name] = _norm(layer, first[name]).to(layer.weight.device)
            for layer in layers:
                size = _norm(layer, layer.weight)
                factor = torch.where(size > 0, norms[layer.name] / size, 1.0)
                layer.weight.mul_(factor)
                if layer.bias is not None:
                    layer.bias.mul_(factor.reshape(-1, *[1] * (layer.bias.ndim - 1)))
        return {}


def _norm(layer: WeightLayer, weight: Tensor) -> Tensor:
    """Frobenius norm, of each network of an ensemble, with all dimensions kept."""
    axes = (-2, -1) if layer.kind == "linear" else tuple(range(weight.ndim))
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
