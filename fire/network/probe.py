"""Look at a network once on a batch without leaving a trace: features and unit activations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from .layers import WeightLayer
from .slot import NetworkSlot

# Modules whose output is a unit's activation, element by element. Softmax kinds and attention are not.
ACTIVATIONS = (
    activation.CELU,
    activation.ELU,
    activation.GELU,
    activation.Hardsigmoid,
    activation.Hardswish,
    activation.Hardtanh,
    activation.LeakyReLU,
    activation.Mish,
    activation.PReLU,
    activation.ReLU,
    activation.ReLU6,
    activation.RReLU,
    activation.SELU,
    activation.Sigmoid,
    activation.SiLU,
    activation.Softplus,
    activation.Softsign,
    activation.Tanh,
)


@dataclass(frozen=True)
class Activation:
    """Output of one activation module.

    Attributes:
        name: dotted path of the module; a second call in the same pass is ``path_2``, and so on.
        values: (networks, samples, units): batch, space and tokens are samples.
    """

    name: str
    values: Tensor


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass: activations in order of execution, head's input (networks, samples, features), the output."""

    activations: list[Activation]
    features: Tensor | None
    output: Tensor


@contextlib.contextmanager
def leave_no_trace(slot: NetworkSlot) -> Iterator[None]:
    """Evaluation mode inside; training flags, buffers' owners and the global random state as before outside."""
    modes = [(module, module.training) for module in slot.module.modules()]
    devices = {p.device for p in slot.module.parameters() if p.device.type == "cuda"}
    slot.module.eval()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module, training in modes:
            module.training = training


def record_forward(
    slot: NetworkSlot, batch: Any, forward: Callable[[Any], Tensor] | None = None
) -> ForwardPass:
    """Run ``forward`` (default ``slot.forward``) once on ``batch`` and collect activations and features, detached.

    Activations computed by functions instead of modules (``torch.relu``) cannot be seen.
    """
    activations: list[Activation] = []
    calls: dict[str, int] = {}
    features: list[Tensor] = []
    after_conv = False

    def on_weight_layer(is_conv: bool) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal after_conv
            after_conv = is_conv

        return hook

    def on_activation(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            label = name if calls[name] == 1 else f"{name}_{calls[name]}"
            activations.append(Activation(label, by_unit(output.detach(), after_conv, slot.ensemble_size)))

        return hook

    def on_head(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not features:
            features.append(by_unit(inputs[0].detach(), False, slot.ensemble_size))

    layers = slot.layers()
    handles = []
    try:
        for layer in layers:
            handles.append(layer.module.register_forward_hook(on_weight_layer(layer.kind == "conv")))
            if layer.role == "head":
                handles.append(layer.module.register_forward_pre_hook(on_head))
        for name, module in slot.module.named_modules():
            if isinstance(module, ACTIVATIONS):
                handles.append(module.register_forward_hook(on_activation(name)))
        with leave_no_trace(slot), torch.no_grad():
            output = (slot.forward if forward is None else forward)(batch)
    finally:
        for handle in handles:
            handle.remove()
    return ForwardPass(activations, features[0] if features else None, output)


def layer_outputs(slot: NetworkSlot, layers: Sequence[WeightLayer], batch: Any) -> list[Tensor]:
    """Run ``slot.forward`` once and return what each of ``layers`` hands on, (networks, samples, outputs), detached.

    Of a layer that runs several times it is the first output.

    Raises:
        ValueError: a layer does not run, or gives out something else.
    """
    found: dict[nn.Module, Tensor] = {}

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found.setdefault(module, output)

    handles = [layer.module.register_forward_hook(hook) for layer in layers]
    try:
        with leave_no_trace(slot), torch.no_grad():
            slot.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if not isinstance(found.get(layer.module), Tensor):
            raise ValueError(f"{layer.name} gives out no tensor on the probe batch")
    return [
        by_unit(found[layer.module].detach(), layer.kind == "conv", slot.ensemble_size) for layer in layers
    ]


def minibatches(batch: Any, count: int) -> list[Any]:
    """Split a tensor, or tuples, lists and mappings of tensors, into ``count`` equal parts of its first dimension.

    What is left over of the division belongs to no part.

    Raises:
        ValueError: fewer samples than parts.
    """
    if count == 1:
        return [batch]
    if isinstance(batch, Tensor):
        size = len(batch) // count
        if size == 0:
            raise ValueError(f"{len(batch)} samples do not make {count} minibatches")
        return [batch[i * size : (i + 1) * size] for i in range(count)]
    if isinstance(batch, Mapping):
        columns = [minibatches(value, count) for value in batch.values()]
        return [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]
    if isinstance(batch, tuple | list):
        rows = zip(*(minibatches(value, count) for value in batch), strict=True)
        named = hasattr(batch, "_fields")  # a NamedTuple takes its values one by one
        return [type(batch)(*row) if named else type(batch)(row) for row in rows]
    raise TypeError(f"cannot split a batch of type {type(batch).__name__}")


def num_samples(batch: Any) -> int:
    """Number of samples of a tensor, or of tuples, lists and mappings of tensors."""
    while not isinstance(batch, Tensor):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def by_unit(values: Tensor, channels_first: bool, ensemble_size: int | None) -> Tensor:
    """Bring (B, ..., units) or (B, units, space...), or either after E, to (E or 1, samples, units)."""
    values = values.unsqueeze(0) if ensemble_size is None else values
    if channels_first and values.ndim > 3:
        values = values.movedim(2, -1)
    return values.flatten(1, -2)
