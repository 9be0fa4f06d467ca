"""What a weight layer is, and its weight seen as a batch of (out, in) matrices.

Weight layers are ``nn.Linear``, ``nn.Conv1d/2d/3d`` and their transposed forms, the projections of
``nn.MultiheadAttention``, and any other module with ``in_features``, ``out_features`` and a weight of shape
(*leading, out_features, in_features), such as the batched twin critics of a SAC agent. Everything else
(norms, embeddings, scalars, recurrent and bilinear layers) is not.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ..options import CONV_FORMS


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """One weight of a module, how it splits into matrices, and where it stands in its network.

    Attributes:
        name: dotted path of the module inside the network, followed by the parameter's name if it is not
            ``weight``.
        module: the module that owns the weight.
        kind: ``"linear"``, ``"conv"`` or ``"embedding"`` (only where asked for).
        role: ``"input"`` (first weight layer), ``"head"`` (an output layer) or ``"hidden"``.
        weight_name, bias_name: attributes of ``module``; the bias may be absent.
        parts: how many (out / parts, in) matrices a linear weight holds on its output axis (fused
            projections).
        conv_form: ``"slices"``, one (out, in) matrix for each kernel position, as published, or
            ``"flatten"``, one (out, in * kernel) matrix.
    """

    name: str
    module: nn.Module
    kind: str
    role: str = "hidden"
    weight_name: str = "weight"
    bias_name: str = "bias"
    parts: int = 1
    conv_form: str = "slices"

    @property
    def weight(self) -> nn.Parameter:
        """The parameter itself."""
        return getattr(self.module, self.weight_name)

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias that belongs to the weight, if there is one."""
        return getattr(self.module, self.bias_name, None)

    @property
    def kernel_elements(self) -> int:
        """Number of kernel positions the slices of a convolution are summed over (1 for all other matrices)."""
        return math.prod(self.kernel_size) if self.conv_form == "slices" else 1

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Shape of a convolution's kernel; empty for all other weights."""
        return self.module.kernel_size if isinstance(self.module, _ConvNd) else ()

    def matrices(self, weight: Tensor | None = None) -> Tensor:
        """Return ``weight`` (default: the parameter, detached) as matrices of shape (..., out, in).

        Linear (*leading, out, in), or (parts, out / parts, in); convolution (groups, kernel positions,
        out / groups, in / groups), or flattened (groups, out / groups, in / groups * kernel positions);
        embedding, a linear map of one-hot vectors, (dimension, entries).
        """
        weight = self.weight.detach() if weight is None else weight
        if self.kind == "embedding":
            return weight.mT
        if self.kind == "linear":
            return weight if self.parts == 1 else weight.unflatten(-2, (self.parts, -1))
        grouped = weight.unflatten(0, (self.module.groups, -1)).flatten(3)
        if isinstance(self.module, _ConvTransposeNd):  # (groups, in, out, kernel)
            grouped = grouped.transpose(1, 2)
        return grouped.flatten(2) if self.conv_form == "flatten" else grouped.permute(0, 3, 1, 2)

    def weight_from(self, matrices: Tensor) -> Tensor:
        """Inverse of :meth:`matrices`: a tensor of the parameter's shape."""
        if self.kind == "embedding":
            return matrices.mT
        if self.kind == "linear":
            return matrices.reshape(self.weight.shape)
        if self.conv_form == "flatten":
            grouped = matrices.unflatten(2, (-1, math.prod(self.kernel_size)))
        else:
            grouped = matrices.permute(0, 2, 3, 1)
        if isinstance(self.module, _ConvTransposeNd):
            grouped = grouped.transpose(1, 2)
        return grouped.reshape(self.weight.shape)


def weight_layers(
    module: nn.Module,
    *,
    heads: Sequence[str] = (),
    preserve: Sequence[str] = (),
    select: Callable[[WeightLayer], bool] | None = None,
    conv_form: str = "slices",
    fused: Mapping[str, int] | None = None,
    embeddings: bool = False,
    writable: bool = True,
) -> list[WeightLayer]:
    """Return the weight layers of ``module`` in order of registration; a weight shared by several appears
    once, under its first name.

    Args:
        module: any network.
        heads: names of its output layers, or of modules with nothing but output layers below them; default:
            the last weight layer.
        preserve: names (of modules, with everything below them) that are left out.
        select: keeps the layers for which it is true; it may ask for the role.
        conv_form: ``"slices"`` or ``"flatten"``, see :class:`WeightLayer`.
        fused: how many matrices linear weights hold on the output axis, by shell pattern of their names,
            such as ``{"*.qkv": 3}`` (query, key, value) or ``{"*.qkv": 36}`` (each of 12 heads).
            ``nn.MultiheadAttention`` holds 3 unless a pattern says otherwise.
        embeddings: whether ``nn.Embedding`` counts as well.
        writable: insist on weights that can be written to; without it computed ones count too, to be read only.

    Raises:
        ValueError: a name in ``heads`` is no weight layer, or a weight does not split into that many parts.
        TypeError: a weight is computed by a parametrization or not materialised yet, so writing to it would
            have no lasting effect.
    """
    if conv_form not in CONV_FORMS:
        raise ValueError(f"conv_form {conv_form!r} is not one of {', '.join(CONV_FORMS)}")
    found: list[WeightLayer] = []
    seen: set[int] = set()
    for name, child in module.named_modules():
        if is_below(name, preserve):
            continue
        for layer in _layers_of(name, child, conv_form):
            if id(layer.weight) not in seen and (embeddings or layer.kind != "embedding"):
                seen.add(id(layer.weight))
                found.append(_split(layer, fused or {}))

    names = [layer.name for layer in found]
    unknown = [head for head in heads if not any(is_below(name, [head]) for name in names)]
    if unknown:
        raise ValueError(f"no weight layer is called {unknown[0]!r}; there are {', '.join(names) or 'none'}")
    roles = ["head" if is_below(name, heads or names[-1:]) else "hidden" for name in names]
    if roles[:1] == ["hidden"]:
        roles[0] = "input"
    layers = [replace(layer, role=role) for layer, role in zip(found, roles, strict=True)]
    layers = [layer for layer in layers if select is None or select(layer)]
    for layer in layers if writable else ():
        _check_writable(layer)
    return layers


def is_below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether ``name`` is one of the dotted ``prefixes`` or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _layers_of(name: str, module: nn.Module, conv_form: str) -> list[WeightLayer]:
    """The weights ``module`` itself owns."""
    if isinstance(module, _ConvNd):
        return [WeightLayer(name, module, "conv", conv_form=conv_form)]
    if isinstance(module, nn.Embedding):
        return [WeightLayer(name or "weight", module, "embedding")]
    if isinstance(module, nn.MultiheadAttention):
        layers = []
        for attribute, parts in (("in_proj", 3), ("q_proj", 1), ("k_proj", 1), ("v_proj", 1)):
            if getattr(module, f"{attribute}_weight", None) is not None:
                path = f"{name}.{attribute}_weight".lstrip(".")
                bias = "in_proj_bias" if attribute == "in_proj" else f"{attribute}_bias"
                layers.append(
                    WeightLayer(
                        path, module, "linear", weight_name=f"{attribute}_weight", bias_name=bias, parts=parts
                    )
                )
        return layers
    if isinstance(module, nn.Linear) or _is_batched_linear(module):
        return [WeightLayer(name or "weight", module, "linear")]
    return []


def _split(layer: WeightLayer, fused: Mapping[str, int]) -> WeightLayer:
    parts = next((p for pattern, p in fused.items() if fnmatch.fnmatchcase(layer.name, pattern)), layer.parts)
    if parts != layer.parts and (layer.kind != "linear" or parts < 1 or layer.weight.shape[-2] % parts):
        raise ValueError(
            f"{layer.name} of shape {tuple(layer.weight.shape)} does not hold {parts} equal matrices"
        )
    return replace(layer, parts=parts)


def _is_batched_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    features = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    return isinstance(weight, Tensor) and weight.ndim >= 2 and tuple(weight.shape[-2:]) == features


def _check_writable(layer: WeightLayer) -> None:
    weight = layer.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        raise TypeError(f"{layer.name} is a lazy module without weights yet; run it once on a batch first")
    if weight.is_meta:
        raise TypeError(f"{layer.name} is on the meta device and has no values yet; materialise it first")
    if parametrize.is_parametrized(layer.module, layer.weight_name) or not isinstance(weight, nn.Parameter):
        raise TypeError(
            f"the {layer.weight_name} of {layer.name} is computed (parametrization or weight norm); "
            "remove the parametrization first or leave the layer out"
        )
