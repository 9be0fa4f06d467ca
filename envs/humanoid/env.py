"""The Gymnasium environment of a HumanoidBench task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.humanoid.robot import JOINTS
from envs.humanoid.scene import FRAME_SKIP, TIMESTEP
from envs.humanoid.simulation import Simulation, scene
from envs.humanoid.task import FRAME_REWARD
from envs.humanoid.view import View


class HumanoidEnv(gym.Env):
    """The Unitree H1 in one HumanoidBench task.

    Observation: qpos then qvel (most tasks), float64. Action: Box(-1, 1, (19,)) float32, one target angle per joint,
    mapped linearly to the joint's range; what lies outside is clipped. One step is 20 ms. ``info`` holds the reward as
    ``per_timestep_reward`` and its parts. The time limit is the registered environment's, not this class's.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / (FRAME_SKIP * TIMESTEP))}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        render_mode: str | None = None,
        width: int = 640,
        height: int = 480,
        menagerie: str | Path | None = None,
    ) -> None:
        """Build the environment.

        Args:
            task: a key of ``tasks.TASKS``.
            render_mode: None or "rgb_array".
            width, height: size of rendered frames, pixels.
            menagerie: folder of a clone of MuJoCo Menagerie, whose meshes of the H1 are then drawn; None for the
                environment variable MUJOCO_MENAGERIE_PATH, without which the robot is drawn by its collision hulls.

        Raises:
            ValueError: unknown render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"h1-{task} renders as 'rgb_array' only, got render_mode={render_mode!r}")
        self._scene = scene(task)
        self._simulation = Simulation(self._scene)
        self._view = View(self._scene, width, height, menagerie)
        self.render_mode = render_mode
        self.observation_space: spaces.Box = spaces.Box(
            -np.inf, np.inf, (self._scene.observation_size,), np.float64
        )
        self.action_space: spaces.Box = spaces.Box(-1, 1, (len(JOINTS),), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Stand the robot up, with +-0.01 uniform noise on every entry of qpos."""
        super().reset(seed=seed)
        self._simulation.reset(self.np_random)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Advance by one frame.

        Raises:
            ValueError: NaN in the action, or a wrong shape.
        """
        action = np.asarray(action)
        if action.shape != self.action_space.shape:
            raise ValueError(
                f"h1-{self._scene.task.name} takes actions of shape {self.action_space.shape}, got {action.shape}"
            )
        simulation, task = self._simulation, self._scene.task
        simulation.step(self._scene.control(action))
        observation = self._observation()
        reward, components = task.reward(simulation.readings, simulation.memory)
        terminated = bool(task.terminated(simulation.readings, simulation.memory))
        info = {name: float(value) for name, value in {FRAME_REWARD: reward, **components}.items()}
        return observation, float(reward), terminated, False, info

    def render(self) -> np.ndarray | None:
        """Return a picture, (height, width, 3) uint8, or None if ``render_mode`` is None.

        Raises:
            EnvError: neither EGL nor OSMesa can draw on this machine.
        """
        if self.render_mode is None:
            return None
        return self._view.picture(self._simulation.data)

    def get_state(self) -> np.ndarray:
        """Return the simulation's state, one float64 vector; see ``Simulation.get_state``."""
        return self._simulation.get_state()

    def set_state(self, state: np.ndarray) -> None:
        """Continue from a state of ``get_state``, bit for bit; the random generator is left alone."""
        self._simulation.set_state(state)

    def close(self) -> None:
        """Free what pictures needed."""
        self._view.close()

    def _observation(self) -> np.ndarray:
        return self._scene.task.observation(self._simulation.readings, self._simulation.memory)
