"""FIRE in one line for any network: ``fire_(module)``."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from .ambient import changes_weights
from .network.chain import rescaled_biases
from .network.fresh import fresh_weight
from .network.layers import NORMS, WeightLayer, left_alone, weight_layers
from .network.scale import layer_scale
from .options import ROLES, SCALES, check_range, check_roles
from .resets.plan import Plan, Write
from .resets.prepare import prepare
from .resets.report import LayerChange, ResetReport
from .resets.rules import NamedParameter, Orthogonalize

Selector = str | Callable[[WeightLayer], bool] | Sequence["str | Callable[[WeightLayer], bool]"]


@changes_weights
def fire_(
    module: nn.Module,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    roles: Sequence[str] = ROLES,
    heads: Sequence[str] = (),
    conv_form: str = "slices",
    fused: Mapping[str, int] | None = None,
    layouts: Mapping[str, str] | None = None,
    scale: str = "paper",
    strength: float = 1.0,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    biases: str = "keep",
    norms: str = "keep",
    embeddings: str = "keep",
    fresh: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> ResetReport:
    """Apply FIRE (arXiv 2602.08040) to ``module`` in place: each weight becomes the nearest isometry times its scale.

    All or nothing: an error leaves the module as it was. Frozen parameters are treated like others; leave
    them out by name or predicate. A weight used under several names, also as the transpose of another, is changed once
    and goes by its first.

    Args:
        module: any network; see :mod:`fire.network.layers` for what a weight layer is.
        include, exclude: shell patterns of names (``"encoder.*"``), predicates on the layer, or a sequence
            of both of which one must hold. Default: everything, nothing.
        roles: which of ``"input"``, ``"hidden"`` and ``"head"`` to change.
        heads: names of the output layers (default: the last weight layer).
        conv_form: ``"slices"``, each kernel position on its own as published, or ``"flatten"``, (out, in *
            kernel); ``"group_slices"`` and ``"group_flatten"`` take each group of a grouped convolution apart.
        fused, layouts: matrices in fused projections, and how parameters of unknown modules lie, see
            :func:`fire.network.layers.weight_layers`.
        scale: ``"paper"``, ``"unit"``, ``"mean_singular_value"``, ``"preserve_norm"`` or ``"fresh_norm"``, see
            :func:`fire.network.scale.layer_scale`.
        strength: in (0, 1], how far singular values move towards the scale; 1 is FIRE.
        method, num_iters, null: see :func:`fire.polar.factors.polar_factors`.
        biases: ``"keep"``, ``"zero"`` (of the chosen weight layers) or ``"rescale"`` (of all layers, see
            :func:`fire.network.chain.rescaled_biases`).
        norms: ``"keep"`` or ``"identity"`` (scales to one, shifts to zero; running statistics stay).
        embeddings: ``"keep"`` (also where an output layer has the same weight) or ``"orthogonalize"`` (as linear maps
            of one-hot vectors).
        fresh: a newly drawn network of the same architecture, whose weights' norms ``fresh_norm`` takes. Default: the
            layers' own ``reset_parameters``, PyTorch's initialisation for its own layers.
        generator: CPU generator for directions the weights do not have and for new weights. Default: one of its own
            with seed 0.

    Returns:
        A report on every layer that was changed and every weight that was not.

    Raises:
        ValueError: NaN or infinity in a weight, an unknown option or name, a pattern without a layer, a strength out
            of range, no layer to change, weights that share a part of their memory, a layer that cannot be drawn anew
            or whose bias cannot be rescaled.
        TypeError: a chosen weight is computed by a parametrization, scripted, quantised, not materialised yet, cannot
            be written to, or has a dtype that cannot be solved.
        RuntimeError: inside ``torch.func`` transforms or a dispatch mode.
    """
    for name, value, choices in (
        ("biases", biases, ("keep", "zero", "rescale")),
        ("scale", scale, SCALES),
        ("norms", norms, ("keep", "identity")),
        ("embeddings", embeddings, ("keep", "orthogonalize")),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
    check_roles(roles)
    check_range("strength", strength, 0, 1, open_low=True)
    start = time.perf_counter()
    everything: list[WeightLayer] = []
    reasons: dict[str, str] = {}

    def select(layer: WeightLayer) -> bool:
        everything.append(layer)
        reason = None
        if layer.embedding and embeddings == "keep":
            reason = f"is the embedding {layer.embedding} too"
        elif layer.role not in roles:
            reason = f"left out by roles: {layer.role}"
        elif include is not None and not _matches(layer, include):
            reason = "left out by include"
        elif exclude is not None and _matches(layer, exclude):
            reason = "left out by exclude"
        if reason is not None:
            reasons[layer.name] = reason
        return reason is None

    layers = weight_layers(
        module,
        heads=heads,
        select=select,
        conv_form=conv_form,
        fused=fused,
        layouts=layouts,
        embeddings=embeddings == "orthogonalize",
    )
    names = ", ".join(layer.name for layer in everything) or "none"
    for option, selector in (("include", include), ("exclude", exclude)):
        for pattern in _patterns(selector):
            if not any(fnmatch.fnmatchcase(layer.name, pattern) for layer in everything):
                raise ValueError(f"{option} {pattern!r} matches no weight layer; there are {names}")
    alone = left_alone(module, everything, reasons, [layer.weight for layer in layers])
    if not layers and not any(reason == "has no elements" for _, reason in alone):
        listed = (
            "; ".join(f"{name}: {reason}" for name, reason in alone)
            or "it has no parameter of two dimensions"
        )
        raise ValueError(f"there is no weight layer to change in {type(module).__name__}: {listed}")
    rule = Orthogonalize(scale, strength, method, num_iters, null)
    draws = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = {
        layer: fresh_weight(layer, module, fresh, draws) if rule.needs_fresh else None for layer in layers
    }
    parameters = [
        NamedParameter(layer.name, layer.weight, layer, is_weight=True, fresh=drawn[layer])
        for layer in layers
    ]
    state = draws.get_state()

    def make() -> Plan:
        draws.set_state(state)
        plan = Plan([*rule(parameters, draws), *_other_writes(module, layers, biases, norms)])
        if biases == "rescale":
            plan.writes += _rescaled(module, everything, plan)
        return plan

    def changes(plan: Plan) -> list[LayerChange]:
        writes = [plan.write_to(layer.weight) for layer in layers]
        return [
            LayerChange("", layer, write.value, layer_scale(layer, scale, fresh=drawn[layer]), write.spectra)
            for layer, write in zip(layers, writes, strict=True)
        ]

    looked = time.perf_counter() - start
    devices = {layer.weight.device for layer in layers if layer.weight.is_cuda}
    plan, reports, seconds = prepare(make, changes, list(devices))
    start = time.perf_counter()
    plan.write()
    return ResetReport(reports, looked + seconds + time.perf_counter() - start, tuple(alone))


def _rescaled(module: nn.Module, layers: Sequence[WeightLayer], plan: Plan) -> list[Write]:
    """The biases of all layers that the changes of the weights' sizes reach."""
    found = rescaled_biases(module, layers, lambda layer: plan.write_to(layer.weight).value)
    return [Write(f"bias of {layer.name}", layer.bias, new) for layer, new in found if layer.bias is not None]


def _other_writes(module: nn.Module, layers: Sequence[WeightLayer], biases: str, norms: str) -> list[Write]:
    """What happens to biases of the chosen layers and to norms."""
    values: dict[nn.Parameter, tuple[str, float]] = {}
    for layer in layers if biases == "zero" else ():
        if isinstance(layer.bias, nn.Parameter):
            values[layer.bias] = (f"bias of {layer.name}", 0.0)
        elif layer.bias is not None:
            raise TypeError(f"the bias of {layer.name} is computed and cannot be set to zero")
    for path, child in module.named_modules() if norms == "identity" else ():
        if isinstance(child, NORMS):
            for own, parameter in child.named_parameters(recurse=False):
                values[parameter] = (f"{path}.{own}".lstrip("."), 1.0 if own == "weight" else 0.0)
    return [Write(name, p, torch.full_like(p, value)) for p, (name, value) in values.items()]


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
