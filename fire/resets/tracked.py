"""TrackedReset, Tracker, UnitTracker: resets that watch and change the networks after every update.

``reset.tracker()`` returns an object whose ``after_update`` is called after each update and whose state belongs into
the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ambient import changes_weights
from ..network.flow import UnitFlows, unit_flows
from ..network.layers import WeightLayer
from ..network.slot import NetworkSlot
from ..options import TrackedOptions
from .base import Plan, Reset
from .units import UnitGroup, recycle, unit_groups


@dataclass(frozen=True)
class TrackedReset(Reset):
    """Base of resets that act after every update through their tracker; applied on a schedule they do nothing."""

    options: TrackedOptions = field(default_factory=TrackedOptions)

    def plan(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> Plan:
        return Plan()

    def tracker(self) -> Tracker:
        """A fresh tracker for one run."""
        raise NotImplementedError


class Tracker:
    """What a tracked reset does after every update, and the state it needs for that.

    Attributes:
        recycles: whether it recycles units, which it then counts.
    """

    recycles: ClassVar[bool] = False

    def __init__(self) -> None:
        self.state: dict[str, dict[str, Tensor]] = {}

    @property
    def left_alone(self) -> tuple[tuple[str, str], ...]:
        """Names of units that it cannot judge, with the reason."""
        return ()

    @changes_weights
    def after_update(
        self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator
    ) -> dict[str, int]:
        """Act on every network and return how many units were recycled in each, if units are what it recycles.

        Args:
            slots: networks by name.
            batch: that of the update.
            generator: CPU generator of all draws.
        """
        devices = {p.device for slot in slots.values() for p in slot.module.parameters()}
        with torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"]):
            return self.act(slots, batch, generator)

    def act(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> dict[str, int]:
        """``after_update`` without its precautions."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The state by name, for the checkpoint."""
        return {
            key: {name: value.clone() for name, value in group.items()} for key, group in self.state.items()
        }

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device | str | None = None
    ) -> None:
        """Continue from :meth:`state_dict`; ``device`` is that of the networks, None: where the state lies."""
        self.state = {
            key: {name: value.to(device=device, copy=True) for name, value in group.items()}
            for key, group in state.items()
        }


class WeightTracker(Tracker):
    """Base of trackers of whole weights, which need to know each network's layers after every update.

    Args:
        roles: which layers they change.
        conv_form: how they see a convolution.
    """

    def __init__(self, roles: Sequence[str], conv_form: str = "slices") -> None:
        super().__init__()
        self._roles = roles
        self._conv_form = conv_form
        self._layers: dict[str, tuple[list[nn.Module], list[WeightLayer]]] = {}

    def layers(self, network: str, slot: NetworkSlot) -> list[WeightLayer]:
        """The layers to change, looked for anew where the network's modules are others than before."""
        modules = list(slot.module.modules())
        known, layers = self._layers.get(network, ([], []))
        if len(known) != len(modules) or any(a is not b for a, b in zip(known, modules, strict=True)):
            found = slot.layers(self._conv_form)
            layers = [layer for layer in found if layer.role in self._roles and not layer.embedding]
            self._layers[network] = modules, layers
        return layers


class UnitTracker(Tracker):
    """Per-unit statistics of all networks, and the units to recycle after each update.

    Fresh incoming weights come from one fresh network, which is drawn anew when a unit needs its part of it
    a second time: drawing a whole network for every recycled unit would cost more than the update.
    """

    recycles: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._fresh: dict[str, nn.Module] = {}
        self._flows: dict[str, UnitFlows] = {}

    @property
    def left_alone(self) -> tuple[tuple[str, str], ...]:
        """Activations whose units are never recycled since it cannot be proved what they feed, with the reason."""
        return tuple(
            (f"{network}/{name}", reason)
            for network, flows in self._flows.items()
            for name, reason in flows.left_alone
        )

    def act(self, slots: Mapping[str, NetworkSlot], batch: Any, generator: torch.Generator) -> dict[str, int]:
        """Update the statistics on ``batch``, recycle units and return how many in each network.

        Runs ``slot.forward`` once for each network, and more often the first time, to prove what its units feed.
        """
        counts = {}
        for network, slot in slots.items():
            if network not in self._flows or not self._flows[network].still_hold(slot):
                self._flows[network] = unit_flows(slot, batch)
            marked = []
            for group in unit_groups(slot, batch, self._flows[network]):
                marked.append((group, self.select(f"{network}/{group.name}", group)))
            counts[network] = sum(int(units.sum()) for _, units in marked)
            if counts[network]:
                plan = Plan(recycle(network, slot, marked, self._fresh_for(network, slot, marked, generator)))
                plan.check()
                plan.write()
        return counts

    def _fresh_for(
        self,
        network: str,
        slot: NetworkSlot,
        marked: Sequence[tuple[UnitGroup, Tensor]],
        generator: torch.Generator,
    ) -> nn.Module:
        """A fresh network whose weights into the marked units have not been used yet."""
        pool = self.state.setdefault(f"{network}/fresh network", {})
        spent = any(bool((pool[group.name] & units).any()) for group, units in marked if group.name in pool)
        if not pool or spent:
            pool.clear()
            pool["seed"] = torch.randint(2**62, (), generator=generator)
            self._fresh.pop(network, None)
        if network not in self._fresh:
            self._fresh[network] = slot.build(torch.Generator().manual_seed(int(pool["seed"])))
        for group, units in marked:
            pool[group.name] = pool.get(group.name, torch.zeros_like(units)) | units
        return self._fresh[network]

    def select(self, key: str, group: UnitGroup) -> Tensor:
        """Update the statistics of one group and mark the units to recycle, (networks, units) bool."""
        raise NotImplementedError

    def load_state_dict(
        self, state: Mapping[str, Mapping[str, Tensor]], device: torch.device | str | None = None
    ) -> None:
        self._fresh = {}
        super().load_state_dict(state, device)
