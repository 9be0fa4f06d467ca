"""Parts that tasks build their scenes from."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco

BOX, CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
SPHERE, MESH = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_MESH

Part = tuple[mujoco.mjtObj, str]  # what a contact sensor watches: kind and name
ROBOT: Part = (mujoco.mjtObj.mjOBJ_XBODY, "pelvis")  # with everything that hangs from it
FLOOR: Part = (mujoco.mjtObj.mjOBJ_GEOM, "floor")
NOTHING: Part = (mujoco.mjtObj.mjOBJ_UNKNOWN, "")  # as the second part: whatever the first one touches

# Walls stand between the camera and the robot: they are drawn as glass.
GLASS = (0.55, 0.60, 0.65, 0.25)


def body_part(name: str) -> Part:
    """Return the part that is one body's own shapes."""
    return (mujoco.mjtObj.mjOBJ_BODY, name)


def add_shape(
    body: mujoco.MjsBody,
    kind: mujoco.mjtGeom,
    pos: Sequence[float],
    size: Sequence[float],
    rgba: Sequence[float] | None = None,
    **more: object,
) -> None:
    """Add something to collide with and to see; ``size`` holds half lengths or a radius (and half length), m."""
    looks = {"material": "scenery"} if rgba is None else {"rgba": rgba}
    body.add_geom(type=kind, pos=pos, size=[*size, 0, 0][:3], **looks, **more)


def add_contact_sensor(spec: mujoco.MjSpec, name: str, first: Part, second: Part = NOTHING) -> None:
    """Add a sensor that counts the contacts between two parts."""
    spec.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=first[0],
        objname=first[1],
        reftype=second[0],
        refname=second[1],
        intprm=[1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND), 0, 1],
    )


def add_position_sensor(spec: mujoco.MjSpec, name: str, kind: mujoco.mjtObj, of: str) -> None:
    """Add a sensor of the position, (3,), of a site or (as ``mjOBJ_XBODY``) a body."""
    spec.add_sensor(name=name, type=mujoco.mjtSensor.mjSENS_FRAMEPOS, objtype=kind, objname=of)


def add_hand_sensors(spec: mujoco.MjSpec, *sides: str) -> None:
    """Add the sensors ``<side>_hand_position``."""
    for side in sides:
        add_position_sensor(spec, f"{side}_hand_position", mujoco.mjtObj.mjOBJ_SITE, f"{side}_hand")
