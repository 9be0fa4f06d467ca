"""Replay of stacked frames that stores every frame once.

Each column (environment) owns a ring of frames in the order of time: the frames of an episode, its true last one
included, then those of the next episode. A transition remembers where its newest frame stands; the frames of its
observation lie right before it and that of the next observation right behind it, so that one read of C + 1 frames
serves both. Frames before an episode's start are the one zero frame at the very end of the array, as in ale-py's
vector environment.

A ring has one frame per transition and a share ``1 / SLACK`` more for the last frames of episodes. Where episodes are
shorter than SLACK transitions on average the oldest transitions give way a little earlier, never a byte more is taken.
"""

from __future__ import annotations

import concurrent.futures
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.replay import Replay

SLACK = 64
CHUNK_BYTES = 1 << 24  # uncompressed, per piece of a saved buffer
COMPRESSION_LEVEL = 1  # zlib's fastest; higher levels take several times longer for a tenth less


class FrameReplay(Replay):
    """Replay of ``(C, H, W)`` uint8 observations, of which each adds one new frame at the end of the stack.

    Args:
        capacity, num_envs, gamma, n_step, device, num_runs: see ``Replay``.
        obs_shape: (C, H, W), C frames stacked.
        num_actions: of the discrete action space.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        obs_shape: tuple[int, int, int],
        num_actions: int,
        gamma: float,
        n_step: int = 1,
        device: torch.device | str = "cpu",
        num_runs: int = 1,
    ) -> None:
        action_dtype = _action_dtype(num_actions)
        super().__init__(capacity, num_envs, (), action_dtype, gamma, n_step, device, num_runs)
        self._obs_shape = obs_shape
        self._stack, height, width = obs_shape
        self._ring = _ring_length(self.num_rows, self._stack)
        self._add_array("slot", (), torch.int64)  # of the newest frame, counted from the run's start
        self._add_array("past", (), torch.uint8)  # frames before it in its episode, at most C - 1
        columns = num_runs * num_envs
        self._frames = torch.empty(
            (columns * self._ring + 1, height * width), dtype=torch.uint8, device=self.device
        )
        self._frames[-1] = 0
        # What eviction needs at every step, kept off the device: first frame of each transition's stack.
        self._first_frame = np.empty((self.num_rows, columns), dtype=np.int64)
        self._written = np.zeros(columns, dtype=np.int64)  # frames written per column since the run's start
        self._past = np.full(columns, -1)  # of the observation to come; -1: it starts an episode

    @staticmethod
    def bytes_needed(
        capacity: int, num_envs: int, obs_shape: tuple[int, int, int], num_actions: int, num_runs: int = 1
    ) -> int:
        """Bytes that a buffer of these sizes takes when it is full, all included."""
        rows, (stack, height, width) = capacity // num_envs, obs_shape
        columns = num_runs * num_envs
        scalars = _action_dtype(num_actions).itemsize + 4 + 1 + 1 + 8 + 1 + 8
        return (columns * _ring_length(rows, stack) + 1) * height * width + rows * columns * scalars

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._frames.nbytes + self._first_frame.nbytes

    def add(
        self,
        obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        next_obs: np.ndarray,
    ) -> None:
        """As ``Replay.add``; of ``obs`` only the first of an episode is read."""
        columns = len(self._past)
        for name, value in (("obs", obs), ("next_obs", next_obs)):
            expected = (columns, *self._obs_shape)
            if np.shape(value) != expected or np.asarray(value).dtype != np.uint8:
                found = f"{np.shape(value)} {np.asarray(value).dtype}"
                raise ValueError(f"{name}: expected a row of shape {expected} uint8, got {found}")
        row = self.next_row
        for column in np.flatnonzero(self._past < 0).tolist():
            self._start_episode(column, obs[column])
        slot = self._written - 1
        self._first_frame[row] = slot - self._past
        flags = {"terminated": terminated, "truncated": truncated}
        past = self._past.astype(np.uint8)
        self._write_row(action=action, reward=reward, slot=slot, past=past, **flags)
        self._write_frames(np.arange(columns), next_obs[:, -1])
        ended = np.asarray(terminated) | np.asarray(truncated)
        self._past = np.where(ended, -1, np.minimum(self._past + 1, self._stack - 1))
        self._evict()

    def _evict(self) -> None:
        """Give up the oldest transitions whose frames were overwritten by more last frames than expected."""
        runs = np.arange(self.num_runs)
        first_frame = self._first_frame.reshape(self.num_rows, self.num_runs, self.num_envs)
        kept_from = (self._written - self._ring).reshape(self.num_runs, self.num_envs)
        while (gone := (first_frame[self._oldest_row, runs] < kept_from).any(1)).any():
            self._rows_filled -= gone
            np.remainder(self._oldest_row + gone, self.num_rows, out=self._oldest_row)

    def _start_episode(self, column: int, stack: np.ndarray) -> None:
        """Write the frames of a first observation, without the zero frames that lead it."""
        used = np.flatnonzero(stack.reshape(self._stack, -1).any(axis=1))
        first = min(int(used[0]) if len(used) else self._stack, self._stack - 1)
        for frame in stack[first:]:
            self._write_frames(np.array([column]), frame[None])
        self._past[column] = self._stack - 1 - first

    def _write_frames(self, columns: np.ndarray, frames: np.ndarray) -> None:
        """Append one frame to each of the ``columns``."""
        places = columns * self._ring + self._written[columns] % self._ring
        pixels = np.ascontiguousarray(frames).reshape(len(columns), -1)
        names = {f"places of {len(columns)}": places, f"pixels of {len(columns)}": pixels}
        self._frames.index_copy_(0, *self._stage(**names).values())
        self._written[columns] += 1

    def _observations(self, first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        if self.n_step == 1:
            both = self._read(first, 1, self._stack + 1)
            return both[:, :-1], both[:, 1:]
        return self._read(first, 0, self._stack), self._read(last, 1, self._stack)

    def _read(self, place: Tensor, ahead: int, count: int) -> Tensor:
        """The ``count`` frames that end ``ahead`` of those of the transitions' observations, (B, count, H, W)."""
        newest = self._flat["slot"].index_select(0, place) + ahead
        past = self._flat["past"].index_select(0, place).long() + ahead  # frames before it in its episode
        column = place % len(self._past)
        back = torch.arange(count - 1, -1, -1, device=self.device)
        index = (column * self._ring).unsqueeze(1) + (newest.unsqueeze(1) - back) % self._ring
        index = torch.where(back <= past.unsqueeze(1), index, len(self._frames) - 1)
        return self._frames.index_select(0, index.flatten()).view(len(place), count, *self._obs_shape[1:])

    def _check_run(self, k: int) -> tuple[bool, str]:
        """Slots must follow each other within an episode, and none may be overwritten."""
        valid, reason = super()._check_run(k)
        a = {name: self._in_order(name, k).cpu() for name in self._arrays}
        inside = ~(a["terminated"] | a["truncated"])[:-1]
        if valid and not torch.equal(a["slot"][:-1][inside] + 1, a["slot"][1:][inside]):
            return False, "a frame does not follow its predecessor"
        first = a["slot"] - a["past"]
        if valid and (first < torch.as_tensor(self._written[self._columns(k)] - self._ring)).any():
            return False, "a frame of a stored transition has been overwritten"
        return valid, reason

    def _run_state(self, k: int) -> dict[str, Any]:
        """Frames are compressed, column by column, in chunks."""
        return {
            **super()._run_state(k),
            "written": torch.as_tensor(self._written[self._columns(k)].copy()),
            "past_now": torch.as_tensor(self._past[self._columns(k)].copy()),
            "frames": _compress(self._used_frames(k)),
        }

    def _load_run_state(self, k: int, state: Mapping[str, Any]) -> None:
        super()._load_run_state(k, state)
        columns = self._columns(k)
        first = (self._arrays["slot"] - self._arrays["past"])[: self._rows_written, columns]
        self._first_frame[: self._rows_written, columns] = first.cpu().numpy()
        self._written[columns] = state["written"].cpu().numpy()
        self._past[columns] = state["past_now"].cpu().numpy()
        _decompress(state["frames"], self._used_frames(k))

    def _used_frames(self, k: int) -> list[Tensor]:
        """The frames of each of a run's columns that have ever been written, as flat views."""
        return [
            self._frames[column * self._ring :][: min(int(self._written[column]), self._ring)].view(-1)
            for column in range(k * self.num_envs, (k + 1) * self.num_envs)
        ]


def _action_dtype(num_actions: int) -> torch.dtype:
    return torch.uint8 if num_actions <= 256 else torch.int64


def _ring_length(num_rows: int, stack: int) -> int:
    """Frames per column: one per transition, the slack, and a first and a last stack."""
    return num_rows + num_rows // SLACK + 2 * stack


def _compress(columns: list[Tensor]) -> list[Tensor]:
    """Deflate flat uint8 tensors piece by piece (zlib's format), as uint8 tensors on the CPU."""

    def deflate(piece: Tensor) -> Tensor:
        compressed = zlib.compress(piece.cpu().numpy().data, COMPRESSION_LEVEL)
        return torch.frombuffer(bytearray(compressed), dtype=torch.uint8)

    with _workers() as workers:  # zlib releases the interpreter's lock
        return list(workers.map(deflate, (p for column in columns for p in column.split(CHUNK_BYTES))))


def _decompress(pieces: list[Tensor], columns: list[Tensor]) -> None:
    """Inflate ``pieces`` into the flat tensors they came from.

    Raises:
        ValueError: they do not fill these tensors.
    """
    destinations = [p for column in columns for p in column.split(CHUNK_BYTES)]

    def inflate(piece: Tensor, destination: Tensor) -> None:
        content = bytearray(zlib.decompress(piece.cpu().numpy().data))
        if len(content) != len(destination):
            raise ValueError(f"a piece of saved frames has {len(content)} bytes, not {len(destination)}")
        destination.copy_(torch.frombuffer(content, dtype=torch.uint8))

    if len(pieces) != len(destinations):
        raise ValueError(f"saved frames come in {len(pieces)} pieces, not {len(destinations)}")
    with _workers() as workers:
        list(workers.map(inflate, pieces, destinations))


def _workers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
