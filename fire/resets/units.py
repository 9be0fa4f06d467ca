"""Hidden units under a reset: their activations, the weights that lead into them and those that lead out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..network.flow import UnitFlows, unit_flows
from ..network.layers import WeightLayer
from ..network.probe import by_unit, leave_no_trace
from ..network.slot import NetworkSlot
from .plan import Write


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """The hidden units of one activation module.

    Attributes:
        name: dotted path of the activation module.
        producer: the weight layer whose outputs the units are (norms in between are possible).
        consumers: the weight layers that read them.
        inputs: for each consumer the places of its input that carry each unit, as in
            :class:`~fire.network.flow.UnitFlow`.
        activations: (networks, samples, units) on the probe batch; batch and space are samples.
    """

    name: str
    producer: WeightLayer
    consumers: tuple[WeightLayer, ...]
    inputs: tuple[Tensor, ...]
    activations: Tensor


def unit_groups(slot: NetworkSlot, batch: Any, flows: UnitFlows | None = None) -> list[UnitGroup]:
    """Run the network once and return its groups of hidden units, in order of execution.

    Args:
        slot: the network.
        batch: what ``slot.forward`` takes.
        flows: what the units were proved to feed (default: proved on this batch).
    """
    flows = unit_flows(slot, batch) if flows is None else flows
    calls: dict[nn.Module, int] = {}
    outputs: dict[tuple[nn.Module, int], Tensor] = {}

    def on_activation(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        outputs[module, calls[module]] = output.detach()

    handles = [
        m.register_forward_hook(on_activation) for m in dict.fromkeys(flow.module for flow in flows.flows)
    ]
    try:
        with leave_no_trace(slot), torch.no_grad():
            slot.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    groups = []
    for flow in flows.flows:
        values = by_unit(outputs[flow.module, flow.call], flow.producer.kind == "conv", slot.ensemble_size)
        groups.append(UnitGroup(flow.name, flow.producer, flow.consumers, flow.inputs, values))
    return groups


def incoming_mask(layer: WeightLayer, units: Tensor) -> Tensor:
    """Elements of the layer's weight that lead into the marked ``units`` (networks, units): bool, the
    weight's shape.
    """
    return spread_incoming(layer, units)


def outgoing_mask(layer: WeightLayer, inputs: Tensor, units: Tensor) -> Tensor:
    """Elements of a consumer's weight that read the marked ``units``, which stand at the places ``inputs``."""
    return spread_outgoing(layer, inputs, units)


def spread_incoming(layer: WeightLayer, values: Tensor) -> Tensor:
    """A value for each unit (networks, units) at all elements of the layer's weight that lead into the unit."""
    return _mask(layer, values, layer.out_axis)


def spread_outgoing(layer: WeightLayer, inputs: Tensor, values: Tensor) -> Tensor:
    """A value for each unit (networks, units) at all elements of a consumer's weight that read it; 0 elsewhere."""
    size = layer.weight.shape[layer.in_axis]
    places = inputs.to(values.device).flatten(1)
    repeated = values[..., None].expand(*values.shape, inputs.shape[-1]).flatten(1)
    read = torch.zeros(len(values), size + 1, dtype=values.dtype, device=values.device)
    return _mask(layer, read.scatter(1, places, repeated)[:, :size], layer.in_axis)


def outgoing_sums(layer: WeightLayer, inputs: Tensor, values: Tensor) -> Tensor:
    """Sum ``values`` (of the weight's shape) over everything that reads one unit; (networks, units)."""
    values = values.movedim(layer.in_axis, -1)
    if layer.kind == "conv":
        values = values.flatten(0, -2)
    sums = values.sum(dim=-2).reshape(len(inputs), -1)
    padded = torch.cat([sums, sums.new_zeros(len(inputs), 1)], dim=1)
    places = inputs.to(values.device)
    return padded.gather(1, places.flatten(1)).view(places.shape).sum(-1)


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
    names = {parameter: name for name, parameter in slot.module.named_parameters()}
    values: dict[nn.Parameter, Tensor] = {}
    touched: dict[nn.Parameter, Tensor] = {}

    def put(parameter: nn.Parameter, mask: Tensor, value: Tensor | float) -> None:
        values[parameter] = torch.where(mask, value, values.get(parameter, parameter.detach()))
        touched[parameter] = touched.get(parameter, torch.zeros_like(mask)) | mask

    for group, units in marked:
        weight = group.producer.weight
        put(
            weight,
            incoming_mask(group.producer, units),
            fresh.get_parameter(names[weight]).detach().to(weight),
        )
        if group.producer.bias is not None:
            put(group.producer.bias, bias_mask(group.producer, units), 0.0)
    for group, units in marked:
        for consumer, inputs in zip(group.consumers, group.inputs, strict=True):
            put(consumer.weight, outgoing_mask(consumer, inputs, units), 0.0)

    writes = [Write(f"{network}/{names[p]}", p, value) for p, value in values.items()]
    for parameter, mask in touched.items():
        state: Mapping[str, Any] = slot.optimizer.state.get(parameter, {})
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                name = f"optimizer {key} of {network}/{names[parameter]}"
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
