"""The H1's own look, for users who have MuJoCo Menagerie (github.com/google-deepmind/mujoco_menagerie) on their disk.

Its meshes are drawn, never simulated: pictures come from a second model, into which a simulation's positions are
copied. None of its files is part of this suite.
"""

from __future__ import annotations

import os
from pathlib import Path

import mujoco

from envs.errors import EnvError
from envs.humanoid.robot import COLLISION_GROUP, LINKS, VISUAL_GROUP

VARIABLE = "MUJOCO_MENAGERIE_PATH"
FOLDER = Path("unitree_h1", "assets")
# By link: the meshes that show it, and what they are made of.
MESHES = {"pelvis": {"pelvis": "joint"}} | {link.name: {f"{link.name}_link": "joint"} for link in LINKS}
MESHES["torso"]["logo_link"] = "shell"


def find_meshes(menagerie: str | Path | None) -> Path | None:
    """Return the folder with the H1's meshes, or None if no Menagerie is asked for.

    Args:
        menagerie: folder of a clone of Menagerie; None for the environment variable MUJOCO_MENAGERIE_PATH.

    Raises:
        EnvError: there is no such folder, or a mesh is missing from it.
    """
    menagerie = menagerie or os.environ.get(VARIABLE)
    if not menagerie:
        return None
    folder = Path(menagerie).expanduser() / FOLDER
    for mesh in (mesh for meshes in MESHES.values() for mesh in meshes):
        if not (folder / f"{mesh}.stl").is_file():
            raise EnvError(
                f"no mesh {folder / f'{mesh}.stl'}; {VARIABLE} must name a clone of "
                "github.com/google-deepmind/mujoco_menagerie"
            )
    return folder


def dress(spec: mujoco.MjSpec, folder: Path) -> None:
    """Show the robot of a scene by the meshes in ``folder`` instead of by what it collides with."""
    for link, meshes in MESHES.items():
        body = spec.body(link)
        for geom in body.geoms:
            geom.group = COLLISION_GROUP  # which renderers leave out
        for mesh, material in meshes.items():
            name = f"menagerie_{mesh}"
            # As a shell, because drawing does not need the mesh to be closed.
            inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
            spec.add_mesh(name=name, file=str((folder / f"{mesh}.stl").resolve()), inertia=inertia)
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_MESH,
                meshname=name,
                material=material,
                group=VISUAL_GROUP,
                contype=0,
                conaffinity=0,
                mass=0,
            )
