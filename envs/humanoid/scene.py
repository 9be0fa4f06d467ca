"""The world around the robot: solver settings, floor, light and cameras."""

from __future__ import annotations

import mujoco

from envs.humanoid.robot import add_robot

TIMESTEP = 0.002  # s
FRAME_SKIP = 10  # physics steps per frame: 50 frames per second

# Where the tracking cameras stand, relative to the robot's centre of mass, and their x and y axes
# (HumanoidBench's ``cam_*`` figures).
CAMERAS = {
    "default": ((2, 3, 0.8), (-1, 0.5, 0, -0.2, -0.2, 1)),
    "maze": ((3, 3, 3), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "tabletop": ((2.5, 2, 1.5), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "hurdle": ((-3, 3, 3), (-0.5, -0.5, 0, 0.4, -0.4, 1)),
    "basketball": ((-1.8, 3.5, 3), (-0.4, -0.5, 0, 0.4, -0.4, 1)),
}


def new_scene() -> mujoco.MjSpec:
    """Return a scene with HumanoidBench's solver settings, a floor and the robot; tasks add their own parts.

    The floor is the first geom and the robot the first body, so that the robot leads qpos and qvel.
    """
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = TIMESTEP
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.iterations = 100
    spec.option.ls_iterations = 50
    spec.worldbody.add_geom(
        name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(20, 20, 1), conaffinity=1, material="floor"
    )
    _add_looks(spec)
    add_robot(spec)
    return spec


def _add_looks(spec: mujoco.MjSpec) -> None:
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=(0.30, 0.36, 0.42),
        rgb2=(0.24, 0.29, 0.35),
        width=256,
        height=256,
    )
    floor = spec.add_material(name="floor", texrepeat=(1, 1), texuniform=True, reflectance=0.08)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
