"""The native H1 tasks as a ``Backend``: ``HumanoidVectorEnv``, which saves and restores MuJoCo's own state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from envs.backend import Transition, agent_steps
from envs.humanoid.tasks import TASKS
from envs.humanoid.vector import HumanoidVectorEnv
from envs.physics import MUJOCO_QUANTITIES


class HumanoidBackend:
    """``Backend`` of copies of one task; all rows share one pool of threads.

    Args:
        env_id: registered id, ``h1-<task>-v0``.
        num_rows: copies.
        action_repeat: frames for which an action is held.
        render_mode: None or "rgb_array".
        scalar_rewards: see ``HumanoidVectorEnv``.
    """

    def __init__(
        self, env_id: str, num_rows: int, action_repeat: int, render_mode: str | None, scalar_rewards: bool
    ) -> None:
        spec = gym.spec(env_id)
        self._vector = HumanoidVectorEnv(
            spec.kwargs["task"],
            num_rows,
            action_repeat,
            spec.max_episode_steps,
            autoreset_mode=AutoresetMode.DISABLED,
            render_mode=render_mode,
            scalar_rewards=scalar_rewards,
        )
        self.observation_space: spaces.Box = self._vector.single_observation_space
        self.action_space: spaces.Box | spaces.Discrete = self._vector.single_action_space
        self.max_episode_steps = agent_steps(spec.max_episode_steps, action_repeat)
        has_speed = TASKS[spec.kwargs["task"]].speed is not None
        self.quantities = (*MUJOCO_QUANTITIES, *(("speed",) if has_speed else ()))
        self.frames_per_second = float(self._vector.metadata["render_fps"])

    def set_physics(self, factors: Sequence[Mapping[str, float]]) -> None:
        self._vector.vary(factors)

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self.restart(np.arange(self._vector.num_envs), seeds)

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        mask = np.zeros(self._vector.num_envs, dtype=np.bool_)
        mask[rows] = True
        of_rows: list[int | None] = [None] * self._vector.num_envs
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            of_rows[row] = seed
        return self._vector.reset(seed=of_rows, options={"reset_mask": mask})[0]

    def step(self, actions: np.ndarray) -> Transition:
        obs, reward, terminated, truncated, _ = self._vector.step(actions)
        return Transition(obs, obs, reward, reward, terminated, truncated, terminated | truncated)

    def state_dict(self, rows: slice) -> dict[str, Any]:
        return {"native": self._vector.get_state(rows)}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
        self.start(seeds)
        self._vector.set_state(np.concatenate([np.asarray(state["native"]) for state in states]))

    def render(self) -> np.ndarray:
        return self._vector.picture(0)

    def close(self) -> None:
        self._vector.close()
