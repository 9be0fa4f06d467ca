"""FIRE in one line for any network: ``fire_(module)``."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from .network.layers import WeightLayer, weight_layers
from .network.scale import layer_scale
from .options import ROLES, check_range
from .resets.report import LayerChange, ResetReport, layer_reports
from .resets.rules import NamedParameter, Orthogonalize

Selector = str | Callable[[WeightLayer], bool] | Sequence["str | Callable[[WeightLayer], bool]"]
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


@torch.no_grad()
def fire_(
    module: nn.Module,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    roles: Sequence[str] = ROLES,
    heads: Sequence[str] = (),
    conv_form: str = "slices",
    fused: Mapping[str, int] | None = None,
    scale: str = "paper",
    strength: float = 1.0,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    biases: str = "keep",
    norms: str = "keep",
    embeddings: str = "keep",
    generator: torch.Generator | None = None,
) -> ResetReport:
    """Apply FIRE (arXiv 2602.08040) to ``module`` in place: each weight becomes the nearest isometry times its scale.

    All or nothing: an error leaves the module as it was. Frozen parameters are treated like others; leave
    them out by name or predicate. A weight used under several names is changed once and goes by its first.

    Args:
        module: any network; see :mod:`fire.network.layers` for what a weight layer is.
        include, exclude: shell patterns of names (``"encoder.*"``), predicates on the layer, or a sequence
            of both of which one must hold. Default: everything, nothing.
        roles: which of ``"input"``, ``"hidden"`` and ``"head"`` to change.
        heads: names of the output layers (default: the last weight layer).
        conv_form: ``"slices"``, each kernel position on its own as published, or ``"flatten"``, (out, in *
            kernel).
        fused: matrices in fused projections, see :func:`fire.network.layers.weight_layers`.
        scale: ``"paper"``, ``"unit"``, ``"mean_singular_value"`` or ``"preserve_norm"``, see
            :func:`fire.network.scale.layer_scale`.
        strength: in (0, 1], how far singular values move towards the scale; 1 is FIRE.
        method, num_iters, null: see :func:`fire.polar.factors.polar_factors`.
        biases: ``"keep"`` or ``"zero"`` (of the chosen weight layers).
        norms: ``"keep"`` or ``"identity"`` (scales to one, shifts to zero; running statistics stay).
        embeddings: ``"keep"`` or ``"orthogonalize"`` (as linear maps of one-hot vectors).
        generator: CPU generator for directions the weights do not have. Default: one of its own with seed 0.

    Returns:
        A report on every layer that was changed.

    Raises:
        ValueError: NaN or infinity in a weight, an unknown option or name, a pattern without a layer, a strength out
            of range.
        TypeError: a chosen weight is computed by a parametrization, or not materialised yet.
    """
    for name, value, choices in (
        ("biases", biases, ("keep", "zero")),
        ("norms", norms, ("keep", "identity")),
        ("embeddings", embeddings, ("keep", "orthogonalize")),
        *(("roles", role, ROLES) for role in roles),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
    check_range("strength", strength, 0, 1, open_low=True)
    start = time.perf_counter()
    names: list[str] = []

    def select(layer: WeightLayer) -> bool:
        names.append(layer.name)
        return (
            layer.role in roles
            and (include is None or _matches(layer, include))
            and not (exclude is not None and _matches(layer, exclude))
        )

    layers = weight_layers(
        module,
        heads=heads,
        select=select,
        conv_form=conv_form,
        fused=fused,
        embeddings=embeddings == "orthogonalize",
    )
    for option, selector in (("include", include), ("exclude", exclude)):
        for pattern in _patterns(selector):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{option} {pattern!r} matches no weight layer; there are {', '.join(names)}"
                )
    rule = Orthogonalize(scale, strength, method, num_iters, null)
    parameters = [NamedParameter(layer.name, layer.weight, layer, is_weight=True) for layer in layers]
    writes = rule(parameters, torch.Generator().manual_seed(0) if generator is None else generator)
    seconds = time.perf_counter() - start
    reports = layer_reports(
        [
            LayerChange("", layer, write.value, layer_scale(layer, scale), write.spectra)
            for layer, write in zip(layers, writes, strict=True)
        ]
    )

    start = time.perf_counter()
    for layer, write in zip(layers, writes, strict=True):
        layer.weight.copy_(write.value)
        if biases == "zero" and layer.bias is not None:
            layer.bias.zero_()
    if norms == "identity":
        for child in module.modules():
            if isinstance(child, NORMS):
                _to_identity(child)
    return ResetReport(reports, seconds + time.perf_counter() - start)


def _matches(layer: WeightLayer, selector: Selector) -> bool:
    if isinstance(selector, str):
        return fnmatch.fnmatchcase(layer.name, selector)
    if callable(selector):
        return selector(layer)
    return any(_matches(layer, each) for each in selector)


def _patterns(selector: Selector | None) -> list[str]:
    if isinstance(selector, str):
        return [selector]
    if selector is None or callable(selector):
        return []
    return [pattern for each in selector for pattern in _patterns(each)]


def _to_identity(norm: nn.Module) -> None:
    for name, parameter in norm.named_parameters(recurse=False):
        parameter.fill_(1.0 if name == "weight" else 0.0)
