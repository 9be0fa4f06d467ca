"""FIRE and rival resets for any ``nn.Module``: knows modules and optimizers, nothing about reinforcement learning."""

from fire.metrics import METRIC_KEYS, measure
from fire.module import FireReport, fire_
from fire.orthogonalize import polar_factor, polar_factors
from fire.report import RESET_KEYS, ResetReport
from fire.resets import REGISTRY, Reset, reset_networks
from fire.slot import NetworkSlot

__all__ = [
    "METRIC_KEYS",
    "REGISTRY",
    "RESET_KEYS",
    "FireReport",
    "NetworkSlot",
    "Reset",
    "ResetReport",
    "fire_",
    "measure",
    "polar_factor",
    "polar_factors",
    "reset_networks",
]
