"""What happens to one parameter in a reset: keep, zero, redraw, shrink and perturb, orthogonalize, random orthogonal.

A rule takes all parameters it applies to in the whole agent at once, so that orthogonalization can batch equal
shapes, and returns new values without writing any: the reset writes when every rule has succeeded.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..network.layers import WeightLayer
from ..network.scale import layer_scale
from ..options import IsometryOptions
from ..polar.factors import PolarFactors, polar_factors
from .plan import Spectra, Write


@dataclass(frozen=True, eq=False)
class NamedParameter:
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

    @property
    def is_linear(self) -> bool:
        """Whether it belongs to a linear layer."""
        return self.layer is not None and self.layer.kind in ("linear", "bilinear")


class Rule(Protocol):
    """New values for a group of parameters. Rules are hashable: parameters with equal rules form one group."""

    @property
    def needs_fresh(self) -> bool:
        """Whether it reads the parameters of a fresh network."""
        ...

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        """Return one new value for each parameter, in its shape."""
        ...


def rule_for_chosen(parameter: NamedParameter, options: IsometryOptions, weight_rule: Rule) -> Rule:
    """``weight_rule`` for weights of the layers that ``options`` choose, their own rule for biases, else Keep.

    A weight that is an embedding too is kept like one, unless ``options`` say otherwise.
    """
    layer = parameter.layer
    if layer is None or (layer.embedding and options.tied == "keep"):
        return Keep()
    if options.include and not any(fnmatch.fnmatchcase(layer.name, pattern) for pattern in options.include):
        return Keep()
    choice = options.outer_layer(layer.role)
    if choice in ("keep", "redraw"):
        return Keep() if choice == "keep" else Redraw()
    if parameter.is_weight:
        return weight_rule
    # Rescaled ones are planned by the reset as a whole, which knows the changes of all weights.
    rules: dict[str, Rule] = {"zero": Zero(), "redraw": Redraw()}
    return rules.get(options.biases, Keep())


@dataclass(frozen=True)
class Keep:
    """Leave the parameter as it is."""

    needs_fresh: ClassVar[bool] = False

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        return []


@dataclass(frozen=True)
class Zero:
    """Set everything to zero."""

    needs_fresh: ClassVar[bool] = False

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        return [Write(p.name, p.parameter, torch.zeros_like(p.parameter)) for p in parameters]


@dataclass(frozen=True)
class Redraw:
    """Take the fresh network's value."""

    needs_fresh: ClassVar[bool] = True

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        return [Write(p.name, p.parameter, _fresh(p)) for p in parameters]


@dataclass(frozen=True)
class ShrinkPerturb:
    """c * old + (1 - c) * fresh (Ash and Adams 2020, arXiv 1910.08475, with a fresh network as the perturbation)."""

    shrink_factor: float
    needs_fresh: ClassVar[bool] = True

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        return [
            Write(p.name, p.parameter, torch.lerp(_fresh(p), p.parameter.detach(), self.shrink_factor))
            for p in parameters
        ]


@dataclass(frozen=True)
class Orthogonalize:
    """Move each matrix W = U S V^T to U ((1 - t) S + t s I) V^T, t being the strength and s the layer's scale.

    Strength 1 is FIRE (arXiv 2602.08040, eq. 5): the nearest of all matrices whose short side is s times orthonormal.
    """

    scale: str = "paper"
    strength: float = 1.0
    method: str = "polar"
    num_iters: int = 10
    null: str = "random"
    parts: tuple[int, ...] = ()

    @property
    def needs_fresh(self) -> bool:
        return self.scale == "fresh_norm"

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        layers = [_layer(p) for p in parameters]
        solutions = polar_factors(
            [layer.matrices() for layer in layers],
            names=[f"parameter {p.name}" for p in parameters],
            method=self.method,
            num_iters=self.num_iters,
            null=self.null,
            generator=generator,
            spectra=True,
        )
        return [self._write(*each) for each in zip(parameters, layers, solutions, strict=True)]

    def _write(self, parameter: NamedParameter, layer: WeightLayer, solution: PolarFactors) -> Write:
        factors, before, defect = solution
        scale = layer_scale(layer, self.scale, factors, parameter.fresh).to(factors.dtype)
        matrices = factors * scale[..., None, None]
        if self.strength != 1:
            matrices = torch.lerp(layer.matrices(), matrices, self.strength)
        partial = bool(self.parts) and layer.parts > 1
        if partial:
            matrices = only_parts(layer, matrices, self.parts)
        spectra = None
        if not partial and before is not None and defect is not None:
            target = scale.double()[..., None].expand_as(before)
            if self.null == "zero":
                target = target.where(before > 0, 0)
            # The product with the scale rounds once more.
            defect = defect + torch.finfo(factors.dtype).eps
            spectra = Spectra(before, torch.lerp(before, target, self.strength), defect)
        return Write(parameter.name, parameter.parameter, layer.weight_from(matrices), spectra)


@dataclass(frozen=True)
class RandomOrthogonal:
    """A Haar-random isometry times the layer's scale: FIRE's isometry without its closeness to the old weights."""

    scale: str = "paper"
    parts: tuple[int, ...] = ()

    @property
    def needs_fresh(self) -> bool:
        return self.scale == "fresh_norm"

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        layers = [_layer(p) for p in parameters]
        noise = [
            torch.randn(layer.matrices().shape, generator=generator, dtype=torch.float64) for layer in layers
        ]
        solutions = polar_factors(noise, names=[f"noise for {p.name}" for p in parameters])
        writes = []
        for parameter, layer, solution in zip(parameters, layers, solutions, strict=True):
            scale = layer_scale(layer, self.scale, fresh=parameter.fresh).cpu()[..., None, None]
            matrices = (solution.factors * scale).to(layer.weight)
            if self.parts and layer.parts > 1:
                matrices = only_parts(layer, matrices, self.parts)
            value = layer.weight_from(matrices)
            writes.append(Write(parameter.name, parameter.parameter, value))
        return writes


def only_parts(layer: WeightLayer, matrices: Tensor, parts: Sequence[int]) -> Tensor:
    """``matrices`` of a fused projection for ``parts`` of it, the old ones for the others.

    Raises:
        ValueError: it does not have that many parts.
    """
    if max(parts) >= layer.parts:
        raise ValueError(f"parts {max(parts)}: {layer.name} holds {layer.parts} matrices, counted from 0")
    mixed = layer.matrices().clone()
    chosen = list(parts)
    mixed[..., chosen, :, :] = matrices[..., chosen, :, :]
    return mixed


def _layer(parameter: NamedParameter) -> WeightLayer:
    if parameter.layer is None:
        raise ValueError(f"{parameter.name} belongs to no weight layer")
    return parameter.layer


def _fresh(parameter: NamedParameter) -> Tensor:
    if parameter.fresh is None:
        raise ValueError(f"{parameter.name} has no fresh counterpart")
    return parameter.fresh.detach().to(parameter.parameter)
