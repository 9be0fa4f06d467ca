"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): FIRE's authors name it as future work.

At a border the network remembers its weights and how much each matters; afterwards the loss has the term

    strength / 2 * sum of F_i (theta_i - theta*_i)^2                                                    (eq. 3)

with the diagonal F of the Fisher information of the data before the border. The weights are those before the reset: the
term pulls back what the reset moved and what mattered. Only the newest border is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NUM_SAMPLES = 128


@dataclass(frozen=True)
class Anchor:
    """Weights at a border and their diagonal Fisher information, both by the names of parameters."""

    weights: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    def penalty(self, module: nn.Module, strength: float) -> Tensor:
        """The term, with gradients to ``module``; parameters that came later are left out."""
        terms = [
            (self.fisher[name] * (parameter - self.weights[name]).square()).sum()
            for name, parameter in module.named_parameters()
            if name in self.fisher
        ]
        return 0.5 * strength * torch.stack(terms).sum()


def consolidate(module: nn.Module, inputs: Tensor, generator: torch.Generator) -> Anchor:
    """Remember ``module``, whose Fisher information is the mean over the samples ``inputs``, (N, ...).

    Labels are drawn from the network's own predictions, one for each position, as the Fisher information asks; with
    the data's labels it would be another matrix (Kunstner et al. 2019, arXiv 1905.12558). Norms use running statistics.

    Args:
        generator: CPU generator of those draws.
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    was_training = module.training
    module.eval()
    for sample in inputs.split(1):
        logits = module(sample).float().flatten(0, -2)
        shares = logits.detach().softmax(-1).cpu()
        labels = torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            if gradient is not None:
                total.add_(gradient.square(), alpha=1 / len(inputs))
    module.train(was_training)
    return Anchor({name: p.detach().clone() for name, p in parameters.items()}, fisher)
