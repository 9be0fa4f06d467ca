"""What the training loop, evaluation and checkpoints may ask of an agent."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from agents.replay import Batch
from fire.network.slot import NetworkSlot

# Seed of the noise drawn inside probe losses: a metric must depend on the weights and the batch alone.
PROBE_SEED = 0


class Agent(Protocol):
    """A learner without logger, buffer or environment inside."""

    # Attributes that hold modules with a state, and optimizers with the module that each one trains.
    modules: ClassVar[tuple[str, ...]]
    optimizers: ClassVar[dict[str, str]]

    gamma: float
    update_step: int

    def observe(self, obs: np.ndarray) -> None:
        """Take note of the observations ``(N, D)`` about to be acted on (input statistics), training only."""

    def act(self, obs: np.ndarray, env_step: int) -> np.ndarray:
        """Exploring actions for ``obs (N, D)``: ``(N, A)`` float32 in [-1, 1], or ``(N,)`` int64."""

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        """Deterministic actions of the same shapes."""

    def draw(self, batch_size: int) -> Tensor:
        """The random numbers of one update, on the CPU."""

    def update(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        """One gradient update of every network; detached scalars on the device, never synchronised.

        ``noise`` is what ``draw`` returned; None: drawn here.
        """

    def target_copies(self, count: int) -> tuple[int, ...]:
        """The updates among the next ``count`` that end with a hard copy into a target network (0: the next)."""

    def networks(self) -> dict[str, NetworkSlot]:
        """The networks that a reset or a metric may touch, by name."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: networks, targets, optimizers, counters, normaliser, generators."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict`` in place."""


def discount_from_horizon(max_episode_steps: int | None) -> float:
    """Return SimBa's discount factor for an episode limit of L transitions: ``1 - 5 / L`` in [0.95, 0.995].

    The rule is that of the published SimBa configuration, ``clip((L/5 - 1) / (L/5), 0.95, 0.995)``; 500 transitions
    give 0.99. Without a limit, 0.99.
    """
    if max_episode_steps is None:
        return 0.99
    return float(np.clip(1.0 - 5.0 / max_episode_steps, 0.95, 0.995))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state, which another kind of device may have saved: how it steps stays this device's."""
    groups = [
        {**saved, "capturable": own["capturable"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def probe_noise(shape: torch.Size, device: torch.device) -> Tensor:
    """Standard normal noise that is the same on every call and every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(PROBE_SEED)).to(device)
