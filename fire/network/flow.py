"""What hidden units are computed from and what they feed, proved by perturbing them in a recorded forward pass."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import WeightLayer
from .probe import ACTIVATIONS
from .recorded_pass import MIXED, NOTHING, OUTPUT, RecordedPass, Unprovable
from .slot import NetworkSlot


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
    try:
        return UnitFlows(*_prove(RecordedPass(slot, batch)), modules)
    except Unprovable as reason:
        names = [name for name, module in slot.module.named_modules() if isinstance(module, ACTIVATIONS)]
        return UnitFlows([], [(name, str(reason)) for name in names], modules)


def _prove(recorded: RecordedPass) -> tuple[list[UnitFlow], list[tuple[str, str]]]:
    reach = [recorded.reached_from([index]) for index in range(len(recorded.calls))]
    chains: dict[int, list[int]] = {}
    alone: dict[int, str] = {}
    for index in range(len(recorded.calls)):
        if recorded.is_activation(index) and reach[index] != {OUTPUT}:
            try:
                chain = _chain(recorded, reach, index)
                if chain is not None:
                    _check_consumers(recorded, reach, index)
                    chains[index] = chain
            except Unprovable as reason:
                alone[index] = str(reason)
    proved = _decode(recorded, reach, chains) if chains else {}
    flows = []
    for index, result in proved.items():
        if isinstance(result, str):
            alone[index] = result
            continue
        call = recorded.calls[index]
        consumers = tuple(recorded.layer(each) for each in sorted(reach[index]))
        producer = recorded.layer(chains[index][0])
        flows.append(UnitFlow(call.name, call.module, call.number, producer, consumers, result))
    return flows, [(recorded.calls[index].name, alone[index]) for index in sorted(alone)]


def _chain(recorded: RecordedPass, reach: list[set[int]], index: int) -> list[int] | None:
    """Calls from the producer over norms to the activation ``index``; None if it reads no layer at all."""
    chain = [index]
    while not chain or not recorded.is_layer(chain[0]):
        sources = [source for source, reached in enumerate(reach) if chain[0] in reached]
        if not sources:
            return None
        if len(sources) > 1 or recorded.is_activation(sources[0]):
            raise Unprovable(f"is computed from {recorded.names(sources)}")
        if reach[sources[0]] != {chain[0]}:
            raise Unprovable(
                f"{recorded.names(sources)} also feeds {recorded.names(reach[sources[0]] - {chain[0]})}"
            )
        chain.insert(0, sources[0])
    recorded.check_used_once(chain[0])
    return chain


def _check_consumers(recorded: RecordedPass, reach: list[set[int]], index: int) -> None:
    if not reach[index]:
        raise Unprovable("feeds nothing")
    for each in sorted(reach[index]):
        if each == OUTPUT or not recorded.is_layer(each):
            raise Unprovable(f"feeds {recorded.names([each])}, not only weight layers")
        recorded.check_used_once(each)


def _decode(
    recorded: RecordedPass, reach: list[set[int]], chains: dict[int, list[int]]
) -> dict[int, tuple[Tensor, ...] | str]:
    """For each activation which inputs of its consumers carry which unit, or why that is not so."""
    results: dict[int, tuple[Tensor, ...] | str] = {}
    for index, chain in chains.items():
        if (reason := recorded.unfit(chain, sorted(reach[index]))) is not None:
            results[index] = reason
    chains = {index: chain for index, chain in chains.items() if index not in results}
    numbers, spelled = recorded.spell(chains)
    zeroed = recorded.inputs_without(list(chains))
    for index, chain in chains.items():
        consumers = sorted(reach[index])
        if any(not torch.equal(spelled[b], numbers[a]) for a, b in itertools.pairwise(chain)):
            results[index] = f"its inputs are not the outputs of {recorded.names(chain[:1])} one by one"
            continue
        own = {each: torch.isin(spelled[each], numbers[index]) for each in consumers}
        shared = [e for e in consumers if (spelled[e] == MIXED).any() or (own[e] & ~zeroed[e]).any()]
        if shared:
            results[index] = f"shares inputs of {recorded.names(shared)} with other units or something else"
            continue
        places = [_places(spelled[each].where(own[each], NOTHING), numbers[index]) for each in consumers]
        found = tuple(each for each in places if each is not None)
        results[index] = found if len(found) == len(places) else "mixes the networks of the ensemble"
    return results


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
