"""Many H1 environments at once: physics on several threads, rewards for the whole batch in one go."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.humanoid.env import HumanoidEnv
from envs.humanoid.simulation import Scene, Simulation, scene
from envs.humanoid.task import FRAME_REWARD, Components, Readings
from envs.humanoid.view import View

Verdict = tuple[np.ndarray, Components, np.ndarray]  # rewards, their parts, terminations
EVERYONE = slice(None)  # as an index: all sub-environments, without the cost of an array of indices


class HumanoidVectorEnv(VectorEnv):
    """``num_envs`` copies of one task; each gives the numbers ``HumanoidEnv`` gives for the same seed and actions.

    MuJoCo releases Python's lock while it steps, so plain threads use all cores. Every sub-environment has its own
    simulation, and nothing is shared but the constant model: the number of threads cannot change a result.

    Autoreset is "same step" (the default: ``infos["final_obs"]`` and ``infos["final_info"]`` hold what a reset
    replaced) or "disabled" (the caller resets, with ``options={"reset_mask": mask}``).
    """

    def __init__(
        self,
        task: str,
        num_envs: int = 1,
        action_repeat: int = 1,
        max_episode_steps: int | None = None,
        num_threads: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        width: int = 640,
        height: int = 480,
        menagerie: str | Path | None = None,
        scalar_rewards: bool | None = None,
    ) -> None:
        """Build the environments.

        Args:
            task: a key of ``tasks.TASKS``.
            num_envs: copies.
            action_repeat: frames for which an action is held; rewards are summed, an episode's end cuts it short.
            max_episode_steps: time limit in frames; None for the task's own.
            num_threads: threads that step; None for one per available core, at most one per copy.
            autoreset_mode: "SameStep" or "Disabled".
            render_mode: None or "rgb_array".
            width, height: size of rendered frames, pixels.
            menagerie: folder of a clone of MuJoCo Menagerie, whose meshes of the H1 are then drawn; None for the
                environment variable MUJOCO_MENAGERIE_PATH, without which the robot is drawn by its collision hulls.
            scalar_rewards: compute rewards one environment at a time, on plain numbers, instead of on arrays; None:
                where there is one environment only, which makes it far cheaper. The two can differ in the last digit:
                Python squares a number by C's ``pow``, NumPy an array by a multiplication.

        Raises:
            ValueError: a mode that is not supported, a count below 1.
        """
        autoreset_mode = AutoresetMode(autoreset_mode)
        if autoreset_mode not in (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED):
            raise ValueError(f"h1-{task} resets in mode SameStep or Disabled, not {autoreset_mode.value}")
        if min(num_envs, action_repeat, num_threads or 1) < 1:
            raise ValueError(f"counts must be at least 1: {num_envs=}, {action_repeat=}, {num_threads=}")
        single = HumanoidEnv(task, render_mode)  # checks the render mode and knows the spaces
        self.metadata = {**HumanoidEnv.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self.single_observation_space: spaces.Box = single.observation_space
        self.single_action_space: spaces.Box = single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

        self._scene = scene(task)
        self._task = self._scene.task
        self._limit = max_episode_steps or self._task.max_episode_steps
        self._scalar_rewards = num_envs == 1 if scalar_rewards is None else scalar_rewards
        self._same_step = autoreset_mode == AutoresetMode.SAME_STEP
        self._simulations = [Simulation(self._scene) for _ in range(num_envs)]
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._verdicts: dict[
            int, Verdict
        ] = {}  # on the last frame, by sub-environment, if rewards are scalar
        self._view = View(self._scene, width, height, menagerie)
        threads = min(num_threads or _available_cores(), num_envs)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._threads = threads

        model = self._scene.model
        self._readings = Readings(
            self._scene.layout,
            qpos=np.zeros((num_envs, model.nq)),
            qvel=np.zeros((num_envs, model.nv)),
            sensordata=np.zeros((num_envs, model.nsensordata)),
        )
        self._memory = np.zeros((num_envs, self._task.memory_size))
        for simulation, memory in zip(self._simulations, self._memory, strict=True):
            simulation.memory = memory  # a row of the batch: tasks update it for all at once
        self._indices = np.arange(num_envs)
        self._all = np.ones(num_envs, dtype=np.bool_)
        self._all.setflags(write=False)  # handed out as a mask
        self._elapsed = np.zeros(num_envs, dtype=np.int64)  # frames since the reset
        self._ended = np.ones(num_envs, dtype=np.bool_)  # awaits a reset

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all sub-environments, or those of ``options["reset_mask"]``, (N,) bool.

        Args:
            seed: one per sub-environment; an int n stands for n, n + 1, ...; None goes on with the generators.
            options: may hold ``reset_mask``.

        Returns:
            All observations, (N, size) float64, and an empty dict.
        """
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, got {len(seed)}")
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"])
            if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
                raise ValueError(f"reset_mask must be ({self.num_envs},) bool, got {mask.shape} {mask.dtype}")
        for index in np.flatnonzero(mask).tolist():
            self._reset_one(index, seed[index])
        return self._observations(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Advance every sub-environment by ``action_repeat`` frames, or to its episode's end.

        Args:
            actions: (N, 19); what lies outside [-1, 1] is clipped.

        Returns:
            Observations (N, size) float64, summed rewards (N,) float64, terminated and truncated (N,) bool, and the
            last frame's reward of each one, ``per_timestep_reward``, and its parts as (N,) arrays.

        Raises:
            ValueError: NaN or a wrong shape.
            RuntimeError: an episode that has ended was not reset.
        """
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            expected = self.action_space.shape
            raise ValueError(f"h1-{self._task.name} takes actions of shape {expected}, got {actions.shape}")
        if np.count_nonzero(self._ended):  # far quicker than any() on a few numbers
            raise RuntimeError(
                f"reset needed first by sub-environments {np.flatnonzero(self._ended).tolist()}"
            )
        controls = self._scene.control(actions)
        rewards = np.zeros(self.num_envs)
        terminated = np.zeros(self.num_envs, dtype=np.bool_)
        truncated = np.zeros(self.num_envs, dtype=np.bool_)
        infos: dict[str, Any] = {}
        running: np.ndarray | slice = EVERYONE
        for _ in range(self.action_repeat):
            self._advance(self._indices[running], controls)
            reward, components, ended = self._judge(running)
            rewards[running] += reward
            self._elapsed[running] += 1
            terminated[running] = ended
            truncated[running] = self._elapsed[running] >= self._limit
            self._note(infos, {FRAME_REWARD: reward, **components}, running)
            over = terminated | truncated
            if np.count_nonzero(over):
                running = np.flatnonzero(~over)
                if running.size == 0:
                    break
        observations = self._observations()
        self._ended = over
        if self._same_step and np.count_nonzero(over):
            self._autoreset(observations, infos)
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture of every sub-environment, (height, width, 3) uint8; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self.picture(index) for index in range(self.num_envs))

    def picture(self, index: int) -> np.ndarray:
        """Return a picture of one sub-environment, (height, width, 3) uint8."""
        return self._view.picture(self._simulations[index].data)

    def get_state(self, rows: slice = EVERYONE) -> np.ndarray:
        """Return the state of every sub-environment, (N, size) float64: simulation, then frames since the reset.

        With ``rows`` only theirs. The random generators are not part of it: they are used by resets only.
        """
        states = [simulation.get_state() for simulation in self._simulations[rows]]
        return np.column_stack((states, self._elapsed[rows]))

    def set_state(self, states: np.ndarray) -> None:
        """Continue from a result of ``get_state``, bit for bit."""
        for simulation, state in zip(self._simulations, states, strict=True):
            simulation.set_state(state[:-1])
        self._elapsed[:] = states[:, -1]
        self._ended[:] = False
        for index in range(self.num_envs):
            self._collect(index)

    def vary(self, factors: Sequence[Mapping[str, float]]) -> None:
        """Multiply physical quantities by the factors of each sub-environment (``PhysicsConfig``); a reset must follow.

        Rewards are computed one environment at a time from here on, since what they ask for may differ.
        """
        self._scalar_rewards = True
        scenes: dict[tuple[float, ...], Scene] = {}
        for simulation, own in zip(self._simulations, factors, strict=True):
            key = tuple(own.values())
            if key not in scenes:
                scenes[key] = self._scene.varied(own)
            simulation.scene = scenes[key]

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads and free the renderer."""
        if self._pool is not None:
            self._pool.shutdown()
        self._view.close()

    def _reset_one(self, index: int, seed: int | None) -> None:
        generator = self._generators[index]
        if seed is not None or generator is None:
            generator, _ = seeding.np_random(seed)
            self._generators[index] = generator
        self._simulations[index].reset(generator)
        self._elapsed[index] = 0
        self._ended[index] = False
        self._collect(index)

    def _advance(self, running: np.ndarray, controls: np.ndarray) -> None:
        """Step the physics of the sub-environments ``running`` by one frame and collect what it led to."""
        waiting = iter(running.tolist())

        def work() -> None:
            for index in waiting:  # shared by the threads: whoever is free takes the next one
                self._simulations[index].step(controls[index])
                self._collect(index)
                if self._scalar_rewards:  # here, where other threads' physics goes on meanwhile
                    self._verdicts[index] = self._judge_one(index)

        helpers = min(self._threads, running.size) - 1
        others = [self._pool.submit(work) for _ in range(helpers)] if self._pool is not None else []
        work()
        for other in others:
            other.result()

    def _collect(self, index: int) -> None:
        own = self._simulations[index].readings
        self._readings.qpos[index] = own.qpos
        self._readings.qvel[index] = own.qvel
        self._readings.sensordata[index] = own.sensordata

    def _judge(self, running: np.ndarray | slice) -> Verdict:
        """Return rewards, their parts and terminations of the sub-environments ``running``."""
        if self._scalar_rewards:
            verdicts = [self._verdicts[index] for index in self._indices[running].tolist()]
            rewards, parts, ended = zip(*verdicts, strict=True)
            columns = {name: np.array([part[name] for part in parts]) for name in parts[0]}
            return np.array(rewards), columns, np.array(ended)
        readings, memory = self._readings, self._memory
        if running is not EVERYONE:
            layout, qpos, qvel, sensordata = readings
            readings = Readings(layout, qpos[running], qvel[running], sensordata[running])
            memory = memory[running]
        reward, components = self._task.reward(readings, memory)
        if running is not EVERYONE:
            self._memory[running] = memory
        return reward, components, self._task.terminated(readings, memory)

    def _judge_one(self, index: int) -> Verdict:
        """Return reward, parts and termination of one sub-environment, plain numbers."""
        own = self._simulations[index]
        task = own.scene.task
        reward, components = task.reward(own.readings, own.memory)
        return reward, components, task.terminated(own.readings, own.memory)

    def _note(self, infos: dict[str, Any], components: Components, running: np.ndarray | slice) -> None:
        """Write the last frame's reward and its parts into the vector infos: arrays, and masks of who has them."""
        if running is EVERYONE:
            for name, values in components.items():
                infos[name], infos[f"_{name}"] = values, self._all
            return
        for name, values in components.items():
            infos[name] = infos[name].copy()
            infos[name][running] = values

    def _autoreset(self, observations: np.ndarray, infos: dict[str, Any]) -> None:
        """Reset what has ended; ``observations`` get the first ones of the new episodes, ``infos`` the last ones."""
        mask = self._ended.copy()
        parts = {name: values.copy() for name, values in infos.items()}
        for name in [name for name in parts if name.startswith("_")]:
            parts[name] = mask.copy()
            infos[name] = ~mask
        final = np.full(self.num_envs, None, dtype=object)
        for index in np.flatnonzero(mask).tolist():
            final[index] = observations[index].copy()
            self._reset_one(index, None)
        infos |= {"final_obs": final, "_final_obs": mask, "final_info": parts, "_final_info": mask.copy()}
        observations[mask] = self._observations()[mask]

    def _observations(self) -> np.ndarray:
        return self._task.observation(self._readings, self._memory)


def _available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
