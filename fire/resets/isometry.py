"""What the resets that turn weights into scaled isometries do beyond the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..network.chain import rescaled_biases
from ..network.layers import WeightLayer
from ..network.memory import region
from ..network.probe import layer_outputs
from ..network.slot import NetworkSlot
from ..options import IsometryOptions
from .plan import Plan, Write


def complete_isometries(
    plan: Plan, slots: Mapping[str, NetworkSlot], batch: Any, options: IsometryOptions
) -> None:
    """Add to ``plan`` layers whose outputs keep their size and biases that follow the weights, as ``options`` say."""
    for role in ("input", "head"):
        if options.outer_layer(role) == "match_outputs":
            for network, slot in slots.items():
                _match_outputs(plan, network, slot, role, batch, options)
    if options.biases == "rescale":
        for network, slot in slots.items():
            plan.writes += _bias_writes(plan, network, slot, options)


def _match_outputs(
    plan: Plan, network: str, slot: NetworkSlot, role: str, batch: Any, options: IsometryOptions
) -> None:
    """Multiply the layers of ``role`` so that their outputs keep their root mean square on ``batch``."""
    layers = [layer for layer in slot.layers(options.conv_form) if layer.role == role]
    before = layer_outputs(slot, layers, batch)
    biases = _bias_writes(plan, network, slot, options) if options.biases == "rescale" else []
    with Plan([*plan.writes, *biases]).rehearsed():
        after = layer_outputs(slot, layers, batch)
    for layer, old, new in zip(layers, before, after, strict=True):
        written = plan.write_to(layer.weight)
        if not written.name:  # an embedding, which stays
            continue
        sizes = [value.double().square().mean((1, 2)).sqrt() for value in (old, new)]
        factor = torch.where(sizes[1] > 0, sizes[0] / sizes[1], 1.0)
        _multiply(plan, written, _spread(factor, layer, layer.weight), factor)
        if layer.bias is not None and options.biases != "rescale":  # which follows the weights by itself
            bias = plan.write_to(layer.bias)
            name = f"{network}/{layer.name}.{layer.bias_name}"
            _multiply(plan, bias._replace(name=name), _spread(factor, layer, layer.bias), factor)


def _multiply(plan: Plan, write: Write, factor: Tensor, by_network: Tensor) -> None:
    """Put ``write`` times ``factor`` into the plan, in place of what it had for that tensor."""
    spectra = write.spectra
    if spectra is not None:
        shape = [-1, *[1] * (spectra.after.ndim - 1)]
        # The product rounds once more.
        defect = spectra.defect + torch.finfo(write.value.dtype).eps
        after = spectra.after * by_network.to(spectra.after.device).view(shape)
        spectra = spectra._replace(after=after, defect=defect)
    value = (write.value.double() * factor.to(write.value.device)).to(write.value.dtype)
    plan.writes = [w for w in plan.writes if w.destination is not write.destination]
    plan.writes.append(write._replace(value=value, spectra=spectra))


def _spread(factor: Tensor, layer: WeightLayer, parameter: Tensor) -> Tensor:
    """The factor of each network, (networks,), in a shape that multiplies the layer's ``parameter``."""
    is_ensemble = layer.kind == "linear" and layer.weight.ndim > 2
    return factor.view([-1, *[1] * (parameter.ndim - 1)]) if is_ensemble else factor.mean()


def _bias_writes(plan: Plan, network: str, slot: NetworkSlot, options: IsometryOptions) -> Sequence[Write]:
    """Biases times the changes of size up to their layers; those that ``plan`` replaces anyway are left out."""
    written = {region(write.destination) for write in plan.writes}
    layers = slot.layers(options.conv_form)
    rescaled = rescaled_biases(slot.module, layers, lambda layer: plan.write_to(layer.weight).value)
    return [
        Write(f"{network}/{layer.name}.{layer.bias_name}", layer.bias, value)
        for layer, value in rescaled
        if layer.bias is not None and region(layer.bias) not in written
    ]
