"""One scene, compiled once and shared, and the physics of one robot in it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import mujoco
import numpy as np

from envs.humanoid.scene import FRAME_SKIP, new_scene
from envs.humanoid.task import Layout, Readings, Task, add_sensors
from envs.humanoid.tasks import TASKS
from envs.physics import scale_model

STATE = mujoco.mjtState.mjSTATE_INTEGRATION


def new_spec(task: Task) -> mujoco.MjSpec:
    """Return the scene of ``task`` before compilation."""
    spec = new_scene()
    add_sensors(spec)
    task.add_scenery(spec)
    return spec


class Scene:
    """A task's compiled model; nothing in it changes, so all simulations of the task share it."""

    def __init__(self, task: Task) -> None:
        """Build and compile the scene of ``task``."""
        self.task = task
        self._take_model(new_spec(task).compile())
        self.layout = Layout.of(self.model)
        self.initial_qpos = task.initial_qpos()
        # float32 like the bounds of HumanoidBench's action space, so that the same action gives the same control.
        self.low, high = self.model.actuator_ctrlrange.T.astype(np.float32)
        self.span = high - self.low
        # Never written: ``observation`` needs readings to say how long it is.
        blank = Readings(self.layout, *map(np.zeros, (self.model.nq, self.model.nv, self.model.nsensordata)))
        self.observation_size = task.observation(blank, np.zeros(task.memory_size)).shape[-1]

    def _take_model(self, model: mujoco.MjModel) -> None:
        self.model = model
        # For the physics steps of a frame whose sensors nobody reads: all but the last. The motion is the same.
        self.silent_model = copy.copy(model)
        self.silent_model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_SENSOR)

    def varied(self, factors: Mapping[str, float]) -> Scene:
        """Return a scene like this one with physical quantities multiplied by ``factors`` (``PhysicsConfig``)."""
        other = copy.copy(self)
        model = copy.copy(self.model)
        scale_model(model, self.model, factors)
        other._take_model(model)
        if self.task.speed is not None:
            other.task = copy.copy(self.task)
            other.task.speed = self.task.speed * factors["speed"]
        return other

    def control(self, actions: np.ndarray) -> np.ndarray:
        """Map actions in [-1, 1], (..., 19), to target angles; anything outside is clipped.

        Raises:
            ValueError: a NaN.
        """
        if np.count_nonzero(np.isnan(actions)):  # far quicker than any() on a few numbers
            raise ValueError(f"h1-{self.task.name}: the action contains NaN: {actions}")
        return (np.minimum(np.maximum(actions, -1), 1) + 1) / 2 * self.span + self.low


@functools.cache
def scene(task_name: str) -> Scene:
    """Return the scene of a task, built at the first call."""
    return Scene(TASKS[task_name]())


class Simulation:
    """The state of one robot: MuJoCo's, and what the task remembers."""

    def __init__(self, scene: Scene) -> None:
        """Allocate the state; ``reset`` must follow."""
        self.scene = scene
        self.data = mujoco.MjData(scene.model)
        self.memory = np.zeros(scene.task.memory_size)
        # Views: they follow the data.
        self.readings = Readings(scene.layout, self.data.qpos, self.data.qvel, self.data.sensordata)
        self._control = self.data.ctrl

    def reset(self, random: np.random.Generator) -> None:
        """Return to the task's first pose, with noise, as HumanoidBench does it."""
        model, data = self.scene.model, self.data
        mujoco.mj_resetData(model, data)
        data.qpos[:] = self.scene.initial_qpos
        mujoco.mj_forward(model, data)
        noise = self.scene.task.reset_noise
        data.qpos += random.uniform(-noise, noise, size=model.nq)
        mujoco.mj_forward(model, data)
        self.memory[:] = 0.0
        if self.scene.task.randomize(data, self.memory, random):
            mujoco.mj_forward(model, data)

    def step(self, control: np.ndarray) -> None:
        """Hold the target angles ``control``, (19,), for one frame."""
        self._control[:] = control
        mujoco.mj_step(self.scene.silent_model, self.data, FRAME_SKIP - 1)
        mujoco.mj_step(self.scene.model, self.data)

    def get_state(self) -> np.ndarray:
        """Return everything the next steps depend on, one float64 vector (solver warm start included)."""
        physics = np.empty(mujoco.mj_stateSize(self.scene.model, STATE))
        mujoco.mj_getState(self.scene.model, self.data, physics, STATE)
        return np.concatenate((physics, self.memory))

    def set_state(self, state: np.ndarray) -> None:
        """Take up a state of ``get_state``: the next step gives the same numbers, bit for bit."""
        size = mujoco.mj_stateSize(self.scene.model, STATE)
        if state.shape != (size + self.memory.size,):
            raise ValueError(
                f"expected a state of {size + self.memory.size} numbers, got shape {state.shape}"
            )
        mujoco.mj_setState(self.scene.model, self.data, state[:size], STATE)
        mujoco.mj_forward(self.scene.model, self.data)  # positions to draw; disturbs the warm start
        mujoco.mj_setState(self.scene.model, self.data, state[:size], STATE)
        self.memory[:] = state[size:]
