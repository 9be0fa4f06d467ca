"""Pictures of a simulation, taken by the task's camera, which follows the robot."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.simulation import Scene
from envs.rendering import select_gl_backend


class View:
    """A window nobody sees; its OpenGL context is made for the first picture."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        """Remember the size of the pictures, pixels."""
        self._scene = scene
        self._size = (height, width)
        self._renderer: mujoco.Renderer | None = None

    def picture(self, data: mujoco.MjData) -> np.ndarray:
        """Return a picture, (height, width, 3) uint8.

        Raises:
            EnvError: neither EGL nor OSMesa can draw on this machine.
        """
        if self._renderer is None:
            select_gl_backend()
            self._renderer = mujoco.Renderer(self._scene.model, *self._size)
        self._renderer.update_scene(data, camera=self._scene.task.camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
