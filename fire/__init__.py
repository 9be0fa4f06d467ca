"""FIRE and rival resets for any ``nn.Module``: knows modules and optimizers, nothing about reinforcement learning.

The names below load their modules when they are first used, so that ``fire.options`` and ``fire.triggers`` can be
read without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fire_inplace import fire_
    from .metrics.cheap import METRIC_KEYS, measure
    from .network.slot import NetworkSlot
    from .polar.factors import PolarFactors, polar_factor, polar_factors
    from .resets.registry import REGISTRY, Reset, make_reset, reset_networks
    from .resets.report import RESET_KEYS, ResetReport

__all__ = [
    "METRIC_KEYS",
    "REGISTRY",
    "RESET_KEYS",
    "NetworkSlot",
    "PolarFactors",
    "Reset",
    "ResetReport",
    "fire_",
    "make_reset",
    "measure",
    "polar_factor",
    "polar_factors",
    "reset_networks",
]

_HOMES = {
    "metrics.cheap": ("METRIC_KEYS", "measure"),
    "fire_inplace": ("fire_",),
    "polar.factors": ("PolarFactors", "polar_factor", "polar_factors"),
    "resets.report": ("RESET_KEYS", "ResetReport"),
    "resets.registry": ("REGISTRY", "Reset", "make_reset", "reset_networks"),
    "network.slot": ("NetworkSlot",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
