"""Networks of the agents: SimBa actor and twin critics, MLP and convolutional Q-networks, the input normaliser.

SimBa: Lee et al. 2024, "SimBa: Simplicity Bias for Scaling Up Parameters in Deep RL", arXiv 2410.09754.
Shapes: B batch, E critics of an ensemble, D observation size, A action size.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents import fused

LOG_STD_MIN = -10.0
LOG_STD_MAX = 2.0
FRAME_SIZE = 84  # pixels a side
LAYER_NORM_EPS = 1e-6  # flax's default, which SimBa uses
# Standard deviation of a unit normal truncated to [-2, 2], by which a truncated draw must be divided.
_TRUNCATED_NORMAL_STD = 0.87962566103423978


class ObservationNormalizer(nn.Module):
    """Running standardisation of observations, ``(x - mean) / sqrt(var + 1e-8)`` (SimBa's RSNorm, section 4).

    A layer shared by every network of an agent, so that losses, metrics, evaluation and checkpoints all see the
    same input. Statistics are float64, start at mean 0, variance 1, count 1e-4, and move only in ``update``.
    """

    mean: Tensor
    var: Tensor
    count: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(1e-4, dtype=torch.float64))
        # What `forward` needs of the statistics, in its own precision: it runs far more often than `update`.
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    @torch.no_grad()
    def update(self, obs: Tensor) -> None:
        """Merge a batch ``(B, D)`` into the statistics (Chan et al. 1983, parallel variance).

        Statistics of K agents at once have a leading K, as the batch then has.
        """
        batch = obs.to(torch.float64)
        size = batch.shape[-2]
        count = self.count[..., None]
        # A single observation is its own mean and has no variance; finding that out takes as long as all the rest.
        delta = (batch.mean(-2) if size > 1 else batch.squeeze(-2)) - self.mean
        total = count + size
        within = self.var * count
        if size > 1:
            within += batch.var(-2, unbiased=False) * size
        self.var.copy_((within + delta.square() * count * size / total) / total)
        self.mean.add_(delta * size / total)
        self.count.add_(size)
        self.shift.copy_(self.mean)
        self.scale.copy_((self.var + 1e-8).rsqrt())

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all statistics, in place."""
        for name, value in ObservationNormalizer(len(self.mean)).named_buffers():
            getattr(self, name).copy_(value)

    def forward(self, obs: Tensor) -> Tensor:
        return (obs - self.shift) * self.scale


class _BatchedLinear(torch.autograd.Function):
    """``x W^T + b`` for each critic, with a weight gradient in the layout of the weight.

    Autograd's own formula for a batched product returns it transposed, and the copy into the weight's layout costs as
    much as the product itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if wanted[0] else None,
            torch.bmm(grad.mT, x) if wanted[1] else None,
            grad.sum(1) if wanted[2] else None,
        )


class EnsembleLinear(nn.Module):
    """``E`` independent linear layers in one batched product: ``(E, B, in_features) -> (E, B, out_features)``."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(ensemble_size, out_features, in_features))
        self.bias: nn.Parameter  # None without one, as in nn.Linear
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(ensemble_size, out_features)) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        tensors: tuple[Tensor | None, ...] = (x, self.weight, self.bias)
        if torch.is_autocast_enabled(x.device.type):
            # Here and not inside, so that the backward pass, which no autocast covers, meets equal types.
            low = torch.get_autocast_dtype(x.device.type)
            tensors = tuple(t if t is None else t.to(low) for t in tensors)
        return _BatchedLinear.apply(*tensors)


class _InFloat32(nn.Module):
    """Mixin of output layers: float32 even where autocast computes the layers before it in bfloat16.

    bfloat16 has 8 significant bits: a Q-value of 300 would be known to within 1.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class OutputLinear(_InFloat32, nn.Linear):
    """``nn.Linear`` whose outputs are always float32."""


class EnsembleOutputLinear(_InFloat32, EnsembleLinear):
    """``EnsembleLinear`` whose outputs are always float32."""


class EnsembleLayerNorm(nn.Module):
    """``E`` layer norms with parameters of their own: ``(E, B, D) -> (E, B, D)``."""

    def __init__(self, ensemble_size: int, size: int, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(ensemble_size, size))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, size))

    def forward(self, x: Tensor) -> Tensor:
        normalised = F.layer_norm(x, (self.size,), eps=self.eps)
        return (normalised * self.weight.unsqueeze(1)).add_(self.bias.unsqueeze(1))


def _linear(
    in_features: int, out_features: int, ensemble_size: int | None, init: str, output: bool = False
) -> nn.Linear | EnsembleLinear:
    """A (batched) linear layer with zero bias and ``orthogonal`` (gain 1) or ``he_normal`` weights."""
    layer: nn.Linear | EnsembleLinear
    if ensemble_size is None:
        layer = (OutputLinear if output else nn.Linear)(in_features, out_features)
    else:
        kind = EnsembleOutputLinear if output else EnsembleLinear
        layer = kind(ensemble_size, in_features, out_features)
    nn.init.zeros_(layer.bias)
    for matrix in [layer.weight] if ensemble_size is None else layer.weight:
        if init == "orthogonal":
            nn.init.orthogonal_(matrix)
        else:  # He et al. 2015, drawn from a normal truncated at two standard deviations
            std = math.sqrt(2.0 / in_features) / _TRUNCATED_NORMAL_STD
            nn.init.trunc_normal_(matrix, std=std, a=-2 * std, b=2 * std)
    return layer


def _layer_norm(size: int, ensemble_size: int | None) -> nn.LayerNorm | EnsembleLayerNorm:
    if ensemble_size is None:
        return nn.LayerNorm(size, eps=LAYER_NORM_EPS)
    return EnsembleLayerNorm(ensemble_size, size, LAYER_NORM_EPS)


class ResidualBlock(nn.Module):
    """``x + W2 relu(W1 layer_norm(x))`` with a four times wider hidden layer (SimBa, equation 4)."""

    def __init__(self, width: int, ensemble_size: int | None = None) -> None:
        super().__init__()
        self.norm = _layer_norm(width, ensemble_size)
        self.expand = _linear(width, 4 * width, ensemble_size, "he_normal")
        self.activation = nn.ReLU(inplace=True)  # the widest tensor of the network
        self.project = _linear(4 * width, width, ensemble_size, "he_normal")
        self._gains_by_fusion = ensemble_size is not None and width >= fused.MIN_WIDTH

    def forward(self, x: Tensor) -> Tensor:
        norm, expand, project = self.norm, self.expand, self.project
        if self._gains_by_fusion and fused.supports(x) and not self._is_watched():
            tensors = (norm.weight, norm.bias, expand.weight, expand.bias, project.weight, project.bias)
            return fused.residual_block(x, *tensors, norm.eps)
        return x + project(self.activation(expand(norm(x))))

    def _is_watched(self) -> bool:
        """Whether a hook, such as a metric's, wants to see what passes between the layers."""
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.children())


class SimbaEncoder(nn.Sequential):
    """Layers ``embed``, ``block1``, ..., ``norm``: linear embedding, residual blocks, layer norm.

    There is no activation after the first or the last.
    """

    def __init__(
        self, in_features: int, width: int, num_blocks: int, ensemble_size: int | None = None
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["embed"] = _linear(in_features, width, ensemble_size, "orthogonal")
        for number in range(1, num_blocks + 1):
            layers[f"block{number}"] = ResidualBlock(width, ensemble_size)
        layers["norm"] = _layer_norm(width, ensemble_size)
        super().__init__(layers)


class SimbaActor(nn.Module):
    """Observation ``(B, D)`` to mean and log standard deviation ``(B, A)`` of a Gaussian before tanh."""

    def __init__(
        self, normalizer: ObservationNormalizer, obs_dim: int, action_dim: int, width: int, num_blocks: int
    ):
        super().__init__()
        self.normalizer = normalizer
        self.encoder = SimbaEncoder(obs_dim, width, num_blocks)
        self.mean = _linear(width, action_dim, None, "orthogonal", output=True)
        self.log_std = _linear(width, action_dim, None, "orthogonal", output=True)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(self.normalizer(obs))
        # A smooth map onto (LOG_STD_MIN, LOG_STD_MAX) instead of a clamp, which would have no gradient outside.
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (1.0 + torch.tanh(self.log_std(features)))
        return self.mean(features), log_std


class SimbaCritic(nn.Module):
    """``E`` critics as one batched module: observation ``(B, D)``, action ``(B, A)`` to Q-values ``(E, B)``."""

    def __init__(
        self,
        normalizer: ObservationNormalizer,
        obs_dim: int,
        action_dim: int,
        width: int,
        num_blocks: int,
        ensemble_size: int,
    ) -> None:
        super().__init__()
        self.ensemble_size = ensemble_size
        self.normalizer = normalizer
        self.encoder = SimbaEncoder(obs_dim + action_dim, width, num_blocks, ensemble_size)
        self.value = _linear(width, 1, ensemble_size, "orthogonal", output=True)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat([self.normalizer(obs), action], dim=-1)
        return self.value(self.encoder(inputs.expand(self.ensemble_size, -1, -1))).squeeze(-1)


def mlp(sizes: Sequence[int], ensemble_size: int | None = None, layer_norm: bool = False) -> nn.Sequential:
    """ReLU layers ``hidden1``, ``hidden2``, ... and ``output`` between ``sizes``, or an ensemble of such networks.

    Weights and biases are uniform within 1 / sqrt(fan in), PyTorch's own distribution. With ``layer_norm`` a layer norm
    (``norm1``, ``norm2``, ...) stands before each ReLU.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        last = number == len(sizes) - 1
        if ensemble_size is None:
            layer: nn.Module = (OutputLinear if last else nn.Linear)(fan_in, fan_out)
        else:
            layer = (EnsembleOutputLinear if last else EnsembleLinear)(ensemble_size, fan_in, fan_out)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        if last:
            layers["output"] = layer
            continue
        layers[f"hidden{number}"] = layer
        if layer_norm:
            layers[f"norm{number}"] = _layer_norm(fan_out, ensemble_size)
        layers[f"relu{number}"] = nn.ReLU()
    return nn.Sequential(layers)


class MLPQNetwork(nn.Sequential):
    """Observation ``(B, D)`` to Q-values ``(B, num_actions)``: the layers of ``mlp``, Xavier-uniform, zero biases.

    The initialisation is that of the FIRE and ReDo protocols (Sokar et al. 2023, arXiv 2302.12902). ``layer_norm`` puts
    a layer norm before each hidden ReLU, where Lyle et al. 2024 (arXiv 2407.01800) put it: what a ReLU sees
    keeps its size and its mean over the units however the weights before it grow.
    """

    def __init__(
        self, obs_dim: int, num_actions: int, widths: Sequence[int], layer_norm: bool = False
    ) -> None:
        layers = mlp([obs_dim, *widths, num_actions], layer_norm=layer_norm)
        super().__init__(OrderedDict(layers.named_children()))
        self.apply(_xavier_uniform)


def pixels_to_floats(x: Tensor) -> Tensor:
    """Return bytes ``(B, C, H, W)`` as float32 of 0 to 255 in channels-last order; such floats as they are."""
    # In two steps: converting and reordering bytes in one strided pass takes twice as long.
    return x.to(torch.float32).contiguous(memory_format=torch.channels_last)


class PixelConv(nn.Conv2d):
    """First convolution over pixels 0 to 255 ``(B, C, H, W)``, bytes or ``pixels_to_floats``, read as ``x / 255``.

    The division is done on the weights, which are a hundred times fewer than the pixels of a minibatch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(pixels_to_floats(x).to(self.weight.dtype), self.weight / 255.0, self.bias)


class WideLinear(nn.Linear):
    """``nn.Linear`` for few samples of many features, computed as ``(W x^T)^T``.

    At 32 samples of 3136 features MKL takes half the time of ``x W^T``. On other devices it is ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        return torch.mm(self.weight, x.t()).t() + self.bias


class PixelQNetwork(nn.Module):
    """Stacked frames ``(B, C, 84, 84)`` uint8 to Q-values ``(B, num_actions)``.

    Convolutions and two linear layers on ``x / 255``, with the Xavier-uniform weights and zero biases of the FIRE and
    ReDo protocols (Sokar et al. 2023, arXiv 2302.12902). ``head`` is what plasticity injection doubles: everything
    after the convolutions (Nikishin et al. 2023, arXiv 2305.15555, section 4).

    Args:
        num_frames: C.
        num_actions: outputs.
        convolutions: (filters, kernel size, stride) of each.
        width: units of the linear layer before the outputs.
        layer_norm: normalise before each ReLU. Behind a convolution that is over channels and positions of a sample,
            with a scale and a shift for each channel: group norm with one group (Wu and He 2018, arXiv 1803.08494).
    """

    def __init__(
        self,
        num_frames: int,
        num_actions: int,
        convolutions: Sequence[tuple[int, int, int]],
        width: int,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, size = num_frames, FRAME_SIZE
        for number, (filters, kernel, stride) in enumerate(convolutions, start=1):
            convolution = PixelConv if number == 1 else nn.Conv2d
            layers[f"conv{number}"] = convolution(channels, filters, kernel, stride=stride)
            if layer_norm:
                layers[f"norm{number}"] = nn.GroupNorm(1, filters, eps=LAYER_NORM_EPS)
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
            channels, size = filters, (size - kernel) // stride + 1
        self.encoder = nn.Sequential(layers | OrderedDict(flatten=nn.Flatten()))
        head: OrderedDict[str, nn.Module] = OrderedDict(fc1=WideLinear(channels * size * size, width))
        last = len(convolutions) + 1
        if layer_norm:
            head[f"norm{last}"] = _layer_norm(width, None)
        head[f"relu{last}"] = nn.ReLU(inplace=True)
        head["fc2"] = OutputLinear(width, num_actions)
        self.head = nn.Sequential(head)
        self.apply(_xavier_uniform)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in PyTorch's stubs

    def forward(self, obs: Tensor) -> Tensor:
        return self.head(self.encoder(obs))


class NatureQNetwork(PixelQNetwork):
    """The network of Mnih et al. 2015, Methods ("Model architecture")."""

    def __init__(self, num_frames: int, num_actions: int, layer_norm: bool = False) -> None:
        super().__init__(num_frames, num_actions, [(32, 8, 4), (64, 4, 2), (64, 3, 1)], 512, layer_norm)


class NipsQNetwork(PixelQNetwork):
    """The network of Mnih et al. 2013, arXiv 1312.5602, section 4.1; a third of the other's multiplications."""

    def __init__(self, num_frames: int, num_actions: int, layer_norm: bool = False) -> None:
        super().__init__(num_frames, num_actions, [(16, 8, 4), (32, 4, 2)], 256, layer_norm)


def _xavier_uniform(module: nn.Module) -> None:
    """Xavier-uniform weights (Glorot and Bengio 2010) and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_seeded(factory: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Run ``factory`` with weights drawn from the CPU ``generator``, leaving the global random state untouched."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the CUDA generators too.
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return factory()
