"""Uniform replay: rows are time, columns are environments, on the learner's device; flat observations stored whole."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from agents.graphs import StaticInputs


class Batch(NamedTuple):
    """Transitions as the losses see them; B is the batch size. Those of K runs have a leading K."""

    obs: Tensor  # (B, D) float32, or (B, C, H, W) uint8 for stacked frames
    action: Tensor  # (B, A) float32, or (B,) int64 for discrete actions
    reward: Tensor  # (B,) float32, n-step return without the bootstrap
    discount: Tensor  # (B,) float32, gamma**k, or 0 where the episode terminated
    next_obs: Tensor  # as obs: the observation k steps later, true at every episode's end

    def run(self, k: int) -> Self:
        """Views of the transitions of run ``k``."""
        return type(self)(*(tensor[k] for tensor in self))


class Replay(ABC):
    """Rings of transitions of K runs with exact n-step returns; subclasses store the observations.

    All runs write a row at once, into columns of their own: run k owns columns k * num_envs to (k + 1) * num_envs - 1.
    A lookahead stops at the end of an episode and at the newest row, whichever comes first; the discount tells how
    many steps it took, so that every stored transition can be sampled and no target mixes two episodes. Truncated
    episodes bootstrap from their true last observation.

    Args:
        capacity: transitions held of each run; rounded down to a multiple of ``num_envs``.
        num_envs: columns of each run.
        action_shape: shape of one action, ``()`` for discrete ones.
        action_dtype: how actions are stored.
        gamma: discount factor per transition.
        n_step: longest lookahead in transitions.
        device: where the arrays live.
        num_runs: K.

    Attributes:
        span: int64 (K, 2) on the CPU: the oldest row of each run and its number of rows filled.

    Raises:
        ValueError: ``capacity`` holds less than one row, or ``n_step`` is below 1 or longer than the ring.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        action_shape: tuple[int, ...],
        action_dtype: torch.dtype,
        gamma: float,
        n_step: int,
        device: torch.device | str,
        num_runs: int,
    ) -> None:
        self.num_rows = capacity // num_envs
        if self.num_rows < 1:
            raise ValueError(f"replay_capacity {capacity} holds less than one row of {num_envs} environments")
        if not 1 <= n_step <= self.num_rows:
            raise ValueError(f"n_step must lie in [1, {self.num_rows}], got {n_step}")
        self.num_envs = num_envs
        self.num_runs = num_runs
        self.gamma = gamma
        self.n_step = n_step
        self.device = torch.device(device)
        self.next_row = 0
        self.span = torch.zeros((num_runs, 2), dtype=torch.int64)
        self._oldest_row, self._rows_filled = self.span.numpy().T  # views
        self._rows_written = 0  # ever; beyond them the arrays hold whatever memory held
        self._to_clear: set[int] = set()  # runs whose transitions give way to the next row
        self._first_column = torch.arange(num_runs, device=self.device).unsqueeze(1) * num_envs
        self._arrays: dict[str, Tensor] = {}  # (rows, K * num_envs, ...)
        self._flat: dict[str, Tensor] = {}  # views of them, (rows * K * num_envs, ...)
        self._memory: dict[str, np.ndarray] = {}  # on the CPU: views of them too, written faster than tensors
        self._staged: dict[tuple[str, ...], StaticInputs] = {}  # on CUDA: what a step brings, by names
        self._add_array("action", action_shape, action_dtype)
        self._add_array("reward", (), torch.float32)
        self._add_array("terminated", (), torch.bool)
        self._add_array("truncated", (), torch.bool)

    def _add_array(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Reserve ``shape`` for every transition. Memory is not touched, hence not taken, before it is written."""
        rows = (self.num_rows, self.num_runs * self.num_envs, *shape)
        self._arrays[name] = torch.empty(rows, dtype=dtype, device=self.device)
        self._flat[name] = self._arrays[name].flatten(0, 1)
        if self.device.type == "cpu":
            self._memory[name] = self._arrays[name].numpy()

    def run(self, k: int) -> RunReplay:
        """The transitions of run ``k``."""
        return RunReplay(self, k)

    @property
    def nbytes(self) -> int:
        """Bytes of memory reserved."""
        return sum(a.nbytes for a in self._arrays.values())

    @abstractmethod
    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: np.ndarray,
    ) -> None:
        """Store one row: every argument has K * ``num_envs`` as its first dimension, run after run.

        Raises:
            ValueError: a shape is not that of a row.
        """

    def _write_row(self, **values: np.ndarray) -> None:
        """Write the next row of the named arrays and move on."""
        for name, value in values.items():
            if np.shape(value) != self._arrays[name].shape[1:]:
                expected = tuple(self._arrays[name].shape[1:])
                raise ValueError(f"{name}: expected a row of shape {expected}, got {np.shape(value)}")
        if self.device.type == "cpu":
            for name, value in values.items():
                self._memory[name][self.next_row] = value
        else:
            for name, tensor in self._stage(**values).items():
                self._arrays[name][self.next_row].copy_(tensor)
        self.next_row = (self.next_row + 1) % self.num_rows
        if self._to_clear:
            self._rows_filled[list(self._to_clear)] = 0
            self._to_clear.clear()
        np.minimum(self._rows_filled + 1, self.num_rows, out=self._rows_filled)
        np.remainder(self.next_row - self._rows_filled, self.num_rows, out=self._oldest_row)
        self._rows_written = min(self._rows_written + 1, self.num_rows)

    def _stage(self, **values: np.ndarray) -> dict[str, Tensor]:
        """``values`` as tensors; on CUDA there already, sent in one copy for which nobody waits."""
        tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in values.items()}
        if self.device.type != "cuda":
            return tensors
        key = tuple(tensors)
        if key not in self._staged:
            self._staged[key] = StaticInputs(list(tensors.values()), self.device)
        self._staged[key].fill(list(tensors.values()))
        return dict(zip(tensors, self._staged[key].tensors, strict=True))

    def draw(self, batch_size: int, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw what ``gather`` is to return: int64 ``(K, batch_size)``, each run's by its own generator.

        Transitions are drawn uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        lengths = (self._rows_filled * self.num_envs).tolist()
        if not all(lengths):
            raise ValueError("cannot sample from an empty replay buffer")
        drawn = [
            torch.randint(length, (batch_size,), generator=generator, device=generator.device)
            for length, generator in zip(lengths, generators, strict=True)
        ]
        return torch.stack(drawn) if len(drawn) > 1 else drawn[0].unsqueeze(0)

    def gather(self, index: Tensor, span: Tensor | None = None, k: int | None = None) -> Batch:
        """Return transitions ``(K, B, ...)``; int64 ``index (K, B)`` counts from a run's oldest row, first column.

        Args:
            index: see above; ``(1, B)`` with ``k``.
            span: the buffer's own on the device, where it may change without a new call.
            k: the only run to read.
        """
        index, width, length = index.to(self.device), self.num_envs, self.num_rows * self.num_envs
        place = index  # in a run's own ring
        if span is not None or self._oldest_row.any():
            now = (self.span if span is None else span).to(self.device)
            place = (index + (now[:, :1] if k is None else now[k, 0]) * width) % length
        a = self._flat
        first = last = place.view(-1) if self.num_runs == 1 else self._in_arrays(place, k)
        reward = a["reward"].index_select(0, first)
        terminated = a["terminated"].index_select(0, first)
        discount: Tensor | float = self.gamma
        if self.n_step > 1:
            filled = (self.span if span is None else span).to(self.device)[:, 1:]
            stored = (filled if k is None else filled[k]) * width
            discount = torch.full_like(reward, self.gamma)
            ended = terminated | a["truncated"].index_select(0, first)
            for step in range(1, self.n_step):
                going = ~ended & (index + step * width < stored).view(-1)
                later = self._in_arrays((place + step * width) % length, k)
                last = torch.where(going, later, last)
                reward = torch.where(going, reward + discount * a["reward"].index_select(0, last), reward)
                discount = torch.where(going, discount * self.gamma, discount)
                terminated = a["terminated"].index_select(0, last)
                ended = ~going | terminated | a["truncated"].index_select(0, last)
        obs, next_obs = self._observations(first, last)
        action = a["action"].index_select(0, first)
        action = action if action.is_floating_point() else action.long()
        found = (obs, action, reward, torch.where(terminated, 0.0, discount), next_obs)
        return Batch(*[tensor.view(*index.shape, *tensor.shape[1:]) for tensor in found])

    def _in_arrays(self, place: Tensor, k: int | None) -> Tensor:
        """The places ``(K * B,)`` in the arrays of places ``(K, B)`` in every run's own ring, or in run ``k``'s."""
        width = self.num_envs
        first_column = self._first_column if k is None else self._first_column[k]
        return (place + place // width * ((self.num_runs - 1) * width) + first_column).view(-1)

    @abstractmethod
    def _observations(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """The observations before the transitions ``first`` and after ``last``, int64 ``(B,)`` places in the arrays."""

    def _in_order(self, name: str, k: int) -> Tensor:
        """Stored values of run ``k`` from the oldest row to the newest."""
        rows = (int(self._oldest_row[k]) + torch.arange(int(self._rows_filled[k]))) % self.num_rows
        return self._arrays[name][:, self._columns(k)][rows.to(self.device)]

    def _columns(self, k: int) -> slice:
        return slice(k * self.num_envs, (k + 1) * self.num_envs)

    # One run's share, for RunReplay

    def _check_run(self, k: int) -> tuple[bool, str]:
        for name in self._arrays:
            if not torch.isfinite(self._in_order(name, k)).all():
                return False, f"{name} holds a value that is not finite"
        return True, ""

    def _run_state(self, k: int) -> dict[str, Any]:
        written = {name: a[: self._rows_written, self._columns(k)] for name, a in self._arrays.items()}
        arrays = {name: a.clone(memory_format=torch.contiguous_format) for name, a in written.items()}
        clear = {"to_clear": True} if k in self._to_clear else {}
        return {**arrays, "next_row": self.next_row, "rows_filled": int(self._rows_filled[k]), **clear}

    def _load_run_state(self, k: int, state: Mapping[str, Any]) -> None:
        next_row, columns, length = int(state["next_row"]), self._columns(k), len(state["reward"])
        shift = 0
        if next_row < length < self.num_rows:
            # A smaller ring that was full wrote over its oldest row next; here the rows come in the order of time.
            shift, next_row = next_row, length
        others = np.delete(self._rows_filled, k)
        if others.any() and next_row != self.next_row:
            raise ValueError(
                f"saved replay of run {k} goes on at row {next_row}, the others at {self.next_row}"
            )
        for name, array in self._arrays.items():
            saved, own = state[name], array[:, columns]
            fits = len(saved) <= self.num_rows and next_row < self.num_rows
            if not fits or saved.shape[1:] != own.shape[1:] or saved.dtype != own.dtype:
                raise ValueError(
                    f"saved replay array {name} {tuple(saved.shape)} does not fit into {tuple(own.shape)}"
                )
        for name, array in self._arrays.items():
            array[:length, columns].copy_(state[name].roll(-shift, 0) if shift else state[name])
        self._rows_written = length
        self.next_row = next_row
        self._rows_filled[k] = int(state["rows_filled"])
        self._oldest_row[k] = (next_row - self._rows_filled[k]) % self.num_rows
        self._to_clear.discard(k)
        if state.get("to_clear"):
            self._to_clear.add(k)


class RunReplay:
    """The transitions of one run in a ``Replay`` of several; its state is that of a buffer of this run alone."""

    def __init__(self, replay: Replay, k: int) -> None:
        if not 0 <= k < replay.num_runs:
            raise ValueError(f"run {k}: the buffer holds runs 0 to {replay.num_runs - 1}")
        self._replay = replay
        self._k = k

    def __len__(self) -> int:
        """Transitions held."""
        return int(self._replay._rows_filled[self._k]) * self._replay.num_envs

    @property
    def device(self) -> torch.device:
        """Where the transitions live."""
        return self._replay.device

    @property
    def nbytes(self) -> int:
        """This run's share of the bytes of memory reserved."""
        return self._replay.nbytes // self._replay.num_runs

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw ``batch_size`` transitions ``(B, ...)`` uniformly with replacement.

        Raises:
            ValueError: the buffer is empty.
        """
        if not len(self):
            raise ValueError("cannot sample from an empty replay buffer")
        return self.gather(
            torch.randint(len(self), (batch_size,), generator=generator, device=generator.device)
        )

    def gather(self, index: Tensor) -> Batch:
        """Return the transitions of int64 ``index (B,)`` in ``[0, len(self))``; 0 is the oldest row's first column."""
        return self._replay.gather(index.unsqueeze(0), k=self._k).run(0)

    def clear(self) -> None:
        """Let the transitions held give way to the next row; until it comes they can still be sampled."""
        self._replay._to_clear.add(self._k)

    def check_valid(self) -> tuple[bool, str]:
        """Return whether the invariants hold and, if not, which one is broken.

        All values must be finite, and within an episode each transition must follow from its predecessor.
        """
        return self._replay._check_run(self._k)

    def state_dict(self) -> dict[str, Any]:
        """Written rows only, in storage order."""
        return self._replay._run_state(self._k)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore in place; the number of environments must be that of the saved buffer, the capacity at least its.

        Raises:
            ValueError: the saved arrays do not fit, or the other runs of the buffer stand at another row.
        """
        self._replay._load_run_state(self._k, state)


class FlatReplay(Replay):
    """Replay of flat observations, each stored twice: as ``obs`` and as its predecessor's ``next_obs``.

    Args:
        capacity, num_envs, action_shape, gamma, n_step, device, num_runs: see ``Replay``.
        obs_shape: shape of one observation.
        discrete: whether actions are int64 indices instead of float32 vectors.
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
        num_runs: int = 1,
    ) -> None:
        action_dtype = torch.int64 if discrete else torch.float32
        super().__init__(capacity, num_envs, action_shape, action_dtype, gamma, n_step, device, num_runs)
        self._add_array("obs", obs_shape, torch.float32)
        self._add_array("next_obs", obs_shape, torch.float32)

    @staticmethod
    def bytes_needed(
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        discrete: bool,
        num_runs: int = 1,
    ) -> int:
        """Bytes that a buffer of these sizes takes when it is full."""
        action = math.prod(action_shape) * (8 if discrete else 4)
        transitions = capacity // num_envs * num_envs * num_runs
        return transitions * (action + 4 + 1 + 1 + 2 * 4 * math.prod(obs_shape))

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: np.ndarray,
    ) -> None:
        """As ``Replay.add``."""
        flags = {"terminated": terminated, "truncated": truncated}
        self._write_row(obs=obs, next_obs=next_obs, action=action, reward=reward, **flags)

    def _observations(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        return self._flat["obs"].index_select(0, first), self._flat["next_obs"].index_select(0, last)

    def _check_run(self, k: int) -> tuple[bool, str]:
        valid, reason = super()._check_run(k)
        a = {name: self._in_order(name, k) for name in self._arrays}
        inside = ~(a["terminated"] | a["truncated"])[:-1]
        if valid and not torch.equal(a["next_obs"][:-1][inside], a["obs"][1:][inside]):
            return False, "an observation does not follow from its predecessor's next_obs"
        return valid, reason
