"""``Backend``: what ``VecEnv`` asks of the environments below it.

A backend steps R rows, one environment each, and knows nothing of runs, seeds, episode counts or truncation. There are
three: Atari games, the native H1 tasks, and any Gymnasium environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from gymnasium import spaces


class Transition(NamedTuple):
    """Where one step led in each of the R rows. The backend never writes to these arrays again."""

    next_obs: np.ndarray  # (R, *obs_shape): where the action led
    obs: np.ndarray  # what to act on where no episode is over; ``next_obs`` itself unless a life was lost
    reward: np.ndarray  # (R,) float64: as the environment pays it
    learner_reward: np.ndarray  # (R,): what to learn from
    terminated: np.ndarray  # (R,) bool: nothing follows
    truncated: np.ndarray  # (R,) bool: the clock ended; may be true together with ``terminated``
    over: np.ndarray  # (R,) bool: a new episode must start before the next step


class Backend(Protocol):
    """R environments of one kind, stepped together.

    Attributes:
        observation_space: of one environment; an image, or a vector of any dtype.
        action_space: of one environment, Box(-1, 1) with one axis or Discrete(n) counted from 0.
        max_episode_steps: time limit in agent transitions, or None.
        frames_per_second: of the environment in real time, before any action repeat.
    """

    observation_space: spaces.Box
    action_space: spaces.Box | spaces.Discrete
    max_episode_steps: int | None
    frames_per_second: float

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        """Start an episode in every row, as if none had been played before; return (R, *obs_shape).

        Args:
            seeds: of each row's episode, 32 bits.
        """

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        """Start the next episode of ``rows``, ascending indices; return what to act on in all rows.

        Args:
            rows: those whose episode is over.
            seeds: one for each of them, 32 bits.
        """

    def step(self, actions: np.ndarray) -> Transition:
        """Take one agent transition in every row.

        Args:
            actions: (R, *action_shape), valid, of the action space's dtype; the caller keeps no reference.
        """

    def state_dict(self, rows: slice) -> dict[str, Any]:
        """Return what ``load_state_dict`` needs of ``rows``: either or both of the keys ``native`` and ``actions``.

        Arrays, numbers, strings, lists and dicts only; nothing in it depends on the other rows.
        """

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray | None:
        """Continue from saved states, whose rows follow one another.

        Args:
            states: results of ``state_dict``; arrays may have become CPU tensors.
            seeds: of each row's present episode.

        Returns:
            What is observed after playing the saved actions again; None where a state is exact by itself.

        Raises:
            EnvError: saved under other options.
        """

    def render(self) -> np.ndarray:
        """Return a picture of row 0, (height, width, 3) uint8."""

    def close(self) -> None:
        """Free the environments."""


@runtime_checkable
class Physical(Protocol):
    """A ``Backend`` whose physics can be changed.

    Attributes:
        quantities: what ``set_physics`` can change, fields of ``PhysicsConfig``.
    """

    quantities: tuple[str, ...]

    def set_physics(self, factors: Sequence[Mapping[str, float]]) -> None:
        """Multiply physical quantities, as they were built, by these factors; ``start`` must follow.

        Args:
            factors: of each row, by quantity; at least those of ``quantities``.
        """


def agent_steps(max_frames: int | None, action_repeat: int) -> int | None:
    """Return how many agent transitions fit into a limit of ``max_frames`` raw frames (None: no limit)."""
    return None if max_frames is None else math.ceil(max_frames / action_repeat)
