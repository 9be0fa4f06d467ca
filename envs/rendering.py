"""Choosing an OpenGL backend on machines without a display, before MuJoCo would fail for want of one."""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys

from envs.errors import EnvError

# Tried in this order where the user has not set MUJOCO_GL. Both draw without a display.
HEADLESS_BACKENDS = ("egl", "osmesa")
_PROBE = "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); context.free()"


@functools.cache
def select_gl_backend() -> str:
    """Make MuJoCo render without a display; return the backend's name ("" for MuJoCo's own choice).

    A user's MUJOCO_GL is kept. Off Linux MuJoCo's own choice is kept too. A backend is tried in a process of its
    own: loading one that does not work would spoil PyOpenGL for the next, and a broken driver may crash.

    Raises:
        EnvError: neither backend works; names the Debian packages that would help.
    """
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "")
    for backend in HEADLESS_BACKENDS:
        environment = {**os.environ, "MUJOCO_GL": backend}
        if (
            subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True).returncode
            == 0
        ):
            os.environ["MUJOCO_GL"] = backend
            # MuJoCo reads the variable once, when it is imported, which has mostly happened by now.
            importlib.reload(importlib.import_module("mujoco.rendering.classic.gl_context"))
            return backend
    raise EnvError(
        "cannot render: neither EGL nor OSMesa works on this machine; on Debian or Ubuntu install "
        "libegl1 and libgl1-mesa-dri (EGL) or libosmesa6 (software), or set MUJOCO_GL=glfw where there is a display"
    )
