"""FullReset: a fresh network in place of the trained one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from ..network.slot import NetworkSlot
from ..options import FullOptions
from .base import LayerwiseReset
from .plan import Write
from .rules import NamedParameter, Redraw, Rule


@dataclass(frozen=True)
class FullReset(LayerwiseReset):
    """Replace every parameter and buffer by those of a fresh network (Nikishin et al. 2022, arXiv 2205.07802)."""

    name: ClassVar[str] = "full"
    options: FullOptions = field(default_factory=FullOptions)

    def rule_for(self, parameter: NamedParameter) -> Rule:
        return Redraw()

    def buffer_writes(self, network: str, slot: NetworkSlot, fresh: nn.Module) -> list[Write]:
        values = dict(fresh.named_buffers())
        return [Write(f"{network}/{name}", buffer, values[name]) for name, buffer in slot.named_buffers()]
