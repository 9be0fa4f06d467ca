"""Any Gymnasium environment as a ``Backend``, saved as the actions since the last reset and played back from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.backend import Transition
from envs.make import agent_steps, make_env


class GymnasiumBackend:
    """``Backend`` of copies of one registered environment, stepped one after the other in this thread.

    Args:
        env_id: registered id.
        num_rows: copies.
        action_repeat: frames for which an action is held.
        render_mode: of row 0; a renderer for each of the others would cost a GL context.

    Raises:
        EnvError: as ``make_env``.
    """

    def __init__(self, env_id: str, num_rows: int, action_repeat: int, render_mode: str | None) -> None:
        modes = [render_mode, *[None] * (num_rows - 1)]
        self._envs = [make_env(env_id, action_repeat, mode) for mode in modes]
        space = self._envs[0].action_space
        assert isinstance(space, spaces.Box | spaces.Discrete)
        self.action_space = space
        assert isinstance(self._envs[0].observation_space, spaces.Box)
        self.observation_space = self._envs[0].observation_space
        self.max_episode_steps = agent_steps(gym.spec(env_id).max_episode_steps, action_repeat)
        self.frames_per_second = float(self._envs[0].metadata.get("render_fps", 30))
        self._obs = np.zeros((num_rows, *self.observation_space.shape), self.observation_space.dtype)
        self._actions: list[
            np.ndarray
        ] = []  # (R, *action_shape) per step, since the oldest running episode began
        self._begun = np.zeros(
            num_rows, dtype=np.int64
        )  # position in ``_actions`` where each row's episode began

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self.restart(np.arange(len(self._envs)), seeds)

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        self._obs = self._obs.copy()
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            self._obs[row], _ = self._envs[row].reset(seed=seed, options={})
        self._begun[rows] = len(self._actions)
        if oldest := int(self._begun.min()):
            del self._actions[:oldest]
            self._begun -= oldest
        return self._obs

    def step(self, actions: np.ndarray) -> Transition:
        self._actions.append(actions.copy())  # an environment may write to what it is given
        obs, reward = np.empty_like(self._obs), np.empty(len(self._envs))
        terminated, truncated = np.empty((2, len(self._envs)), dtype=np.bool_)
        for row, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            obs[row], reward[row], terminated[row], truncated[row], _ = env.step(action)
        self._obs = obs
        return Transition(obs, obs, reward, reward, terminated, truncated, terminated | truncated)

    def state_dict(self, rows: slice) -> dict[str, Any]:
        return {"actions": [self._since(row) for row in range(*rows.indices(len(self._envs)))]}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
        taken = [self._saved(actions) for state in states for actions in state["actions"]]
        self._actions = []
        self.start(seeds)
        for row, actions in enumerate(taken):
            for action in actions:
                self._obs[row] = self._envs[row].step(action.copy())[0]
        longest = max(map(len, taken))
        log = np.zeros((longest, len(taken), *self._action_shape), self.action_space.dtype)
        for row, actions in enumerate(taken):
            self._begun[row] = longest - len(actions)
            log[self._begun[row] :, row] = actions
        self._actions = list(log)
        return self._obs

    def render(self) -> np.ndarray:
        picture = self._envs[0].render()
        assert isinstance(picture, np.ndarray)
        return picture

    def close(self) -> None:
        for env in self._envs:
            env.close()

    @property
    def _action_shape(self) -> tuple[int, ...]:
        assert self.action_space.shape is not None
        return self.action_space.shape

    def _since(self, row: int) -> np.ndarray:
        """Return a row's actions in its present episode, (steps, *action_shape)."""
        return self._saved([actions[row] for actions in self._actions[self._begun[row] :]])

    def _saved(self, actions: Any) -> np.ndarray:
        return np.asarray(actions).astype(self.action_space.dtype).reshape(-1, *self._action_shape)
