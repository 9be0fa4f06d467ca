"""Pictures with MuJoCo Menagerie's meshes; stand-ins generated here lie where Menagerie has them."""

from __future__ import annotations

import struct
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import envs  # noqa: F401  (registers the environments)
from envs import EnvError, rendering
from envs.humanoid.menagerie import MESHES, dress, find_meshes
from envs.humanoid.robot import COLLISION_GROUP, VISUAL_GROUP
from envs.humanoid.simulation import new_spec, scene

NAMES = [mesh for meshes in MESHES.values() for mesh in meshes]


@pytest.fixture
def menagerie(tmp_path: Path) -> Path:
    """Return a folder with a small tetrahedron, as binary STL, for every mesh of Menagerie's H1."""
    folder = tmp_path / "unitree_h1" / "assets"
    folder.mkdir(parents=True)
    corners = 0.1 * np.array(((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)))
    content = bytes(80) + struct.pack("<I", 4)
    for face in ((0, 2, 1), (0, 1, 3), (0, 3, 2), (1, 2, 3)):
        content += struct.pack("<12fH", 0, 0, 0, *corners[list(face)].ravel(), 0)
    for name in NAMES:
        (folder / f"{name}.stl").write_bytes(content)
    return tmp_path


def test_meshes_are_those_of_menagerie():
    # The files of unitree_h1/assets: pelvis, logo, and a mesh for each of the 19 links.
    assert len(NAMES) == len(set(NAMES)) == 21
    assert {"pelvis", "logo_link", "torso_link", "left_ankle_link", "right_shoulder_yaw_link"} < set(NAMES)


def test_dressing_shows_meshes_and_hides_hulls(menagerie):
    spec = new_spec(scene("balance_hard").task)
    dress(spec, find_meshes(menagerie))
    model, plain = spec.compile(), scene("balance_hard").model
    seen = [
        model.mesh(model.geom_dataid[geom]).name
        for geom in np.flatnonzero(model.geom_group < COLLISION_GROUP)
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH
    ]
    assert sorted(seen) == sorted(f"menagerie_{name}" for name in NAMES)
    assert (model.nq, model.nmocap) == (plain.nq, plain.nmocap), "poses can be copied over"
    for name in ("board", "sphere"):  # the scenery is still to be seen
        assert model.geom_group[model.body(name).geomadr[0]] < VISUAL_GROUP


def test_physics_is_untouched(menagerie):
    if not can_render():
        pytest.skip("neither EGL nor OSMesa on this machine")
    plain, dressed = (
        gym.make("h1-walk-v0", render_mode="rgb_array", menagerie=folder, width=160, height=120)
        for folder in (None, menagerie)
    )
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(plain.reset(seed=0)[0], dressed.reset(seed=0)[0])
    for index in range(25):
        action = generator.uniform(-1, 1, 19).astype(np.float32)
        first, second = plain.step(action), dressed.step(action)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:] == second[1:]
        if index % 8:  # drawing is what takes the time
            continue
        pictures = [env.render().astype(int) for env in (plain, dressed)]
        assert np.abs(pictures[0] - pictures[1]).max() > 100, "another robot is drawn"
        np.testing.assert_array_equal(*(picture[:15] for picture in pictures))  # from the same place
    plain.close()
    dressed.close()


def test_variable_names_the_folder(menagerie, monkeypatch):
    assert find_meshes(None) is None
    monkeypatch.setenv("MUJOCO_MENAGERIE_PATH", str(menagerie))
    assert find_meshes(None) == menagerie / "unitree_h1" / "assets"
    (menagerie / "unitree_h1" / "assets" / "left_knee_link.stl").unlink()
    with pytest.raises(EnvError, match=r"no mesh .*left_knee_link.stl; MUJOCO_MENAGERIE_PATH must name"):
        find_meshes(None)


def can_render() -> bool:
    try:
        rendering.select_gl_backend()
    except EnvError:
        return False
    return True
