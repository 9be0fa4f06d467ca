"""Pictures of a simulation, taken by the task's camera, which follows the robot."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np

from envs.humanoid.menagerie import dress, find_meshes
from envs.humanoid.simulation import Scene, new_spec
from envs.rendering import select_gl_backend


class View:
    """A window nobody sees; its OpenGL context is made for the first picture."""

    def __init__(self, scene: Scene, width: int, height: int, menagerie: str | Path | None = None) -> None:
        """Remember the size of the pictures, pixels, and where Menagerie's meshes are; see ``find_meshes``."""
        self._scene = scene
        self._size = (height, width)
        self._menagerie = menagerie
        self._renderer: mujoco.Renderer | None = None
        self._dressed: mujoco.MjData | None = None

    def picture(self, data: mujoco.MjData) -> np.ndarray:
        """Return a picture, (height, width, 3) uint8.

        Raises:
            EnvError: neither EGL nor OSMesa can draw on this machine, or meshes are asked for that are not there.
        """
        if self._renderer is None:
            model = self._scene.model
            meshes = find_meshes(self._menagerie)
            if meshes is not None:
                spec = new_spec(self._scene.task)
                dress(spec, meshes)
                model = spec.compile()
                self._dressed = mujoco.MjData(model)
            select_gl_backend()
            self._renderer = mujoco.Renderer(model, *self._size)
        if self._dressed is not None:
            data = _copy_pose(data, self._dressed, self._renderer.model)
        self._renderer.update_scene(data, camera=self._scene.task.camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _copy_pose(data: mujoco.MjData, dressed: mujoco.MjData, model: mujoco.MjModel) -> mujoco.MjData:
    """Return the dressed robot in the pose of ``data``."""
    for field in ("qpos", "mocap_pos", "mocap_quat"):
        getattr(dressed, field)[:] = getattr(data, field)
    mujoco.mj_kinematics(model, dressed)
    mujoco.mj_comPos(model, dressed)
    mujoco.mj_camlight(model, dressed)
    return dressed
