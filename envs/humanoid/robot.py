"""The Unitree H1 without hands, built from a table: 20 links, 19 position-controlled hinges and a free base.

Figures: HumanoidBench's ``h1_pos`` model (Sferrazza et al. 2024, MIT), itself derived from Unitree's public H1
description (BSD-3-Clause). Lengths in m, masses in kg, inertias in kg m^2, angles in rad, torques in N m.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import NamedTuple

import mujoco
import numpy as np

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]  # w, x, y, z

X, Y, Z = (1, 0, 0), (0, 1, 0), (0, 0, 1)
JOINT_DAMPING = 1.0  # N m s / rad
JOINT_ARMATURE = 0.1  # kg m^2

# The pose every task starts from: standing with bent knees, in the order of qpos.
STANDING_BASE = (0, 0, 0.98, 1, 0, 0, 0)
STANDING_LEG = (0, 0, -0.4, 0.8, -0.4)
STANDING_QPOS = np.array([*STANDING_BASE, *STANDING_LEG, *STANDING_LEG, *[0] * 9], dtype=np.float64)

VISUAL_GROUP, COLLISION_GROUP, SITE_GROUP = 2, 3, 4


class Link(NamedTuple):
    """A link and the hinge that moves it against its parent."""

    name: str
    parent: str
    pos: Vector  # in the parent's frame
    quat: Quaternion
    mass: float
    center_of_mass: Vector
    inertia_quat: Quaternion  # the principal axes
    inertia: Vector
    axis: Vector
    limits: tuple[float, float]  # of the hinge, and of the position the controller can be sent to
    stiffness: float  # of the controller, N m / rad
    damping: float  # of the controller, N m s / rad
    max_torque: float


# fmt: off
PELVIS_MASS, PELVIS_COM = 5.39, (-0.0002, 4e-05, -0.04522)
PELVIS_INERTIA_QUAT = (0.498303, 0.499454, -0.500496, 0.501741)
PELVIS_INERTIA = (0.0490211, 0.0445821, 0.00824619)

NO_TURN: Quaternion = (1, 0, 0, 0)
LEFT_LEG = (
    Link("hip_yaw", "pelvis", (0, 0.0875, -0.1742), NO_TURN, 2.244, (-0.04923, 0.0001, 0.0072),
         (0.69699, 0.219193, 0.233287, 0.641667), (0.00304494, 0.00296885, 0.00189201),
         Z, (-0.43, 0.43), 200, 5, 200),
    Link("hip_roll", "hip_yaw", (0.039468, 0, 0), NO_TURN, 2.232, (-0.0058, -0.00319, -9e-05),
         (0.0438242, 0.70721, -0.0729075, 0.701867), (0.00243264, 0.00225325, 0.00205492),
         X, (-0.43, 0.43), 200, 5, 200),
    Link("hip_pitch", "hip_roll", (0, 0.11536, 0), NO_TURN, 4.152, (0.00746, -0.02346, -0.08193),
         (0.979828, 0.0513522, -0.0169854, -0.192382), (0.0829503, 0.0821457, 0.00510909),
         Y, (-3.14, 2.53), 200, 5, 200),
    Link("knee", "hip_pitch", (0, 0, -0.4), NO_TURN, 1.721, (-0.00136, -0.00512, -0.1384),
         (0.626132, -0.034227, -0.0416277, 0.777852), (0.0125237, 0.0123104, 0.0019428),
         Y, (-0.26, 2.05), 300, 6, 300),
    Link("ankle", "knee", (0, 0, -0.4), NO_TURN, 0.552448, (0.048568, 0, -0.045609),
         (0.489385, 0.510394, 0.510394, 0.489385), (0.00362, 0.00355701, 0.000149987),
         Y, (-0.87, 0.52), 40, 2, 40),
)
TORSO = Link(
    "torso", "pelvis", (0, 0, 0), NO_TURN, 17.789, (0.000489, 0.002797, 0.20484),
    (0.999989, -0.00130808, -0.00282289, -0.00349105), (0.487315, 0.409628, 0.127837),
    Z, (-2.35, 2.35), 300, 6, 200)
LEFT_ARM = (
    Link("shoulder_pitch", "torso", (0.0055, 0.15535, 0.42999), (0.976296, 0.216438, 0, 0), 1.033,
         (0.005045, 0.053657, -0.015715), (0.814858, 0.579236, -0.0201072, -0.00936488),
         (0.00129936, 0.000987113, 0.000858198), Y, (-2.87, 2.87), 100, 2, 40),
    Link("shoulder_roll", "shoulder_pitch", (-0.0055, 0.0565, -0.0165), (0.976296, -0.216438, 0, 0), 0.793,
         (0.000679, 0.00115, -0.094076), (0.732491, 0.00917179, 0.0766656, 0.676384),
         (0.00170388, 0.00158256, 0.00100336), X, (-0.34, 3.11), 100, 2, 40),
    Link("shoulder_yaw", "shoulder_roll", (0, 0, -0.1343), NO_TURN, 0.839, (0.01365, 0.002767, -0.16266),
         (0.703042, -0.0331229, -0.0473362, 0.708798), (0.00408038, 0.00370367, 0.000622687),
         Z, (-1.3, 4.45), 100, 2, 18),
    Link("elbow", "shoulder_yaw", (0.0185, 0, -0.198), NO_TURN, 0.669, (0.15908, -0.000144, -0.015776),
         (0.0765232, 0.720327, 0.0853116, 0.684102), (0.00601829, 0.00600579, 0.000408305),
         Y, (-1.25, 2.61), 100, 2, 18),
)
# fmt: on

# Sites: name, link, position in the link's frame.
SITES = (
    ("head", "torso", (0, 0, 0.7)),
    ("imu", "torso", (-0.04452, -0.01891, 0.27756)),
    ("left_foot", "left_ankle", (0, 0, -0.05)),
    ("right_foot", "right_ankle", (0, 0, -0.05)),
    ("left_hand", "left_elbow", (0.31, 0, -0.01)),
    ("right_hand", "right_elbow", (0.31, 0, -0.01)),
)
# Both hip_yaw links collide as a cylinder instead of their hull: radius, half length, centre, axis along x.
HIP_YAW_SIZE, HIP_YAW_POS, HIP_YAW_QUAT = (0.06, 0.035, 0), (-0.067, 0, 0), (0.707123, 0, 0.70709, 0)


def _mirror(link: Link) -> Link:
    """Return the right link of a left one: everything mirrored in the x-z plane."""

    def turn(quat: Quaternion) -> Quaternion:
        return (quat[0], -quat[1], quat[2], -quat[3])

    def move(pos: Vector) -> Vector:
        return (pos[0], -pos[1], pos[2])

    low, high = link.limits
    return link._replace(
        pos=move(link.pos),
        quat=turn(link.quat),
        center_of_mass=move(link.center_of_mass),
        inertia_quat=turn(link.inertia_quat),
        limits=(low, high) if link.axis == Y else (-high, -low),
    )


def _side(chain: tuple[Link, ...], side: str) -> list[Link]:
    """Return a chain of one side with its names prefixed; a parent outside the chain keeps its name."""
    inside = {link.name for link in chain}
    links = chain if side == "left" else map(_mirror, chain)
    return [
        link._replace(
            name=f"{side}_{link.name}",
            parent=f"{side}_{link.parent}" if link.parent in inside else link.parent,
        )
        for link in links
    ]


# In the order of qpos (behind the base), qvel and the actions.
LINKS: tuple[Link, ...] = (
    *_side(LEFT_LEG, "left"),
    *_side(LEFT_LEG, "right"),
    TORSO,
    *_side(LEFT_ARM, "left"),
    *_side(LEFT_ARM, "right"),
)
JOINTS: tuple[str, ...] = tuple(link.name for link in LINKS)


def add_robot(spec: mujoco.MjSpec) -> None:
    """Add the robot to a scene: bodies ``pelvis`` and ``LINKS``, their hinges, actuators, sites and shapes.

    The free base is the joint ``free_base``; it must be the scene's first joint, so that the robot leads qpos.
    """
    hulls = json.loads(resources.files(__package__).joinpath("hulls.json").read_text())
    pelvis = spec.worldbody.add_body(
        name="pelvis",
        pos=STANDING_BASE[:3],
        explicitinertial=True,
        mass=PELVIS_MASS,
        ipos=PELVIS_COM,
        iquat=PELVIS_INERTIA_QUAT,
        inertia=PELVIS_INERTIA,
    )
    pelvis.add_freejoint(name="free_base")
    bodies = {"pelvis": pelvis}
    for link in LINKS:
        body = bodies[link.name] = bodies[link.parent].add_body(
            name=link.name,
            pos=link.pos,
            quat=link.quat,
            explicitinertial=True,
            mass=link.mass,
            ipos=link.center_of_mass,
            iquat=link.inertia_quat,
            inertia=link.inertia,
        )
        body.add_joint(
            name=link.name, axis=link.axis, range=link.limits, damping=JOINT_DAMPING, armature=JOINT_ARMATURE
        )
        actuator = spec.add_actuator(name=link.name, target=link.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        actuator.set_to_position(kp=link.stiffness, kv=link.damping)
        actuator.ctrlrange = link.limits
        actuator.forcerange = (-link.max_torque, link.max_torque)
    for name, link_name, pos in SITES:
        bodies[link_name].add_site(name=name, pos=pos, group=SITE_GROUP)
    for name, body in bodies.items():
        _add_shape(spec, body, name, hulls["collision"])
    for name, vertices in hulls["torso_parts"].items():
        _add_mesh(spec, name, vertices)
        bodies["torso"].add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=name,
            material=_material(name),
            group=VISUAL_GROUP,
            contype=0,
            conaffinity=0,
            mass=0,
        )


def _add_shape(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, hulls: dict[str, list[Vector]]) -> None:
    """Add what a link collides with; it has no mass, because the link's inertia is given."""
    link = name.removeprefix("left_").removeprefix("right_")
    geom = body.add_geom(material=_material(link), group=VISUAL_GROUP, mass=0)
    if link == "hip_yaw":
        geom.type = mujoco.mjtGeom.mjGEOM_CYLINDER
        geom.size, geom.pos, geom.quat = HIP_YAW_SIZE, HIP_YAW_POS, HIP_YAW_QUAT
        return
    _add_mesh(spec, name, hulls[link], mirrored=name.startswith("right_"))
    geom.type, geom.meshname = mujoco.mjtGeom.mjGEOM_MESH, name
    if link == "torso":  # its hull fills the gap between chest and head: the parts are drawn instead
        geom.group = COLLISION_GROUP


def _add_mesh(spec: mujoco.MjSpec, name: str, vertices: list[Vector], mirrored: bool = False) -> None:
    points = np.array(vertices) * (1, -1 if mirrored else 1, 1)
    spec.add_mesh(name=name, uservert=points.ravel(), inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX)


def _material(part: str) -> str:
    """Return the material a part is drawn with: joints dark, limbs and chest light."""
    return "shell" if part in ("chest", "hip_pitch", "knee", "shoulder_yaw", "elbow") else "joint"
