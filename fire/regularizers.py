"""Loss terms that keep a network plastic; an agent adds them to its training loss.

Both return a scalar with gradients to the network; the weight of the term is a factor in front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .network.layers import weight_layers
from .network.slot import NetworkSlot


def l2_init(module: nn.Module, initial: Mapping[str, Tensor], strength: float) -> Tensor:
    """strength / 2 * ||theta - theta_0||^2 over the parameters that ``initial`` names (Kumar et al. 2023, arXiv
    2308.11958).

    Args:
        module: the network.
        initial: first values of its learning parameters by name, such as
            ``dict(slot.initial().named_parameters())``; parameters that came later (an injected head) are left out.
        strength: FIRE's vision runs use 1e-5 to 1e-3.
    """
    terms = [
        (parameter - initial[name].detach()).square().sum()
        for name, parameter in module.named_parameters()
        if name in initial
    ]
    return 0.5 * strength * torch.stack(terms).sum()


def parseval(module: nn.Module, strength: float, scale: float = 1.0, heads: Sequence[str] = ()) -> Tensor:
    """strength * sum of ||W W^T - s I||_F^2 over weight layers (Chung et al. 2024, arXiv 2412.07224).

    Convolutions count as one (out, in * kernel) matrix; output layers are left out, since their size
    carries the predictions.

    Args:
        module: the network.
        strength: FIRE's vision runs use 1e-5 to 1e-3.
        scale: s; 1 in FIRE's vision runs.
        heads: names of the output layers; default: the last weight layer.
    """
    terms = []
    for layer in weight_layers(module, heads=heads, conv_form="flatten", writable=False):
        if layer.role != "head":
            matrices = layer.matrices(layer.weight)
            gram = matrices @ matrices.mT
            identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
            terms.append((gram - scale * identity).square().sum())
    return strength * torch.stack(terms).sum() if terms else torch.zeros(())


class Regularizer(nn.Module):
    """The terms that are switched on for one network; calling it with the network gives their sum, 0 where none is.

    The first weights are buffers, so that ``torch.func.functional_call`` can exchange them together with the
    network's parameters; they are no part of the state dict, since the seed gives them again.

    Args:
        l2_init_strength, parseval_strength: factors of the two terms; 0 leaves a term out.
        slot: the network, with its first weights.
    """

    def __init__(self, l2_init_strength: float, parseval_strength: float, slot: NetworkSlot) -> None:
        super().__init__()
        self._l2_init = l2_init_strength
        self._parseval = parseval_strength
        self._heads = slot.heads
        self._names: list[str] = []
        if l2_init_strength:
            first = {name: p.detach() for name, p in slot.initial().named_parameters() if p.requires_grad}
            self._names = list(first)
            for index, weights in enumerate(first.values()):
                self.register_buffer(f"initial_{index}", weights, persistent=False)

    def forward(self, module: nn.Module) -> Tensor | float:
        total: Tensor | float = 0.0
        if self._l2_init:
            total = total + l2_init(
                module, dict(zip(self._names, self.buffers(), strict=True)), self._l2_init
            )
        if self._parseval:
            total = total + parseval(module, self._parseval, heads=self._heads)
        return total
