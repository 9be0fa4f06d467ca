"""A forward pass that is recorded once and repeated with some of its values perturbed.

All outputs of weight layers, activations and norms are held at what they were, plus the perturbation. A held output
lets no change through, so whatever changes in the input of a layer has come from the perturbed outputs alone, by
reshapes, concatenations, sums, pooling or any other function.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from .layers import WeightLayer
from .probe import ACTIVATIONS, leave_no_trace, minibatches, num_samples
from .slot import NetworkSlot

# Every sample shows what depends on what, so that few are enough.
SAMPLES = 8
OUTPUT = -1  # stands for the network's output where calls are numbered from 0
NOTHING, MIXED = -1, -2  # instead of a unit's number: an input that depends on none, on several


class Unprovable(Exception):
    """The forward pass cannot be repeated call by call."""


@dataclass(eq=False)
class _Call:
    """One call of a weight layer, an activation or a norm, with what went in and came out, and a seed of its own."""

    name: str
    module: nn.Module
    number: int
    seed: int
    before: Tensor
    after: Tensor = field(default_factory=lambda: torch.empty(0))

    @functools.cached_property
    def noise(self) -> Tensor:
        """What the output is moved by: another amount for each element, and more than the largest of them."""
        draws = torch.rand(self.after.shape, generator=torch.Generator().manual_seed(self.seed))
        largest = self.after.abs().amax().nan_to_num(0, 0, 0).float()
        return ((1 + draws.to(self.after.device)) * (1 + 2 * largest)).to(self.after.dtype)


class RecordedPass:
    """RecordedPass: the forward pass of a slot on one batch, recorded once and repeated with perturbed outputs."""

    def __init__(self, slot: NetworkSlot, batch: Any) -> None:
        self.slot = slot
        self.batch = minibatches(batch, max(1, num_samples(batch) // SAMPLES))[0]
        self.layers = {
            layer.module: layer
            for layer in slot.layers()
            if layer.weight_name == "weight" and layer.kind in ("linear", "conv") and not layer.embedding
        }
        self.watched = {
            module: name
            for name, module in slot.module.named_modules()
            if module in self.layers or isinstance(module, ACTIVATIONS) or _is_norm(module)
        }
        self.calls: list[_Call] = []
        self.outputs = self._run(self._record_input, self._record_output)

    # ---- what the calls are ----

    def is_layer(self, index: int) -> bool:
        return self.calls[index].module in self.layers

    def is_activation(self, index: int) -> bool:
        return isinstance(self.calls[index].module, ACTIVATIONS)

    def layer(self, index: int) -> WeightLayer:
        return self.layers[self.calls[index].module]

    def names(self, indices: Iterable[int]) -> str:
        return ", ".join(
            "the output" if i == OUTPUT else self.calls[i].name or "weight" for i in sorted(indices)
        )

    def check_used_once(self, index: int) -> None:
        layer = self.layer(index)
        times = sum(call.module is layer.module for call in self.calls)
        if times > 1:
            raise Unprovable(f"{layer.name} is used {times} times")
        if layer.tied:
            raise Unprovable(f"{layer.name} shares its weight with {layer.tied[0]}")
        if isinstance(layer.module, _ConvNd) and layer.module.groups > 1:
            raise Unprovable(f"{layer.name} is a grouped convolution")

    def unfit(self, chain: list[int], consumers: list[int]) -> str | None:
        """Why the units of a chain cannot be told apart by the shapes of its tensors; None if they can."""
        size = self.slot.ensemble_size
        for index in (chain[0], *consumers):
            layer, tensor = self.layer(index), self.calls[index].before
            if size is None:
                fits = layer.kind == "conv" or layer.weight.ndim == 2
            else:
                fits = (
                    layer.kind == "linear"
                    and layer.weight.ndim == 3
                    and len(layer.weight) == len(tensor) == size
                )
            if not fits:
                return f"{layer.name} does not hold one matrix for each network"
        for index in chain:
            after, axis = self.calls[index].after, self._unit_axis(index, chain)
            if after.ndim <= axis or after.shape[axis] != self._units(chain):
                return (
                    f"{self.names([index])} does not have one output for each of {self.layer(chain[0]).name}"
                )
        return None

    def _units(self, chain: list[int]) -> int:
        layer = self.layer(chain[0])
        return layer.weight.shape[layer.out_axis]

    def _unit_axis(self, index: int, chain: list[int]) -> int:
        return 1 if self.layer(chain[0]).kind == "conv" else self.calls[index].after.ndim - 1

    # ---- passes ----

    def reached_from(self, sources: list[int]) -> set[int]:
        """The calls whose input changes when the outputs of ``sources`` do, and OUTPUT if the network's does."""
        changed: dict[int, Tensor] = {}

        def see(index: int, tensor: Tensor) -> None:
            changed[index] = _differs(tensor, self.calls[index].before).any()

        outputs = self._repeat(lambda index: self.calls[index].noise if index in sources else None, see)
        flags = [(index, flag) for index, flag in changed.items()]
        flags += [(OUTPUT, _differs(now, was).any()) for now, was in zip(outputs, self.outputs, strict=True)]
        answers = _on_host([flag for _, flag in flags])
        return {index for (index, _), answer in zip(flags, answers, strict=True) if answer}

    def spell(self, chains: dict[int, list[int]]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Number all units of the calls in ``chains`` and find which of them every input depends on.

        One pass for each binary digit and value perturbs the units whose number has it, so an input that depends on one
        unit alone spells its number. All other calls have one number each.

        Returns:
            The numbers of each call's units, (networks, units) int64 or (1, 1), and for each call of a layer or in a
            chain what its inputs depend on, (networks, inputs) int64: a number, NOTHING or MIXED.
        """
        of = {index: chain for chain in chains.values() for index in chain}
        numbers: dict[int, Tensor] = {}
        total = 0
        for index in range(len(self.calls)):
            shape = (self.slot.ensemble_size or 1, self._units(of[index])) if index in of else (1, 1)
            numbers[index] = total + torch.arange(math.prod(shape)).view(shape)
            total += math.prod(shape)
        digits = max(1, (total - 1).bit_length())
        seen: dict[int, list[Tensor]] = defaultdict(list)

        def see(index: int, tensor: Tensor) -> None:
            if index in of or self.is_layer(index):
                seen[index].append(self._by_input(index, _differs(tensor, self.calls[index].before), of))

        def noise(index: int, digit: int, value: int) -> Tensor | None:
            chosen = (numbers[index] >> digit) & 1 == value
            if not chosen.any():
                return None
            after = self.calls[index].after
            shape = [1] * after.ndim
            if index in of:
                shape[self._unit_axis(index, of[index])] = chosen.shape[1]
                if self.slot.ensemble_size is not None:
                    shape[0] = chosen.shape[0]
            return self.calls[index].noise * chosen.view(shape).to(after.device)

        for digit in range(digits):
            for value in (0, 1):
                self._repeat(functools.partial(noise, digit=digit, value=value), see)
        spelled = {}
        for index, flags in seen.items():
            zeros, ones = torch.stack(flags).cpu().unflatten(0, (-1, 2)).unbind(1)
            number = (ones.long() << torch.arange(digits).view(-1, 1, 1)).sum(0)
            number[~(zeros ^ ones).all(0)] = MIXED
            number[~(zeros | ones).any(0)] = NOTHING
            spelled[index] = number
        return numbers, spelled

    def inputs_without(self, activations: list[int]) -> dict[int, Tensor]:
        """Which inputs of every layer are zero when the outputs of ``activations`` are: (networks, inputs) bool."""
        zero: dict[int, Tensor] = {}

        def see(index: int, tensor: Tensor) -> None:
            if self.is_layer(index):
                zero[index] = ~self._by_input(index, tensor != 0, {})

        self._repeat(lambda index: -self.calls[index].after if index in activations else None, see)
        return {index: flags.cpu() for index, flags in zero.items()}

    def _by_input(self, index: int, flags: Tensor, chains: dict[int, list[int]]) -> Tensor:
        """Whether any of ``flags``, in the shape of a call's input, is set: (networks, inputs)."""
        # The first call of a chain, a layer, may have another kind of input than of output.
        layer = self.layer(index) if self.is_layer(index) else self.layer(chains[index][0])
        axis = 1 if layer.kind == "conv" else flags.ndim - 1
        kept = {axis} if self.slot.ensemble_size is None else {0, axis}
        others = [each for each in range(flags.ndim) if each not in kept]
        reduced = flags.any(dim=others) if others else flags
        return reduced.view(-1, reduced.shape[-1])

    def _record_input(self, module: nn.Module, tensor: Tensor) -> int:
        number = 1 + sum(call.module is module for call in self.calls)
        name = self.watched[module] if number == 1 else f"{self.watched[module]}_{number}"
        self.calls.append(_Call(name, module, number, len(self.calls), tensor.clone()))
        return len(self.calls) - 1

    def _record_output(self, index: int, tensor: Tensor) -> Tensor | None:
        self.calls[index].after = tensor.clone()
        return None

    def _repeat(
        self, noise: Callable[[int], Tensor | None], see: Callable[[int, Tensor], None]
    ) -> list[Tensor]:
        """Run the pass again, its outputs those recorded plus ``noise``; ``see`` is shown every input."""
        order = iter(range(len(self.calls)))

        def on_input(module: nn.Module, tensor: Tensor) -> int:
            index = next(order, None)
            same = index is not None and self.calls[index].module is module
            if index is None or not same or self.calls[index].before.shape != tensor.shape:
                raise Unprovable("the forward pass takes another way when values change")
            see(index, tensor)
            return index

        def on_output(index: int, tensor: Tensor) -> Tensor:
            moved = noise(index)
            after = self.calls[index].after
            return after.clone() if moved is None else after + moved

        outputs = self._run(on_input, on_output)
        if next(order, None) is not None or len(outputs) != len(self.outputs):
            raise Unprovable("the forward pass takes another way when values change")
        return outputs

    def _run(
        self,
        on_input: Callable[[nn.Module, Tensor], int],
        on_output: Callable[[int, Tensor], Tensor | None],
    ) -> list[Tensor]:
        """One pass with hooks; what the network gives out, flat."""
        running: list[int] = []
        outputs: list[Tensor] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
            if len(tensors) != 1:
                raise Unprovable(f"{self.watched[module]} takes {len(tensors)} tensors")
            running.append(on_input(module, tensors[0].detach()))

        def after(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor):
                raise Unprovable(f"{self.watched[module]} does not return a tensor")
            return on_output(running.pop(), output.detach())

        def at_the_end(module: nn.Module, args: Any, output: Any) -> None:
            outputs.extend(_tensors(output))

        handles = []
        try:
            for module in self.watched:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after))
            handles.append(self.slot.module.register_forward_hook(at_the_end))
            with leave_no_trace(self.slot), torch.no_grad():
                outputs.extend(_tensors(self.slot.forward(self.batch)))
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a norm that may mix units, by the name of its class."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _differs(now: Tensor, was: Tensor) -> Tensor:
    return now != was if now.shape == was.shape else torch.ones_like(now, dtype=torch.bool)


def _tensors(output: Any) -> Iterator[Tensor]:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf.detach().clone()
        elif leaf is not None and not isinstance(leaf, bool | int | float | str):
            raise Unprovable(f"the network returns a {type(leaf).__name__}, which cannot be looked into")


def _on_host(flags: list[Tensor]) -> list[bool]:
    """Flags without dimensions as Python's own; those of one device are asked for at once."""
    devices = {flag.device for flag in flags}
    if len(devices) > 1:
        flags = [flag.cpu() for flag in flags]
    return torch.stack(flags).tolist()
