"""The world around the robot: solver settings, floor, light and cameras."""

from __future__ import annotations

import mujoco

from envs.humanoid.robot import add_robot

TIMESTEP = 0.002  # s
FRAME_SKIP = 10  # physics steps per frame: 50 frames per second

# Where the tracking cameras stand, relative to the standing pelvis, and their x and y axes. The default is ours: the
# robot from the front and its right; the others are HumanoidBench's ``cam_*`` figures.
CAMERAS = {
    "default": ((2.3, -2.3, 0.5), (0.7, 0.7, 0, -0.15, 0.15, 1)),
    "maze": ((3, 3, 3), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "tabletop": ((2.5, 2, 1.5), (-0.5, 0.5, 0, -0.4, -0.4, 1)),
    "hurdle": ((-3, 3, 3), (-0.5, -0.5, 0, 0.4, -0.4, 1)),
    "basketball": ((-1.8, 3.5, 3), (-0.4, -0.5, 0, 0.4, -0.4, 1)),
}
HORIZON = (0.86, 0.90, 0.94, 1)  # colour
MAX_FRAME = (1920, 1080)  # pixels, width and height


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
    endless = (0, 0, 1)  # the third number is the spacing of grid lines
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=endless, material="floor")
    _add_looks(spec)
    add_robot(spec)
    _add_followers(spec)
    return spec


def _add_looks(spec: mujoco.MjSpec) -> None:
    """Add sky, floor pattern, materials and picture quality."""
    spec.visual.global_.offwidth, spec.visual.global_.offheight = MAX_FRAME
    spec.visual.quality.shadowsize = 4096
    spec.visual.headlight.ambient = (0.25, 0.25, 0.27)
    spec.visual.headlight.diffuse = (0.35, 0.35, 0.35)
    spec.visual.headlight.specular = (0, 0, 0)
    spec.visual.rgba.haze = HORIZON
    spec.visual.map.haze = 0.3
    spec.visual.map.shadowclip = 0.5
    spec.stat.extent, spec.stat.center = 16, (0, 0, 1)  # m; shadows reach half as far
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.45, 0.62, 0.80),
        rgb2=HORIZON[:3],
        width=512,
        height=512,
    )
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        mark=mujoco.mjtMark.mjMARK_EDGE,
        markrgb=(0.75, 0.78, 0.80),
        rgb1=(0.56, 0.60, 0.64),
        rgb2=(0.48, 0.52, 0.56),
        width=512,
        height=512,
    )
    floor = spec.add_material(name="floor", texrepeat=(1, 1), texuniform=True, reflectance=0.06)
    floor.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.add_material(name="shell", rgba=(0.90, 0.91, 0.93, 1), specular=0.5, shininess=0.6)
    spec.add_material(name="joint", rgba=(0.16, 0.17, 0.19, 1), specular=0.6, shininess=0.5)
    spec.add_material(name="scenery", rgba=(0.80, 0.62, 0.42, 1), specular=0.2, shininess=0.3)


def _add_followers(spec: mujoco.MjSpec) -> None:
    """Add what keeps its place relative to the robot: the cameras, and the light whose shadow is drawn."""
    spec.body("pelvis").add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM,
        pos=(1.2, 1.5, 6),
        dir=(-1.2, -1.5, -6),
        diffuse=(0.75, 0.73, 0.70),
        specular=(0.3, 0.3, 0.3),
        castshadow=True,
    )
    for name, (pos, xyaxes) in CAMERAS.items():
        camera = spec.body("pelvis").add_camera(
            name=name, pos=pos, mode=mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM
        )
        camera.alt.type, camera.alt.xyaxes = mujoco.mjtOrientation.mjORIENTATION_XYAXES, xyaxes
