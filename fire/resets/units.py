"""Hidden units: which weights lead into a unit and which lead out of it, found by watching one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..network.layers import WeightLayer
from ..network.probe import ACTIVATIONS, by_unit, leave_no_trace
from ..network.slot import NetworkSlot
from .plan import Write


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The hidden units of one activation module.

    Attributes:
        name: dotted path of the activation module.
        producer: the weight layer whose outputs the units are (norms in between are possible).
        consumers: the weight layers that read them.
        activations: (networks, samples, units) on the probe batch; batch and space are samples.
    """

    name: str
    producer: WeightLayer
    consumers: tuple[WeightLayer, ...]
    activations: Tensor


def unit_groups(slot: NetworkSlot, batch: Any) -> list[UnitGroup]:
    """Run the network once and return its groups of hidden units, in order of execution.

    The producer of an activation is the weight layer that ran last before it. Its consumers are the weight
    layers that receive its output as it is or reshaped, or, if something lies in between (a norm, pooling),
    the one that runs next. Activations without a consumer (outputs) and those of grouped convolutions are
    not hidden units in this sense.
    """
    events: list[tuple[str, Any, Tensor]] = []
    handles = []
    layers = [layer for layer in slot.layers() if layer.weight_name == "weight" and layer.kind != "embedding"]

    def layer_hook(layer: WeightLayer) -> Any:
        return lambda module, inputs: events.append(("layer", layer, inputs[0].detach()))

    def activation_hook(name: str) -> Any:
        return lambda module, inputs, output: events.append(("activation", name, output.detach()))

    try:
        for layer in layers:
            handles.append(layer.module.register_forward_pre_hook(layer_hook(layer)))
        for name, module in slot.module.named_modules():
            if isinstance(module, ACTIVATIONS):
                handles.append(module.register_forward_hook(activation_hook(name)))
        with leave_no_trace(slot), torch.no_grad():
            slot.forward(batch)
    finally:
        for handle in handles:
            handle.remove()

    groups: list[UnitGroup] = []
    for index, (kind, name, output) in enumerate(events):
        before = [layer for kind_, layer, _ in events[:index] if kind_ == "layer"]
        after = [(layer, x) for kind_, layer, x in events[index + 1 :] if kind_ == "layer"]
        if kind != "activation" or not before or not after:
            continue
        producer = before[-1]
        direct = [layer for layer, x in after if _same_storage(x, output)]
        consumers = tuple(dict.fromkeys(direct or [after[0][0]]))
        values = by_unit(output, producer.kind == "conv", slot.ensemble_size)
        known = any(group.producer is producer for group in groups)
        if not known and _fits(producer, consumers, values.shape[-1]):
            groups.append(UnitGroup(name, producer, consumers, values))
    return groups


def incoming_mask(layer: WeightLayer, units: Tensor) -> Tensor:
    """Elements of the layer's weight that lead into the marked ``units`` (networks, units): bool, the
    weight's shape.
    """
    axis = 1 if isinstance(layer.module, _ConvTransposeNd) else 0
    return _mask(layer, units, axis if layer.kind == "conv" else -2)


def outgoing_mask(layer: WeightLayer, units: Tensor) -> Tensor:
    """Elements of a consumer's weight that read the marked ``units``; a flattened channel is several inputs."""
    if layer.kind == "conv":
        return _mask(layer, units, 0 if isinstance(layer.module, _ConvTransposeNd) else 1)
    return _mask(layer, units.repeat_interleave(layer.weight.shape[-1] // units.shape[-1], dim=-1), -1)


def outgoing_sums(layer: WeightLayer, values: Tensor, units: int) -> Tensor:
    """Sum ``values`` (of the weight's shape) over everything that reads one unit; (networks, units)."""
    if layer.kind == "conv":
        values = values.movedim(0 if isinstance(layer.module, _ConvTransposeNd) else 1, -1).flatten(0, -2)
    return values.sum(dim=-2).unflatten(-1, (units, -1)).sum(-1).reshape(-1, units)


def bias_mask(layer: WeightLayer, units: Tensor) -> Tensor:
    """Elements of the layer's bias that belong to the marked ``units``."""
    return units if layer.bias is not None and layer.bias.ndim > 1 else units[0]


def recycle(
    network: str, slot: NetworkSlot, marked: Sequence[tuple[UnitGroup, Tensor]], fresh: nn.Module
) -> list[Write]:
    """Plan the recycling of the marked units of ``network``: incoming weights fresh, bias and outgoing
    weights zero.

    All incoming weights come before all outgoing ones, so that a weight between two recycled units ends at
    zero. Optimizer moments of every touched element become zero; step counts stay (Sokar et al. 2023, arXiv
    2302.12902).

    Args:
        marked: groups with their marks, (networks, units) bool.
        fresh: a network of the same architecture that incoming weights are taken from.
    """
    names = {id(p): name for name, p in slot.module.named_parameters()}
    values: dict[nn.Parameter, Tensor] = {}
    touched: dict[nn.Parameter, Tensor] = {}

    def put(parameter: nn.Parameter, mask: Tensor, value: Tensor | float) -> None:
        values[parameter] = torch.where(mask, value, values.get(parameter, parameter.detach()))
        touched[parameter] = touched.get(parameter, torch.zeros_like(mask)) | mask

    for group, units in marked:
        weight = group.producer.weight
        put(weight, incoming_mask(group.producer, units), fresh.get_parameter(names[id(weight)]).detach())
        if group.producer.bias is not None:
            put(group.producer.bias, bias_mask(group.producer, units), 0.0)
    for group, units in marked:
        for consumer in group.consumers:
            put(consumer.weight, outgoing_mask(consumer, units), 0.0)

    writes = [Write(f"{network}/{names[id(p)]}", p, value) for p, value in values.items()]
    for parameter, mask in touched.items():
        state: Mapping[str, Any] = slot.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                name = f"optimizer {key} of {network}/{names[id(parameter)]}"
                writes.append(Write(name, value, torch.where(mask, 0, value)))
    return writes


def _mask(layer: WeightLayer, units: Tensor, axis: int) -> Tensor:
    """Spread (networks, units) along ``axis`` of the layer's weight; networks are its leading dimension, if it
    has one.
    """
    shape = [1] * layer.weight.ndim
    shape[axis] = -1
    if layer.kind == "linear" and layer.weight.ndim > 2:
        shape[0] = units.shape[0]
    else:
        units = units[0]
    return units.reshape(shape).expand(layer.weight.shape)


def _same_storage(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def _fits(producer: WeightLayer, consumers: Sequence[WeightLayer], units: int) -> bool:
    """Whether the units are the producer's outputs and each consumer has as many inputs for every one of them."""
    modules = [layer.module for layer in (producer, *consumers)]
    if any(isinstance(module, _ConvNd) and module.groups > 1 for module in modules):
        return False
    outputs, _ = _features(producer)
    return outputs == units and all(_features(layer)[1] % units == 0 for layer in consumers)


def _features(layer: WeightLayer) -> tuple[int, int]:
    """Outputs and inputs of a layer: channels of a convolution."""
    if isinstance(layer.module, _ConvNd):
        return layer.module.out_channels, layer.module.in_channels
    return layer.weight.shape[-2], layer.weight.shape[-1]
