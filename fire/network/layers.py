"""What a weight layer is, and its weight seen as a batch of (out, in) matrices.

Weight layers are ``nn.Linear``, ``nn.Bilinear``, ``nn.Conv1d/2d/3d`` and their transposed forms, the recurrent layers
and cells, the projections of ``nn.MultiheadAttention``, the ``Conv1D`` of GPT-2, and any other module that says how
many features go in and out and has a weight of shape (*leading, out, in) or (*leading, in, out), such as the batched
twin critics of a SAC agent or a stack of experts. Parameters of other modules become layers where
their layout is declared. Everything else (norms, embeddings, scalars) is not.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ..options import CONV_FORMS
from .memory import first_overlap, obstacle, region

LAYOUTS = ("out_in", "in_out")
NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)
# How modules call their numbers of outputs and inputs.
_FEATURES = (("out_features", "in_features"), ("output_size", "input_size"))
_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3, nn.RNN: 1, nn.RNNCell: 1}


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """One weight of a module, how it splits into matrices, and where it stands in its network.

    Attributes:
        name: dotted path of the module inside the network, followed by the parameter's name if it is not
            ``weight``.
        module: the module that owns the weight.
        kind: ``"linear"``, ``"bilinear"``, ``"conv"`` or ``"embedding"`` (only where asked for).
        role: ``"input"`` (first weight layer), ``"head"`` (an output layer) or ``"hidden"``.
        weight_name, bias_name: attributes of ``module``; the bias may be absent.
        parts: how many (out / parts, in) matrices a linear weight holds on its output axis (fused
            projections, gates).
        conv_form: ``"slices"``, one (out, in / groups) matrix for each kernel position, as published, ``"flatten"``,
            one (out, in / groups * kernel) matrix, or ``"group_slices"`` and ``"group_flatten"``, the same for each
            group of a grouped convolution on its own, (out / groups, ...).
        transposed: whether a linear weight is (*leading, in, out).
        tied: names of other parameters that are the same memory.
        embedding: name of the ``nn.Embedding`` parameter among those, if there is one.
        obstacle: why the weight cannot be had at all; empty if it can.
    """

    name: str
    module: nn.Module
    kind: str
    role: str = "hidden"
    weight_name: str = "weight"
    bias_name: str = "bias"
    parts: int = 1
    conv_form: str = "slices"
    transposed: bool = False
    tied: tuple[str, ...] = ()
    embedding: str = ""
    obstacle: str = ""

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
        return math.prod(self.kernel_size) if self.conv_form.endswith("slices") else 1

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Shape of a convolution's kernel; empty for all other weights."""
        return self.module.kernel_size if isinstance(self.module, _ConvNd) else ()

    @property
    def out_axis(self) -> int:
        """Dimension of the weight that counts outputs."""
        if self.kind == "conv":
            return 1 if isinstance(self.module, _ConvTransposeNd) else 0
        return {"bilinear": 0, "embedding": -1}.get(self.kind, -1 if self.transposed else -2)

    @property
    def in_axis(self) -> int:
        """Dimension of the weight that counts inputs."""
        if self.kind == "conv":
            return 1 - self.out_axis
        return -2 if self.transposed or self.kind == "embedding" else -1

    def matrices(self, weight: Tensor | None = None) -> Tensor:
        """Return ``weight`` (default: the parameter, detached) as matrices of shape (..., out, in).

        Linear (*leading, out, in), or (*leading, parts, out / parts, in); bilinear (out, in1 * in2), a linear map of
        the outer product; convolution (groups, kernel positions, out / groups, in / groups), or flattened (groups,
        out / groups, in / groups * kernel positions), where ``groups`` is 1 unless the form is one of groups, and
        ``in / groups`` is what one output reads; embedding, a linear map of one-hot vectors, (dimension, entries).
        """
        weight = self.weight.detach() if weight is None else weight
        if self.kind == "embedding":
            return weight.mT
        if self.kind == "bilinear":
            return weight.flatten(1)
        if self.kind == "linear":
            weight = weight.mT if self.transposed else weight
            return weight if self.parts == 1 else weight.unflatten(-2, (self.parts, -1))
        grouped = weight.unflatten(0, (self._num_groups, -1)).flatten(3)
        if isinstance(self.module, _ConvTransposeNd):  # (groups, in, out, kernel)
            grouped = grouped.transpose(1, 2)
        return grouped.flatten(2) if self.conv_form.endswith("flatten") else grouped.permute(0, 3, 1, 2)

    def weight_from(self, matrices: Tensor) -> Tensor:
        """Inverse of :meth:`matrices`: a tensor of the parameter's shape."""
        shape = self.weight.shape
        if self.kind == "embedding":
            return matrices.mT
        if self.kind in ("linear", "bilinear"):
            return (
                matrices.reshape(*shape[:-2], shape[-1], shape[-2]).mT
                if self.transposed
                else matrices.reshape(shape)
            )
        if self.conv_form.endswith("flatten"):
            grouped = matrices.unflatten(2, (-1, math.prod(self.kernel_size)))
        else:
            grouped = matrices.permute(0, 2, 3, 1)
        if isinstance(self.module, _ConvTransposeNd):
            grouped = grouped.transpose(1, 2)
        return grouped.reshape(shape)

    @property
    def _num_groups(self) -> int:
        return (
            self.module.groups
            if self.conv_form.startswith("group") and isinstance(self.module, _ConvNd)
            else 1
        )


def weight_layers(
    module: nn.Module,
    *,
    heads: Sequence[str] = (),
    preserve: Sequence[str] = (),
    select: Callable[[WeightLayer], bool] | None = None,
    conv_form: str = "slices",
    fused: Mapping[str, int] | None = None,
    layouts: Mapping[str, str] | None = None,
    embeddings: bool = False,
    writable: bool = True,
) -> list[WeightLayer]:
    """Return the weight layers of ``module`` in order of registration; a weight shared by several appears
    once, under its first name. Weights without elements are left out.

    Args:
        module: any network.
        heads: names of its output layers, or of modules with nothing but output layers below them; default:
            the last weight layer.
        preserve: names (of modules, with everything below them) that are left out.
        select: keeps the layers for which it is true; it may ask for the role.
        conv_form: ``"slices"``, ``"flatten"``, ``"group_slices"`` or ``"group_flatten"``, see :class:`WeightLayer`.
        fused: how many matrices linear weights hold on the output axis, by shell pattern of their names,
            such as ``{"*.qkv": 3}`` (query, key, value) or ``{"*.qkv": 36}`` (each of 12 heads). Unless a pattern says
            otherwise ``nn.MultiheadAttention`` holds 3, and recurrent layers one for each gate.
        layouts: ``"out_in"`` or ``"in_out"`` by shell pattern of the dotted names of parameters (*leading, a, b) that
            belong to no known layer, such as ``{"*.experts.down_proj": "in_out"}``.
        embeddings: whether ``nn.Embedding`` counts as well.
        writable: insist on weights that can be written to, and find weights tied by memory; without it computed
            ones count too, to be read only.

    Raises:
        ValueError: a name in ``heads`` is no weight layer, a pattern matches nothing, a weight does not split into
            that many parts, or shares part of its memory with another parameter.
        TypeError: a weight cannot be written to with lasting effect: computed by a parametrization, scripted,
            quantised, not materialised, made under inference mode, expanded.
    """
    if conv_form not in CONV_FORMS:
        raise ValueError(f"conv_form {conv_form!r} is not one of {', '.join(CONV_FORMS)}")
    found: list[WeightLayer] = []
    seen: dict[object, Tensor | None] = {}  # holds what it has seen, so that no address is used a second time
    for layer in _all_layers(module, preserve, conv_form, layouts or {}):
        weight = None if layer.obstacle else layer.weight
        key = (layer.name,) if weight is None else region(weight)
        if key not in seen and (embeddings or layer.kind != "embedding"):
            seen[key] = weight
            found.append(layer)
    found = _split(found, fused or {})

    names = [layer.name for layer in found]
    unknown = [head for head in heads if not any(is_below(name, [head]) for name in names)]
    if unknown:
        raise ValueError(f"no weight layer is called {unknown[0]!r}; there are {', '.join(names) or 'none'}")
    roles = ["head" if is_below(name, heads or names[-1:]) else "hidden" for name in names]
    if roles[:1] == ["hidden"]:
        roles[0] = "input"
    layers = [replace(layer, role=role) for layer, role in zip(found, roles, strict=True)]
    layers = [layer for layer in layers if layer.obstacle or _is_lazy(layer) or layer.weight.numel()]
    if writable:
        layers = _with_ties(module, layers)
    layers = [layer for layer in layers if select is None or select(layer)]
    if writable:
        _check_writable(module, layers)
    return layers


def is_below(name: str, prefixes: Sequence[str]) -> bool:
    """Whether ``name`` is one of the dotted ``prefixes`` or lies below one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def left_alone(
    module: nn.Module, layers: Sequence[WeightLayer], reasons: Mapping[str, str], changed: Sequence[Tensor]
) -> list[tuple[str, str]]:
    """Name and reason of every layer, and of every other parameter of two or more dimensions, that is not ``changed``.

    Args:
        module: the network.
        layers: its weight layers.
        reasons: why, for the layers that stay, by name.
        changed: the tensors that are written to.
    """
    known = [layer for layer in layers if not layer.obstacle]
    owned = [
        *changed,
        *(layer.weight for layer in known),
        *(layer.bias for layer in known if layer.bias is not None),
    ]
    done = {region(tensor) for tensor in owned}
    opaque = [layer.name for layer in layers if layer.obstacle]
    listed = [(layer.name, reasons[layer.name]) for layer in layers if layer.name in reasons]
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter) or is_below(name, opaque):
            continue
        if parameter.ndim >= 2 and region(parameter) not in done:
            listed.append((name, _why_no_layer(module, name, parameter)))
    return listed


def _why_no_layer(module: nn.Module, name: str, parameter: Tensor) -> str:
    if not parameter.numel():
        return "has no elements"
    if ".parametrizations." in f".{name}":
        return "belongs to a parametrization"
    owner = module.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "an embedding"
    if isinstance(owner, NORMS):
        return "a norm"
    return "belongs to no known layer; layouts can declare it"


def _all_layers(
    module: nn.Module, preserve: Sequence[str], conv_form: str, layouts: Mapping[str, str]
) -> Iterator[WeightLayer]:
    for layout in layouts.values():
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is not one of {', '.join(LAYOUTS)}")
    unused = dict.fromkeys(layouts)
    opaque: list[str] = []
    for name, child in module.named_modules():
        if is_below(name, preserve) or is_below(name, opaque):
            continue
        layers = _layers_of(name, child, conv_form)
        yield from layers
        opaque += [
            layer.name for layer in layers if layer.obstacle and layer.weight_name == "weight" and name
        ]
        known = {layer.weight_name for layer in layers}
        for own, parameter in child.named_parameters(recurse=False):
            path = f"{name}.{own}".lstrip(".")
            pattern = next((p for p in layouts if fnmatch.fnmatchcase(path, p)), None)
            if pattern is None or own in known or parameter.ndim < 2:
                continue
            unused.pop(pattern, None)
            yield WeightLayer(
                path, child, "linear", weight_name=own, bias_name="", transposed=layouts[pattern] == "in_out"
            )
    if unused:
        raise ValueError(f"layouts {next(iter(unused))!r} matches no parameter that needs a layout")


def _layers_of(name: str, module: nn.Module, conv_form: str) -> list[WeightLayer]:
    """The weights ``module`` itself owns."""
    if (hidden := _hidden(module)) is not None:
        reason, names = hidden
        return [
            WeightLayer(name or "weight", module, "linear", obstacle=reason)
            if own == "weight"
            else WeightLayer(f"{name}.{own}".lstrip("."), module, "linear", weight_name=own, obstacle=reason)
            for own in names
        ]
    if isinstance(module, _ConvNd):
        return [WeightLayer(name, module, "conv", conv_form=conv_form)]
    if isinstance(module, nn.Embedding):
        return [WeightLayer(name or "weight", module, "embedding")]
    if isinstance(module, nn.Bilinear):
        return [WeightLayer(name or "weight", module, "bilinear")]
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase):
        return [
            WeightLayer(
                f"{name}.{own}".lstrip("."), module, "linear", weight_name=own, bias_name=bias, parts=parts
            )
            for own, bias, parts in _named_weights(module)
            if getattr(module, own, None) is not None
        ]
    if _is_conv1d(module):
        return [WeightLayer(name or "weight", module, "linear", transposed=True)]
    if isinstance(module, nn.Linear):
        return [WeightLayer(name or "weight", module, "linear")]
    weight = getattr(module, "weight", None)
    for out_name, in_name in _FEATURES:
        features = (getattr(module, out_name, None), getattr(module, in_name, None))
        if isinstance(weight, Tensor) and weight.ndim >= 2 and None not in features:
            shape = tuple(weight.shape[-2:])
            if shape in (features, features[::-1]):
                return [WeightLayer(name or "weight", module, "linear", transposed=shape != features)]
    return []


def _named_weights(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Weight, bias and number of matrices of attention and recurrent layers."""
    if isinstance(module, nn.MultiheadAttention):
        yield "in_proj_weight", "in_proj_bias", 3
        for own in ("q", "k", "v"):
            yield f"{own}_proj_weight", f"{own}_proj_bias", 1
        return
    gates = next(count for kind, count in _GATES.items() if isinstance(module, kind))
    if isinstance(module, nn.RNNBase):
        names = [own for own in module._flat_weights_names if own.startswith("weight")]
    else:
        names = ["weight_ih", "weight_hh"]
    for own in names:  # weight_hr is the projection of an LSTM, which has no gates
        yield own, own.replace("weight", "bias"), 1 if own.startswith("weight_hr") else gates


def _hidden(module: nn.Module) -> tuple[str, list[str]] | None:
    """Why the weights of a scripted, traced or quantised module are out of reach, and their names; None for others."""
    if isinstance(module, torch.jit.ScriptModule):
        own = [name for name, parameter in module.named_parameters(recurse=False) if parameter.ndim >= 2]
        return "is scripted or traced; use the module it was made from", own
    packed = any(hasattr(module, name) for name in ("_packed_params", "_all_weight_values"))
    if packed and type(module).__module__.startswith("torch.ao.nn.quantized"):
        return "is quantised", ["weight"]
    sized = any(isinstance(getattr(module, name, None), int) for name, _ in _FEATURES)
    bare = not any(True for _ in module.parameters()) and not isinstance(
        getattr(module, "weight", None), Tensor
    )
    if sized and bare and any(buffer.ndim >= 2 for buffer in module.buffers(recurse=False)):
        return "keeps its weight in buffers, as quantised layers do", ["weight"]
    return None


def _is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in ``transformers``: (in, out) weights, ``nf`` outputs."""
    weight = getattr(module, "weight", None)
    if type(module).__name__ != "Conv1D" or not isinstance(weight, Tensor):
        return False
    return weight.ndim == 2 and weight.shape[1] == getattr(module, "nf", None)


def _split(layers: Sequence[WeightLayer], fused: Mapping[str, int]) -> list[WeightLayer]:
    unused = dict.fromkeys(fused)
    split = []
    for layer in layers:
        pattern = next((p for p in fused if fnmatch.fnmatchcase(layer.name, p)), None)
        if pattern is None:
            split.append(layer)
            continue
        unused.pop(pattern, None)
        parts = fused[pattern]
        shape = () if layer.obstacle else tuple(layer.weight.shape)
        if parts != layer.parts and (
            layer.kind != "linear" or parts < 1 or not shape or shape[layer.out_axis] % parts
        ):
            raise ValueError(f"{layer.name} of shape {shape} does not hold {parts} equal matrices")
        split.append(replace(layer, parts=parts))
    if unused:
        names = ", ".join(layer.name for layer in layers) or "none"
        raise ValueError(f"fused {next(iter(unused))!r} matches no weight layer; there are {names}")
    return split


def _with_ties(module: nn.Module, layers: Sequence[WeightLayer]) -> list[WeightLayer]:
    """The layers with the names of other parameters that are the same memory."""
    names: dict[object, list[str]] = {}
    embeddings: set[str] = set()
    paths: dict[nn.Module, str] = {}
    for path, child in module.named_modules():
        paths[child] = path
        for own, parameter in child.named_parameters(recurse=False):
            name = f"{path}.{own}".lstrip(".")
            names.setdefault(region(parameter), []).append(name)
            if isinstance(child, nn.Embedding | nn.EmbeddingBag):
                embeddings.add(name)
    tied = []
    for layer in layers:
        if layer.obstacle:
            tied.append(layer)
            continue
        own = f"{paths[layer.module]}.{layer.weight_name}".lstrip(".")
        others = tuple(name for name in names.get(region(layer.weight), ()) if name != own)
        embedding = next((name for name in others if name in embeddings), "")
        tied.append(replace(layer, tied=others, embedding=embedding) if others else layer)
    return tied


def _is_lazy(layer: WeightLayer) -> bool:
    return isinstance(layer.weight, nn.parameter.UninitializedParameter)


def _check_writable(module: nn.Module, layers: Sequence[WeightLayer]) -> None:
    for layer in layers:
        if layer.obstacle:
            raise TypeError(f"{layer.name} {layer.obstacle}, or leave it out")
        weight = layer.weight
        computed = parametrize.is_parametrized(layer.module, layer.weight_name)
        if computed or not isinstance(weight, nn.Parameter):
            raise TypeError(
                f"the {layer.weight_name} of {layer.name} is computed (parametrization or weight norm); "
                "remove the parametrization first or leave the layer out"
            )
        if (reason := obstacle(weight)) is not None:
            raise TypeError(f"{layer.name} {reason}")
    weights = {region(layer.weight): (layer.name, layer.weight) for layer in layers}
    if not weights:
        return
    others = {region(p): (n, p) for n, p in module.named_parameters() if not obstacle(p)}
    if (pair := first_overlap({**others, **weights}.values())) is not None:
        changed = {name for name, _ in weights.values()}
        if changed & set(pair):
            raise ValueError(f"{pair[0]} and {pair[1]} share a part of their memory; clone one of them first")
