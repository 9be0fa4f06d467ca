"""What the resets that turn weights into scaled isometries do beyond the weights."""

from __future__ import annotations

from collections.abc import Mapping

from ..network.chain import rescaled_biases
from ..network.memory import region
from ..network.slot import NetworkSlot
from ..options import IsometryOptions
from .plan import Plan, Write


def rescale_biases(slots: Mapping[str, NetworkSlot], options: IsometryOptions, plan: Plan) -> list[Write]:
    """Biases times the changes of size up to their layers, where ``options`` want that.

    Those that ``plan`` replaces anyway are left out.
    """
    if options.biases != "rescale":
        return []
    written = {region(write.destination) for write in plan.writes}
    writes = []
    for network, slot in slots.items():
        layers = slot.layers(options.conv_form)
        for layer, value in rescaled_biases(
            slot.module, layers, lambda layer: plan.write_to(layer.weight).value
        ):
            if layer.bias is not None and region(layer.bias) not in written:
                writes.append(Write(f"{network}/{layer.name}.{layer.bias_name}", layer.bias, value))
    return writes
