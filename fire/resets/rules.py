"""What happens to one parameter in a reset: keep, redraw, shrink and perturb, orthogonalize, random
orthogonal.

A rule takes all entries it applies to in the whole agent at once, so that orthogonalization can batch equal
shapes, and returns new values without writing any: the reset writes when every rule has succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..network.layers import WeightLayer
from ..network.scale import layer_scale
from ..polar.factors import polar_factors


@dataclass(frozen=True, eq=False)
class Entry:
    """One parameter of one network under a reset.

    Attributes:
        name: ``network/dotted.parameter.name``.
        parameter: the live parameter; rules read it and never write.
        layer: the weight layer whose weight or bias it is; None for norms, embeddings and others.
        is_weight: whether it is that layer's weight.
        fresh: the parameter of a fresh (or the run's first) network, where the rule needs one.
    """

    name: str
    parameter: nn.Parameter
    layer: WeightLayer | None
    is_weight: bool
    fresh: Tensor | None = None


class Rule(Protocol):
    """New values for a group of entries. Rules are hashable: entries with equal rules form one group."""

    needs_fresh: ClassVar[bool]

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        """Return one new value for each entry, in the shape of its parameter."""
        ...


@dataclass(frozen=True)
class Keep:
    """Leave the parameter as it is."""

    needs_fresh: ClassVar[bool] = False

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        return [entry.parameter.detach() for entry in entries]


@dataclass(frozen=True)
class Zero:
    """Set everything to zero."""

    needs_fresh: ClassVar[bool] = False

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        return [torch.zeros_like(entry.parameter) for entry in entries]


@dataclass(frozen=True)
class Redraw:
    """Take the fresh network's value."""

    needs_fresh: ClassVar[bool] = True

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        return [entry.fresh.detach() for entry in entries]


@dataclass(frozen=True)
class ShrinkPerturb:
    """c * old + (1 - c) * fresh (Ash and Adams 2020, arXiv 1910.08475, with a fresh network as the perturbation)."""

    shrink_factor: float
    needs_fresh: ClassVar[bool] = True

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        return [
            torch.lerp(entry.fresh.detach(), entry.parameter.detach(), self.shrink_factor)
            for entry in entries
        ]


@dataclass(frozen=True)
class Orthogonalize:
    """Move each matrix W = U S V^T to U ((1 - t) S + t s I) V^T, t being the strength and s the layer's
    scale.

    Strength 1 is FIRE (arXiv 2602.08040, eq. 5): the nearest of all matrices whose short side is s times
    orthonormal.
    """

    scale: str = "paper"
    strength: float = 1.0
    method: str = "polar"
    num_iters: int = 10
    null: str = "random"
    needs_fresh: ClassVar[bool] = False

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        factors = polar_factors(
            [entry.layer.matrices() for entry in entries],
            names=[f"parameter {entry.name}" for entry in entries],
            method=self.method,
            num_iters=self.num_iters,
            null=self.null,
            generator=generator,
        )
        return [self._blend(entry.layer, factor) for entry, factor in zip(entries, factors, strict=True)]

    def _blend(self, layer: WeightLayer, factor: Tensor) -> Tensor:
        scale = layer_scale(layer, self.scale, factor).to(factor.dtype)[..., None, None]
        value = factor * scale
        if self.strength != 1:
            value = torch.lerp(layer.matrices(), value, self.strength)
        return layer.weight_from(value)


@dataclass(frozen=True)
class RandomOrthogonal:
    """A Haar-random isometry times the layer's scale: FIRE's isometry without its closeness to the old weights."""

    scale: str = "paper"
    needs_fresh: ClassVar[bool] = False

    def __call__(self, entries: Sequence[Entry], generator: torch.Generator) -> list[Tensor]:
        noise = [
            torch.randn(entry.layer.matrices().shape, generator=generator, dtype=torch.float64)
            for entry in entries
        ]
        factors = polar_factors(noise, names=[f"noise for {entry.name}" for entry in entries])
        values = []
        for entry, factor in zip(entries, factors, strict=True):
            weight = entry.layer.weight
            scale = layer_scale(entry.layer, self.scale).cpu()[..., None, None]
            values.append(entry.layer.weight_from((factor * scale).to(weight)))
        return values
