"""What hidden units are computed from and what they feed, proved by perturbing them.

The forward pass is repeated on one batch with the outputs of all weight layers, activations and norms held at what they
were, plus a perturbation of some of them. A held output lets no change through, so whatever changes in the input of a
layer has come from the perturbed outputs alone, by reshapes, concatenations, sums, pooling or any other function.
"""

from __future__ import annotations

import functools
import itertools
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


@dataclass(frozen=True, eq=False)
class UnitFlow:
    """The hidden units of one call of an activation module, proved to be read as stated.

    Attributes:
        name: dotted path of the activation module; a second call in the same pass is ``path_2``, and so on.
        module: the activation module.
        call: which of its calls in a pass, from 1.
        producer: the weight layer whose outputs, normed or not, are the activation's input, unit by unit.
        consumers: all that read the activation, weight layers.
        inputs: for each consumer (networks, units, k) int64, which of its inputs carry the unit and nothing else; where
            a unit has fewer than k the number of inputs stands instead.
    """

    name: str
    module: nn.Module
    call: int
    producer: WeightLayer
    consumers: tuple[WeightLayer, ...]
    inputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class UnitFlows:
    """The hidden units of a network.

    Attributes:
        flows: in order of execution.
        left_alone: activations for which no such proof exists, with the reason.
        modules: the modules the network had.
    """

    flows: list[UnitFlow]
    left_alone: list[tuple[str, str]]
    modules: list[nn.Module]

    def still_hold(self, slot: NetworkSlot) -> bool:
        """Whether the network is made of the same modules as when they were found."""
        now = list(slot.module.modules())
        return len(now) == len(self.modules) and all(a is b for a, b in zip(now, self.modules, strict=True))


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


def unit_flows(slot: NetworkSlot, batch: Any) -> UnitFlows:
    """Find the hidden units of ``slot.module`` and what they feed.

    A unit belongs to an activation module whose input is one weight layer's output, unit by unit, with norms in between
    or not, where that output goes nowhere else. Its consumers are all weight layers that read the activation; each of
    their inputs carries one unit alone (zero units give zero inputs). Everything else is left alone: units that reach a
    norm, another activation or the output, that share an input with something else, whose producer or consumers are
    used more than once, tied or grouped. Activations that read no layer, or feed the output alone, are no hidden units.

    Runs the forward pass about as often as it has calls plus twice the binary digits of its number of units.
    """
    modules = list(slot.module.modules())
    probe = _Probe(slot, batch)
    try:
        return UnitFlows(*_prove(probe), modules)
    except Unprovable as reason:
        names = [name for name, module in slot.module.named_modules() if isinstance(module, ACTIVATIONS)]
        return UnitFlows([], [(name, str(reason)) for name in names], modules)


def _prove(probe: _Probe) -> tuple[list[UnitFlow], list[tuple[str, str]]]:
    reach = [probe.reached_from([index]) for index in range(len(probe.calls))]
    chains: dict[int, list[int]] = {}
    alone: dict[int, str] = {}
    for index in range(len(probe.calls)):
        if probe.is_activation(index) and reach[index] != {OUTPUT}:
            try:
                chain = _chain(probe, reach, index)
                if chain is not None:
                    _check_consumers(probe, reach, index)
                    chains[index] = chain
            except Unprovable as reason:
                alone[index] = str(reason)
    proved = _decode(probe, reach, chains) if chains else {}
    flows = []
    for index, result in proved.items():
        if isinstance(result, str):
            alone[index] = result
            continue
        call = probe.calls[index]
        consumers = tuple(probe.layer(each) for each in sorted(reach[index]))
        producer = probe.layer(chains[index][0])
        flows.append(UnitFlow(call.name, call.module, call.number, producer, consumers, result))
    return flows, [(probe.calls[index].name, alone[index]) for index in sorted(alone)]


def _chain(probe: _Probe, reach: list[set[int]], index: int) -> list[int] | None:
    """Calls from the producer over norms to the activation ``index``; None if it reads no layer at all."""
    chain = [index]
    while not chain or not probe.is_layer(chain[0]):
        sources = [source for source, reached in enumerate(reach) if chain[0] in reached]
        if not sources:
            return None
        if len(sources) > 1 or probe.is_activation(sources[0]):
            raise Unprovable(f"is computed from {probe.names(sources)}")
        if reach[sources[0]] != {chain[0]}:
            raise Unprovable(
                f"{probe.names(sources)} also feeds {probe.names(reach[sources[0]] - {chain[0]})}"
            )
        chain.insert(0, sources[0])
    probe.check_used_once(chain[0])
    return chain


def _check_consumers(probe: _Probe, reach: list[set[int]], index: int) -> None:
    if not reach[index]:
        raise Unprovable("feeds nothing")
    for each in sorted(reach[index]):
        if each == OUTPUT or not probe.is_layer(each):
            raise Unprovable(f"feeds {probe.names([each])}, not only weight layers")
        probe.check_used_once(each)


def _decode(
    probe: _Probe, reach: list[set[int]], chains: dict[int, list[int]]
) -> dict[int, tuple[Tensor, ...] | str]:
    """For each activation which inputs of its consumers carry which unit, or why that is not so."""
    results: dict[int, tuple[Tensor, ...] | str] = {}
    for index, chain in chains.items():
        if (reason := probe.unfit(chain, sorted(reach[index]))) is not None:
            results[index] = reason
    chains = {index: chain for index, chain in chains.items() if index not in results}
    numbers, spelled = probe.spell(chains)
    zeroed = probe.inputs_without(list(chains))
    for index, chain in chains.items():
        consumers = sorted(reach[index])
        if any(not torch.equal(spelled[b], numbers[a]) for a, b in itertools.pairwise(chain)):
            results[index] = f"its inputs are not the outputs of {probe.names(chain[:1])} one by one"
            continue
        own = {each: torch.isin(spelled[each], numbers[index]) for each in consumers}
        shared = [e for e in consumers if (spelled[e] == MIXED).any() or (own[e] & ~zeroed[e]).any()]
        if shared:
            results[index] = f"shares inputs of {probe.names(shared)} with other units or something else"
            continue
        places = [_places(spelled[each].where(own[each], NOTHING), numbers[index]) for each in consumers]
        found = tuple(each for each in places if each is not None)
        results[index] = found if len(found) == len(places) else "mixes the networks of the ensemble"
    return results


NOTHING, MIXED = -1, -2  # instead of a unit's number: an input that depends on none, on several


def _places(units: Tensor, numbers: Tensor) -> Tensor | None:
    """(networks, inputs) numbers of units to (networks, units, k) inputs of each; None where networks are mixed."""
    networks, count = numbers.shape
    lists: list[list[list[int]]] = [[[] for _ in range(count)] for _ in range(networks)]
    for network, row in enumerate(units.tolist()):
        first = int(numbers[network, 0])
        for place, unit in enumerate(row):
            if unit != NOTHING:
                if not first <= unit < first + count:
                    return None
                lists[network][unit - first].append(place)
    longest = max(len(places) for rows in lists for places in rows)
    padding = units.shape[1]
    return torch.tensor(
        [[p + [padding] * (longest - len(p)) for p in rows] for rows in lists], dtype=torch.int64
    )


class _Probe:
    """The forward pass of a slot on one batch, recorded once and repeated with perturbed outputs."""

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
