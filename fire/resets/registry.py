"""REGISTRY names every reset strategy; ``reset_networks`` applies one.

A reset plans every change of every network first and writes only when the whole plan exists, so it happens
entirely or not at all. Parameters keep their storage: optimizers, targets, compiled functions and CUDA
graphs see the reset. Structural resets, which say so, add parameters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..ambient import changes_weights
from ..metrics.kept import all_kept, behaviour
from ..network.layers import WeightLayer, is_below, left_alone
from ..network.memory import region
from ..network.scale import layer_scale
from ..network.slot import NetworkSlot
from ..options import OPTIONS, ResetOptions
from .base import LayerwiseReset, Reset
from .calibrated_partial import CalibratedPartialReset
from .cbp import ContinualBackprop
from .dash import DashReset
from .fire import FireDqnReset, FireReset
from .full import FullReset
from .injection import PlasticityInjection
from .none import NoReset, OptimizerReset
from .normalize_project import NormalizeProject
from .orthogonal_decoupled import OrthogonalDecoupled
from .plan import Plan, Write
from .prepare import prepare
from .random_orthogonal import RandomOrthogonalReset
from .redo import ReDo
from .report import LayerChange, ResetReport
from .shrink_perturb import ShrinkPerturbReset, SrDqnReset
from .singular_clip import SingularClipReset
from .snr import SelfNormalizedReset

__all__ = ["REGISTRY", "LayerwiseReset", "Plan", "Reset", "ResetReport", "make_reset", "reset_networks"]

REGISTRY: dict[str, type[Reset]] = {
    reset.name: reset
    for reset in (
        NoReset,
        OptimizerReset,
        FullReset,
        ShrinkPerturbReset,
        SrDqnReset,
        FireReset,
        FireDqnReset,
        RandomOrthogonalReset,
        DashReset,
        ReDo,
        PlasticityInjection,
        ContinualBackprop,
        SelfNormalizedReset,
        SingularClipReset,
        CalibratedPartialReset,
        OrthogonalDecoupled,
        NormalizeProject,
    )
}


def make_reset(name: str, options: ResetOptions) -> Reset:
    """Return strategy ``name`` with ``options``, an instance of ``fire.options.OPTIONS[name]``.

    Raises:
        ValueError: unknown name.
        TypeError: options of another class.
    """
    if name not in REGISTRY:
        raise ValueError(f"reset {name!r} is not one of {', '.join(REGISTRY)}")
    if type(options) is not OPTIONS[name]:
        raise TypeError(f"reset {name} takes {OPTIONS[name].__name__}, got {type(options).__name__}")
    return REGISTRY[name](options)


@changes_weights
def reset_networks(
    slots: Mapping[str, NetworkSlot],
    reset: Reset,
    batch: Any,
    generator: torch.Generator,
    probe: Any = None,
) -> ResetReport:
    """Apply ``reset`` to all networks, or, if anything fails, to none.

    Args:
        slots: networks by name; a parameter that several share is treated with the first.
        reset: the strategy.
        batch: probe batch, passed on to ``slot.forward`` and ``slot.loss`` by strategies that measure.
        generator: CPU generator of all random draws; the global random state stays as it was.
        probe: batch for ``slot.forward`` and ``slot.policy`` on which networks are compared before and after, to see
            what was kept; None: nobody looks.

    Returns:
        What was done to each weight layer, and what of each network's behaviour was kept.

    Raises:
        ValueError: NaN or infinity in a weight to be orthogonalized, or in a new value; nothing to change.
        TypeError: a weight cannot be written to (see :func:`fire.network.layers.weight_layers`), or the optimizer's
            state cannot be put back as ``reset.options.optimizer`` asks.
        RuntimeError: inside ``torch.func`` transforms or a dispatch mode.
    """
    for slot in slots.values():
        if reset.options.optimizer == "zero":
            slot.check_zeroable()
        elif reset.options.optimizer == "rebuild":
            slot.check_rebuildable()
        if reset.options.target == "sync":
            slot.check_target()
    devices = _cuda_devices(slots)
    draws = generator.get_state()
    layers = {network: slot.layers(reset.conv_form) for network, slot in slots.items()}

    def make() -> Plan:
        generator.set_state(draws)
        plan = reset.plan(slots, batch, generator)
        if reset.options.target == "same":
            plan.writes += _target_writes(slots, reset, batch, draws)
        return plan

    with torch.random.fork_rng(devices=devices):
        plan, reports, seconds = prepare(make, lambda plan: _changes(layers, plan), devices)
        alone = [
            each
            for name, slot in slots.items()
            for each in _left_alone(name, slot, reset, layers[name], plan)
        ]
        before = {} if probe is None else {name: behaviour(slot, probe) for name, slot in slots.items()}
        seconds -= time.perf_counter()
        plan.write()
        for slot in slots.values():
            if reset.options.optimizer == "zero":
                slot.zero_optimizer_state()
            elif reset.options.optimizer == "rebuild":
                slot.rebuild_optimizer_state()
            if reset.options.target == "sync":
                slot.sync_target()
        seconds += time.perf_counter()
        same = all_kept(before, {name: behaviour(slots[name], probe) for name in before})
    return ResetReport(reports, seconds, (*alone, *plan.left_alone), same)


def _changes(layers: Mapping[str, Sequence[WeightLayer]], plan: Plan) -> list[LayerChange]:
    """What ``plan`` does to each layer of each network."""
    changes = []
    for network, of_network in layers.items():
        for layer in of_network:
            write = plan.write_to(layer.weight)
            changes.append(LayerChange(network, layer, write.value, layer_scale(layer), write.spectra))
    return changes


def _left_alone(
    network: str, slot: NetworkSlot, reset: Reset, layers: Sequence[WeightLayer], plan: Plan
) -> list[tuple[str, str]]:
    written = [write.destination for write in plan.writes]
    done = {region(tensor) for tensor in written}
    kept = [layer for layer in layers if region(layer.weight) not in done]
    reasons = {layer.name: f"kept by {reset.name}" for layer in kept}
    reasons |= {layer.name: f"is the embedding {layer.embedding} too" for layer in kept if layer.embedding}
    listed = left_alone(slot.module, layers, reasons, written)
    return [
        (f"{network}/{name}", "preserved" if is_below(name, slot.preserve) else reason)
        for name, reason in listed
    ]


def _target_writes(
    slots: Mapping[str, NetworkSlot], reset: Reset, batch: Any, draws: torch.Tensor
) -> list[Write]:
    """What ``reset`` does to the target networks' own weights, with the draws their networks had."""
    generator = torch.Generator()
    generator.set_state(draws)
    # Networks without a target take part too, so that each finds the draws at their place.
    shadows = {
        name: replace(slot, module=slot.module if slot.target is None else slot.target, target=None)
        for name, slot in slots.items()
    }
    ours = {
        tensor
        for slot in slots.values()
        if slot.target is not None
        for tensor in (*slot.target.parameters(), *slot.target.buffers())
    }
    writes = reset.plan(shadows, batch, generator).writes
    return [w._replace(name=f"target of {w.name}") for w in writes if w.destination in ours]


def _cuda_devices(slots: Mapping[str, NetworkSlot]) -> list[torch.device]:
    devices = {p.device for slot in slots.values() for p in slot.module.parameters()}
    return [device for device in devices if device.type == "cuda"]
