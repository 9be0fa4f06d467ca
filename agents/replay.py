"""Uniform replay of flat observations: rows are time, columns are environments, on the learner's device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Transitions as the losses see them; B is the batch size."""

    obs: Tensor  # (B, D) float32
    action: Tensor  # (B, A) float32, or (B,) int64 for discrete actions
    reward: Tensor  # (B,) float32, n-step return without the bootstrap
    discount: Tensor  # (B,) float32, gamma**k, or 0 where the episode terminated
    next_obs: Tensor  # (B, D) float32, the observation k steps later, true at every episode's end


class ReplayBuffer:
    """Ring buffer of raw transitions with exact n-step returns.

    A lookahead stops at the end of an episode and at the newest row, whichever comes first; the discount tells how
    many steps it took, so that every stored transition can be sampled and no target mixes two episodes. Truncated
    episodes bootstrap from their true last observation.

    Args:
        capacity: transitions held in all; rounded down to a multiple of ``num_envs``.
        num_envs: columns.
        obs_shape: shape of one observation.
        action_shape: shape of one action, ``()`` for discrete ones.
        discrete: whether actions are int64 indices instead of float32 vectors.
        gamma: discount factor per transition.
        n_step: longest lookahead in transitions.
        device: where the arrays live.

    Raises:
        ValueError: ``capacity`` holds less than one row, or ``n_step`` is below 1 or longer than the ring.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        discrete: bool,
        gamma: float,
        n_step: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_rows = capacity // num_envs
        if self.num_rows < 1:
            raise ValueError(f"replay_capacity {capacity} holds less than one row of {num_envs} environments")
        if not 1 <= n_step <= self.num_rows:
            raise ValueError(f"n_step must lie in [1, {self.num_rows}], got {n_step}")
        self.num_envs = num_envs
        self.gamma = gamma
        self.n_step = n_step
        self.device = torch.device(device)
        self.next_row = 0
        self.rows_filled = 0

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros((self.num_rows, num_envs, *shape), dtype=dtype, device=self.device)

        self._arrays = {
            "obs": zeros(obs_shape, torch.float32),
            "action": zeros(action_shape, torch.int64 if discrete else torch.float32),
            "reward": zeros((), torch.float32),
            "terminated": zeros((), torch.bool),
            "truncated": zeros((), torch.bool),
            "next_obs": zeros(obs_shape, torch.float32),
        }

    def __len__(self) -> int:
        """Transitions held."""
        return self.rows_filled * self.num_envs

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved."""
        return sum(a.nbytes for a in self._arrays.values())

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: np.ndarray,
    ) -> None:
        """Store one row: every argument has ``num_envs`` as its first dimension."""
        row = (obs, action, reward, terminated, truncated, next_obs)
        for array, value in zip(self._arrays.values(), row, strict=True):
            tensor = torch.as_tensor(value)
            if tensor.shape != array.shape[1:]:
                raise ValueError(
                    f"expected a row of shape {tuple(array.shape[1:])}, got {tuple(tensor.shape)}"
                )
            array[self.next_row].copy_(tensor)
        self.next_row = (self.next_row + 1) % self.num_rows
        self.rows_filled = min(self.rows_filled + 1, self.num_rows)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw ``batch_size`` transitions uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        if not self.rows_filled:
            raise ValueError("cannot sample from an empty replay buffer")
        index = torch.randint(len(self), (batch_size,), generator=generator, device=generator.device)
        return self.gather(index.to(self.device))

    def gather(self, index: Tensor) -> Batch:
        """Return the transitions of int64 ``index (B,)`` in ``[0, len(self))``; 0 is the oldest row's first column."""
        a = self._arrays
        oldest = self.next_row if self.rows_filled == self.num_rows else 0
        age, env = index // self.num_envs, index % self.num_envs
        row = (oldest + age) % self.num_rows
        obs, action = a["obs"][row, env], a["action"][row, env]
        reward = a["reward"][row, env]
        discount = torch.full_like(reward, self.gamma)
        terminated = a["terminated"][row, env]
        ended = terminated | a["truncated"][row, env]
        for step in range(1, self.n_step):
            going = ~ended & (age + step < self.rows_filled)
            row = torch.where(going, (row + 1) % self.num_rows, row)
            reward = torch.where(going, reward + discount * a["reward"][row, env], reward)
            discount = torch.where(going, discount * self.gamma, discount)
            terminated = a["terminated"][row, env]
            ended = ~going | terminated | a["truncated"][row, env]
        return Batch(obs, action, reward, discount * ~terminated, a["next_obs"][row, env])

    def check_valid(self) -> tuple[bool, str]:
        """Return whether the invariants hold and, if not, which one is broken.

        Within an episode each row's ``next_obs`` must be the following row's ``obs``; all values must be finite.
        """
        oldest = self.next_row if self.rows_filled == self.num_rows else 0
        order = (oldest + torch.arange(self.rows_filled, device=self.device)) % self.num_rows
        a = {name: array[order] for name, array in self._arrays.items()}
        for name in ("obs", "next_obs", "reward"):
            if not torch.isfinite(a[name]).all():
                return False, f"{name} holds a value that is not finite"
        inside = ~(a["terminated"] | a["truncated"])[:-1]
        if not torch.equal(a["next_obs"][:-1][inside], a["obs"][1:][inside]):
            return False, "an observation does not follow from its predecessor's next_obs"
        return True, ""

    def state_dict(self) -> dict[str, Tensor | int]:
        """Filled rows only, in storage order."""
        arrays = {name: array[: self.rows_filled].clone() for name, array in self._arrays.items()}
        return {**arrays, "next_row": self.next_row, "rows_filled": self.rows_filled}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Restore in place; the capacity and the number of environments must be those of the saved buffer.

        Raises:
            ValueError: the saved arrays do not fit.
        """
        rows = int(state["rows_filled"])
        for name, array in self._arrays.items():
            saved = state[name]
            if rows > self.num_rows or saved.shape[1:] != array.shape[1:] or saved.dtype != array.dtype:
                raise ValueError(
                    f"saved replay array {name} {tuple(saved.shape)} does not fit into {tuple(array.shape)}"
                )
        for name, array in self._arrays.items():
            array[:rows].copy_(state[name])
        self.rows_filled = rows
        self.next_row = int(state["next_row"])
