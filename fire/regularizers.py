"""Loss terms that keep a network plastic; an agent adds them to its training loss.

Both return a scalar with gradients to the network; the weight of the term is a factor in front.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fire.layers import weight_layers


def l2_init(module: nn.Module, initial: Mapping[str, Tensor], strength: float) -> Tensor:
    """strength / 2 * ||theta - theta_0||^2 over all learning parameters (Kumar et al. 2023, arXiv
    2308.11958).

    Args:
        module: the network.
        initial: its first parameters by name, such as ``dict(slot.initial().named_parameters())``.
        strength: FIRE's vision runs use 1e-5 to 1e-3.
    """
    terms = [
        (parameter - initial[name].detach()).square().sum()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    return 0.5 * strength * torch.stack(terms).sum()


def parseval(module: nn.Module, strength: float, scale: float = 1.0) -> Tensor:
    """strength * sum of ||W W^T - s I||_F^2 over weight layers (Chung et al. 2024, arXiv 2407.07747).

    Convolutions count as one (out, in * kernel) matrix; output layers are left out, since their size
    carries the predictions.

    Args:
        module: the network.
        strength: FIRE's vision runs use 1e-5 to 1e-3.
        scale: s; 1 in FIRE's vision runs.
    """
    terms = []
    for layer in weight_layers(module, conv_form="flatten"):
        if layer.role != "head":
            matrices = layer.matrices(layer.weight)
            gram = matrices @ matrices.mT
            identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
            terms.append((gram - scale * identity).square().sum())
    return strength * torch.stack(terms).sum() if terms else torch.zeros(())
