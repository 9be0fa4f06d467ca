"""Which layers' sizes multiply into the size of a layer's outputs, and biases that follow a change of those sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .layers import WeightLayer

# Modules with f(c x) = c f(x) for every c > 0, and those that only move, pick, average or mask elements.
HOMOGENEOUS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    nn.modules.dropout._DropoutNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)


def size_chains(module: nn.Module, layers: Sequence[WeightLayer]) -> list[list[WeightLayer]]:
    """Return for each of ``layers`` those, itself last, whose sizes multiply into the size of its outputs.

    Modules are followed in the order of registration, which has to be that in which they run; functions between them
    are not seen. Behind a module that is not homogeneous of degree one a chain starts anew: a norm forgets the size of
    its input, and the size of what a tanh or an unknown module hands on is not that of its input. Output layers all
    read what the last layer before them hands on.

    Args:
        module: the network.
        layers: all its weight layers.

    Raises:
        ValueError: a layer that is neither linear nor a convolution, holds several matrices side by side, or is tied.
    """
    for layer in layers:
        _check_followable(layer)
    owners = {layer.module: index for index, layer in enumerate(layers)}
    chains: list[list[WeightLayer]] = [[] for _ in layers]
    chain: list[WeightLayer] = []
    for child in module.modules():
        if child in owners:
            layer = layers[owners[child]]
            chains[owners[child]] = [*chain, layer]
            if layer.role != "head":
                chain = chains[owners[child]]
        elif not isinstance(child, HOMOGENEOUS) and not any(True for _ in child.children()):
            chain = []
    return chains


def _check_followable(layer: WeightLayer) -> None:
    if layer.kind not in ("linear", "conv") or layer.parts > 1 or layer.weight_name != "weight" or layer.tied:
        raise ValueError(
            f"biases 'rescale' follows linear layers and convolutions one after the other, and {layer.name} is "
            f"{'tied' if layer.tied else 'none of them'}; use biases 'keep' or 'zero'"
        )


def rescaled_biases(
    module: nn.Module, layers: Sequence[WeightLayer], new_weight: Callable[[WeightLayer], Tensor]
) -> list[tuple[WeightLayer, Tensor]]:
    """Return the biases that fit new weights: each times the product of the weights' changes of size up to its layer.

    Derivation. In a network h_l = relu(W_l h_{l-1} + b_l) let every W_l become r_l W_l, r_l > 0. With
    b_l <- R_l b_l, R_l = r_1 r_2 ... r_l, induction gives h_l <- R_l h_l, because relu(c x) = c relu(x):
    relu(r_l W_l R_{l-1} h_{l-1} + R_l b_l) = R_l h_l. So the outputs are multiplied by R_L > 0, and their order, the
    greedy policy, stays as it was. With biases kept every h_l would be another function.

    FIRE turns W_l into r_l W_l exactly where W_l is an isometry times a number. Elsewhere r_l = ||W~_l||_F / ||W_l||_F,
    the change of size, which makes the whole reset invariant: (W_l, b_l, W_{l+1}) and (c W_l, c b_l, W_{l+1} / c) are
    one function for c > 0, their polar factors are the same, r_l becomes r_l / c and r_{l+1} becomes c r_{l+1}, so that
    all R_l b_l and with them the network after the reset are the same (for the scales that do not look at the weight:
    ``paper``, ``unit``, ``fresh_norm``).

    It stops holding where a function is not homogeneous. Behind a norm, whose output does not depend on the size of its
    input, the product starts anew, and the statements hold for each part between norms (up to the norm's epsilon; not
    for batch norm in evaluation). Behind a tanh and the like the product starts anew too, but nothing is promised. In a
    sum of branches, such as a residual block's, each branch has its own product, so that their proportion changes.

    Args:
        module: the network.
        layers: all its weight layers.
        new_weight: what a layer's weight will be, in its shape; the present one where it stays.

    Returns:
        Each layer that has a bias, and the new bias in its shape and dtype. Ensembles have a product for each network.
        A weight that is zero, which has no size, counts as unchanged.

    Raises:
        ValueError: see :func:`size_chains`.
    """
    chains = size_chains(module, layers)
    changes = {layer.module: _change_of_size(layer, new_weight(layer)) for layer in layers}
    found = []
    for layer, chain in zip(layers, chains, strict=True):
        if layer.bias is not None:
            product = math.prod((changes[each.module] for each in chain), start=torch.ones(()).double())
            bias = layer.bias.detach()
            found.append((layer, (bias.double() * product.to(bias.device)[..., None]).to(bias.dtype)))
    return found


def _change_of_size(layer: WeightLayer, new: Tensor) -> Tensor:
    """||new||_F / ||old||_F, float64: a number, or one for each network of an ensemble."""
    old = layer.weight.detach()
    axes = (-2, -1) if layer.kind == "linear" else tuple(range(old.ndim))
    before, after = (torch.linalg.vector_norm(w.double(), dim=axes) for w in (old, new))
    return torch.where(before > 0, after / before, 1.0)
