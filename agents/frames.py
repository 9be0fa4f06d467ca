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
        capacity, num_envs, gamma, n_step, device: see ``Replay``.
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
    ) -> None:
        super().__init__(capacity, num_envs, (), _action_dtype(num_actions), gamma, n_step, device)
        self._obs_shape = obs_shape
        self._stack, height, width = obs_shape
        self._ring = _ring_length(self.num_rows, self._stack)
        self._add_array("slot", (), torch.int64)  # of the newest frame, counted from the run's start
        self._add_array("past", (), torch.uint8)  # frames before it in its episode, at most C - 1
        self._frames = torch.empty(
            (num_envs * self._ring + 1, height * width), dtype=torch.uint8, device=self.device
        )
        self._frames[-1] = 0
        # What eviction needs at every step, kept off the device: first frame of each transition's stack.
        self._first_frame = np.empty((self.num_rows, num_envs), dtype=np.int64)
        self._written = np.zeros(num_envs, dtype=np.int64)  # frames written per column since the run's start
        self._past = np.full(num_envs, -1)  # of the observation to come; -1: it starts an episode
        self._column = torch.arange(num_envs, device=self.device) * self._ring

    @staticmethod
    def bytes_needed(capacity: int, num_envs: int, obs_shape: tuple[int, int, int], num_actions: int) -> int:
        """Bytes that a buffer of these sizes takes when it is full, all included."""
        rows, (stack, height, width) = capacity // num_envs, obs_shape
        scalars = _action_dtype(num_actions).itemsize + 4 + 1 + 1 + 8 + 1 + 8
        return (num_envs * _ring_length(rows, stack) + 1) * height * width + rows * num_envs * scalars

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._frames.nbytes + self._first_frame.nbytes

    def _check_row(self, name: str, obs: np.ndarray) -> None:
        expected = (self.num_envs, *self._obs_shape)
        if np.shape(obs) != expected or np.asarray(obs).dtype != np.uint8:
            found = f"{np.shape(obs)} {np.asarray(obs).dtype}"
            raise ValueError(f"{name}: expected a row of shape {expected} uint8, got {found}")

    def _add_observations(self, obs: np.ndarray, next_obs: np.ndarray, ended: np.ndarray) -> None:
        for env in np.flatnonzero(self._past < 0).tolist():
            self._start_episode(env, obs[env])
        slot = self._written - 1
        self._write("slot", slot)
        self._write("past", self._past.astype(np.uint8))
        self._first_frame[self.next_row] = slot - self._past
        self._write_frames(np.arange(self.num_envs), next_obs[:, -1])
        self._past = np.where(ended, -1, np.minimum(self._past + 1, self._stack - 1))
        if self.rows_filled == self.num_rows:  # the row just written replaced the oldest
            self.rows_filled -= 1
        # Frames of the oldest transitions may have been overwritten by more last frames than expected.
        while self.rows_filled and (self._first_frame[self._oldest_row] < self._written - self._ring).any():
            self.rows_filled -= 1

    def _start_episode(self, env: int, stack: np.ndarray) -> None:
        """Write the frames of a first observation, without the zero frames that lead it."""
        used = np.flatnonzero(stack.reshape(self._stack, -1).any(axis=1))
        first = min(int(used[0]) if len(used) else self._stack, self._stack - 1)
        for frame in stack[first:]:
            self._write_frames(np.array([env]), frame[None])
        self._past[env] = self._stack - 1 - first

    def _write_frames(self, envs: np.ndarray, frames: np.ndarray) -> None:
        """Append one frame to each of the columns ``envs``."""
        where = torch.as_tensor(envs * self._ring + self._written[envs] % self._ring, device=self.device)
        pixels = torch.as_tensor(np.ascontiguousarray(frames)).flatten(1).to(self.device)
        self._frames.index_copy_(0, where, pixels)
        self._written[envs] += 1

    def _observations(self, env: Tensor, row: Tensor, last_row: Tensor) -> tuple[Tensor, Tensor]:
        slot, past = self._arrays["slot"][row, env], self._arrays["past"][row, env].long()
        if self.n_step == 1:
            both = self._read(env, slot + 1, past + 1, self._stack + 1)
            return both[:, :-1], both[:, 1:]
        last_slot, last_past = self._arrays["slot"][last_row, env], self._arrays["past"][last_row, env].long()
        next_obs = self._read(env, last_slot + 1, last_past + 1, self._stack)
        return self._read(env, slot, past, self._stack), next_obs

    def _read(self, env: Tensor, newest: Tensor, past: Tensor, count: int) -> Tensor:
        """Return the ``count`` frames that end with slot ``newest``, (B, count, H, W); zero beyond ``past`` back."""
        back = torch.arange(count - 1, -1, -1, device=self.device)
        index = self._column[env].unsqueeze(1) + (newest.unsqueeze(1) - back) % self._ring
        index = torch.where(back <= past.unsqueeze(1), index, len(self._frames) - 1)
        return self._frames.index_select(0, index.flatten()).view(len(env), count, *self._obs_shape[1:])

    def check_valid(self) -> tuple[bool, str]:
        """As ``Replay.check_valid``; within an episode slots must follow each other, and none may be overwritten."""
        valid, reason = super().check_valid()
        a = {name: self._in_order(name).cpu() for name in self._arrays}
        inside = ~(a["terminated"] | a["truncated"])[:-1]
        if valid and not torch.equal(a["slot"][:-1][inside] + 1, a["slot"][1:][inside]):
            return False, "a frame does not follow its predecessor"
        first = a["slot"] - a["past"]
        if valid and (first < torch.as_tensor(self._written - self._ring)).any():
            return False, "a frame of a stored transition has been overwritten"
        return valid, reason

    def state_dict(self) -> dict[str, Any]:
        """Written rows and frames in storage order; frames are compressed, column by column, in chunks."""
        return {
            **super().state_dict(),
            "written": torch.as_tensor(self._written.copy()),
            "past_now": torch.as_tensor(self._past.copy()),
            "frames": _compress([self._used_frames(env) for env in range(self.num_envs)]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As ``Replay.load_state_dict``."""
        super().load_state_dict(state)
        self._first_frame[: self._rows_written] = (
            (self._arrays["slot"] - self._arrays["past"])[: self._rows_written].cpu().numpy()
        )
        self._written[:] = state["written"].cpu().numpy()
        self._past = state["past_now"].cpu().numpy().copy()
        _decompress(state["frames"], [self._used_frames(env) for env in range(self.num_envs)])

    def _used_frames(self, env: int) -> Tensor:
        """The frames of a column that have ever been written, as a flat view."""
        start = env * self._ring
        return self._frames[start : start + min(int(self._written[env]), self._ring)].view(-1)


def _action_dtype(num_actions: int) -> torch.dtype:
    return torch.uint8 if num_actions <= 256 else torch.int64


def _ring_length(num_rows: int, stack: int) -> int:
    """Frames per column: one per transition, the slack, and a first and a last stack."""
    return num_rows + num_rows // SLACK + 2 * stack


def _compress(columns: list[Tensor]) -> list[Tensor]:
    """Deflate flat uint8 tensors piece by piece (zlib's format), as uint8 tensors on the CPU."""

    def deflate(piece: Tensor) -> Tensor:
        compressed = zlib.compress(piece.cpu().numpy(), COMPRESSION_LEVEL)
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
        content = bytearray(zlib.decompress(piece.cpu().numpy()))
        if len(content) != len(destination):
            raise ValueError(f"a piece of saved frames has {len(content)} bytes, not {len(destination)}")
        destination.copy_(torch.frombuffer(content, dtype=torch.uint8))

    if len(pieces) != len(destinations):
        raise ValueError(f"saved frames come in {len(pieces)} pieces, not {len(destinations)}")
    with _workers() as workers:
        list(workers.map(inflate, pieces, destinations))


def _workers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8))
