"""Networks whose optimisation is kept well-conditioned: batch norm behind unit weights, for actor and twin critics.

XQC: Palenicek et al. 2026, "XQC: Well-conditioned Optimization Accelerates Deep Reinforcement Learning", arXiv
2509.25174. Shapes: B batch, E critics of an ensemble, D observation size, A action size, M atoms.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.networks import LOG_STD_MAX, LOG_STD_MIN, EnsembleLinear, EnsembleOutputLinear, OutputLinear
from fire.resets.injection import InjectedHead

BATCH_NORM_EPS = 1e-3
BATCH_NORM_SHARE = 0.01  # of each batch in the running statistics
RETURN_EPS = 1e-8


class RewardNormalizer(nn.Module):
    """Scale of the rewards: one over the standard deviation of the discounted return so far.

    As in XQC's released code: the return runs along each environment, ``G <- gamma G + r``, where the step that ends an
    episode drops the return before it. Statistics are float64 and move only in ``update``.

    Args:
        num_envs: N.
        gamma: discount per transition.

    Attributes:
        scale: float32 scalar, by which the losses multiply rewards.
    """

    returns: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor
    scale: Tensor

    def __init__(self, num_envs: int, gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("var", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0.0, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(1.0))

    @torch.no_grad()
    def update(self, step: Tensor) -> None:
        """Take note of one step ``(2, N)``: the rewards, and 1 where an episode ended, else 0.

        Statistics of K agents at once have a leading K, as the step then has.
        """
        reward, ended = step.to(torch.float64).unbind(-2)
        self.returns.mul_(self.gamma * (1.0 - ended)).add_(reward)
        size = self.returns.shape[-1]
        total = self.count + size
        delta = self.returns.mean(-1) - self.mean
        within = self.var * self.count + self.returns.var(-1, correction=0) * size
        self.var.copy_((within + delta.square() * self.count * size / total) / total)
        self.mean.add_(delta * size / total)
        self.count.add_(size)
        self.scale.copy_((self.var.sqrt() + RETURN_EPS).reciprocal())


class BatchNorm(nn.Module):
    """Batch norm over ``(B, D)``, or ``E`` of them with parameters of their own over ``(E, B, D)``.

    ``nn.BatchNorm1d`` moves its statistics while it runs. Here the caller decides: with a list the batch is normalised
    by its own mean and (biased) variance, which are appended to the list; without, by the running ones. ``shift`` is
    whether it has a learning bias.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, size: int, ensemble_size: int | None = None, shift: bool = True) -> None:
        super().__init__()
        shape = (size,) if ensemble_size is None else (ensemble_size, size)
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if shift else None
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))

    def forward(self, x: Tensor, statistics: list[Tensor] | None = None) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast too: a variance of bfloat16 numbers is none
        mean, var = self.mean, self.var
        if statistics is not None:
            var, mean = torch.var_mean(x, -2, correction=0)
            statistics += (mean, var)
        scale = self.weight * (var + BATCH_NORM_EPS).rsqrt()
        normalised = (x - mean.unsqueeze(-2)) * scale.unsqueeze(-2)
        return normalised if self.bias is None else normalised + self.bias.unsqueeze(-2)


class NormalizedMLP(nn.Sequential):
    """Layers ``norm0``, then ``hidden1``, ``norm1``, ``relu1``, ...: linear without bias, batch norm, ReLU."""

    def __init__(self, in_features: int, widths: Sequence[int], ensemble_size: int | None = None) -> None:
        # The next norm takes a shift of the inputs out again. Its gradient would be rounding alone, from which Adam
        # makes steps of full size.
        first = BatchNorm(in_features, ensemble_size, shift=False)
        layers: OrderedDict[str, nn.Module] = OrderedDict(norm0=first)
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise([in_features, *widths]), start=1):
            layers[f"hidden{number}"] = _unit_linear(fan_in, fan_out, ensemble_size, is_output=False)
            layers[f"norm{number}"] = BatchNorm(fan_out, ensemble_size)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
        super().__init__(layers)

    def forward(self, x: Tensor, statistics: list[Tensor] | None = None) -> Tensor:
        for layer in self:
            x = layer(x, statistics) if isinstance(layer, BatchNorm) else layer(x)
        return x


class XQCActor(nn.Module):
    """Observation ``(B, D)`` to mean and log standard deviation ``(B, A)`` of a Gaussian before tanh."""

    def __init__(self, obs_dim: int, action_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.encoder = NormalizedMLP(obs_dim, widths)
        self.mean = _unit_linear(widths[-1], action_dim, None, is_output=True)
        self.log_std = _unit_linear(widths[-1], action_dim, None, is_output=True)

    def forward(self, obs: Tensor, statistics: list[Tensor] | None = None) -> tuple[Tensor, Tensor]:
        features = self.encoder(obs, statistics)
        return self.mean(features), self.log_std(features).clamp(LOG_STD_MIN, LOG_STD_MAX)


class XQCCritic(nn.Module):
    """``E`` critics as one batched module, each of which gives probabilities to ``M`` values, its ``atoms``."""

    atoms: Tensor

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        widths: Sequence[int],
        ensemble_size: int,
        num_atoms: int,
        value_limit: float,
    ) -> None:
        super().__init__()
        self.ensemble_size = ensemble_size
        self.encoder = NormalizedMLP(obs_dim + action_dim, widths, ensemble_size)
        self.value = _unit_linear(widths[-1], num_atoms, ensemble_size, is_output=True)
        self.register_buffer("atoms", torch.linspace(-value_limit, value_limit, num_atoms), persistent=False)

    def forward(self, obs: Tensor, action: Tensor, statistics: list[Tensor] | None = None) -> Tensor:
        """Logarithms ``(E, B, M)`` of the probabilities for observations ``(B, D)`` and actions ``(B, A)``."""
        inputs = torch.cat([obs, action], -1).expand(self.ensemble_size, -1, -1)
        return F.log_softmax(self.value(self.encoder(inputs, statistics)), -1)

    def mean(self, log_probs: Tensor) -> Tensor:
        """Q-values ``(E, B)``: the means of the distributions."""
        return (log_probs.exp() * self.atoms).sum(-1)


def unit_weights(network: nn.Module) -> dict[str, Tensor]:
    """The learning weights of ``network`` by name, those into each unit scaled to norm 1; biases stay."""
    return {f"{name}.weight": F.normalize(layer.weight, dim=-1) for name, layer in _learning_layers(network)}


def moved_statistics(network: nn.Module, statistics: Sequence[Tensor]) -> dict[str, Tensor]:
    """The running statistics of ``network`` by name, after a batch whose ``statistics`` a forward pass has listed."""
    norms = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, BatchNorm)]
    pairs = zip(statistics[::2], statistics[1::2], strict=True)
    found = {}
    for (name, norm), (mean, var) in zip(norms, pairs, strict=True):
        found[f"{name}.mean"] = norm.mean.lerp(mean, BATCH_NORM_SHARE)
        found[f"{name}.var"] = norm.var.lerp(var, BATCH_NORM_SHARE)
    return found


def _learning_layers(network: nn.Module) -> Iterator[tuple[str, nn.Linear | EnsembleLinear]]:
    # By place, not by requires_grad, which a stack's views do not have.
    heads = [module for module in network.modules() if isinstance(module, InjectedHead)]
    frozen = {part for head in heads for old in (head.start, head.old) for part in old.modules()}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | EnsembleLinear) and module not in frozen:
            yield name, module


def _unit_linear(
    in_features: int, out_features: int, ensemble_size: int | None, is_output: bool
) -> nn.Linear | EnsembleLinear:
    """A (batched) layer, orthogonal, then each unit's weights scaled to norm 1; outputs with a bias, zero."""
    layer: nn.Linear | EnsembleLinear
    if ensemble_size is None:
        layer = (OutputLinear if is_output else nn.Linear)(in_features, out_features, bias=is_output)
    else:
        kind = EnsembleOutputLinear if is_output else EnsembleLinear
        layer = kind(ensemble_size, in_features, out_features, bias=is_output)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for matrix in [layer.weight] if ensemble_size is None else layer.weight:
            nn.init.orthogonal_(matrix)
        layer.weight.copy_(F.normalize(layer.weight, dim=-1))
    return layer
