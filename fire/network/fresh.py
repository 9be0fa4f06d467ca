"""New weights for a layer of any network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .layers import WeightLayer


def fresh_weight(
    layer: WeightLayer, module: nn.Module, fresh: nn.Module | None, generator: torch.Generator
) -> Tensor:
    """Return a newly drawn weight of ``layer``: that of ``fresh``, or one by the layer's own ``reset_parameters``.

    The live layer and the global random state stay as they are.

    Args:
        layer: a weight layer of ``module``.
        module: the network.
        fresh: a newly drawn network of the same architecture, or None.
        generator: CPU generator of the draw.

    Raises:
        ValueError: ``fresh`` has no such weight, or there is none and the layer cannot draw itself.
    """
    if fresh is not None:
        path = next(name for name, child in module.named_modules() if child is layer.module)
        try:
            weight = fresh.get_parameter(f"{path}.{layer.weight_name}".lstrip("."))
        except AttributeError as error:
            raise ValueError(
                f"fresh has no weight {layer.name}; it must have the architecture of module"
            ) from error
        if weight.shape != layer.weight.shape:
            raise ValueError(
                f"fresh has {layer.name} of shape {tuple(weight.shape)}, module {tuple(layer.weight.shape)}"
            )
        return weight.detach()
    owner = copy.deepcopy(layer.module).cpu()
    draw = getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None)
    if draw is None:
        raise ValueError(
            f"{layer.name} cannot be drawn anew: {type(owner).__name__} has no reset_parameters; pass fresh, a newly "
            "drawn network"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        draw()
    return getattr(owner, layer.weight_name).detach()
