"""FIRE and rival resets for any ``nn.Module``: knows modules and optimizers, nothing about reinforcement
learning.
"""

from fire.metrics import METRIC_KEYS, measure
from fire.orthogonalize import polar_factor, polar_factors
from fire.resets import REGISTRY, RESET_KEYS, Reset, ResetReport, reset_networks
from fire.slot import NetworkSlot

__all__ = [
    "METRIC_KEYS",
    "REGISTRY",
    "RESET_KEYS",
    "NetworkSlot",
    "Reset",
    "ResetReport",
    "measure",
    "polar_factor",
    "polar_factors",
    "reset_networks",
]
