"""The adapter to the official package: what it says without it, and what it does with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from envs import EnvError, make_vec, success_score
from envs.humanoid.simulation import scene
from envs.humanoid.tasks import TASKS
from envs.official import resolve_official


def moving_bodies(model: mujoco.MjModel) -> list[tuple[float, ...]]:
    """Return mass, principal inertias and centre of mass of every body with joints of its own, sorted."""
    moving = [body for body in range(model.nbody) if model.body_dofnum[body] > 0]
    return sorted(
        tuple(
            np.round([model.body_mass[b], *np.sort(model.body_inertia[b]), *model.body_ipos[b]], 9).tolist()
        )
        for b in moving
    )


def fixed_shapes(model: mujoco.MjModel) -> list[tuple[float, ...]]:
    """Return kind, place and size of everything fixed that collides, sorted."""
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    # How many numbers of a size count; a plane's are for drawing only.
    plane, cylinder, sphere = (
        getattr(mujoco.mjtGeom, f"mjGEOM_{n}") for n in ("PLANE", "CYLINDER", "SPHERE")
    )
    used = {int(plane): 0, int(cylinder): 2, int(sphere): 1}
    shapes = []
    for geom in np.flatnonzero((model.geom_contype > 0) & (model.body_weldid[model.geom_bodyid] == 0)):
        kind = int(model.geom_type[geom])
        size = model.geom_size[geom, : used.get(kind, 3)]
        shapes.append((kind, *np.round([*data.geom_xpos[geom], *size], 6).tolist()))
    return sorted(shapes)


FIELDS = ("jnt_range", "jnt_axis", "jnt_stiffness", "dof_damping", "dof_armature", "eq_data")
FIELDS += ("actuator_gainprm", "actuator_biasprm", "actuator_ctrlrange", "actuator_forcerange")
installed = importlib.util.find_spec("humanoid_bench") is not None


@pytest.mark.skipif(installed, reason="needs a machine without the package")
def test_says_what_is_missing_and_names_the_native_id():
    with pytest.raises(
        EnvError, match=r"not installed; the native id is 'h1-walk-v0'; to install it: git clone"
    ):
        make_vec("humanoid_bench:h1-walk-v0")
    with pytest.raises(EnvError, match=r"not installed; to install it"):
        make_vec("humanoid_bench:h1hand-walk-v0")


@pytest.mark.humanoid
@pytest.mark.skipif(not installed, reason="needs the official humanoid_bench package")
class TestWithThePackage:
    @pytest.mark.parametrize("task", ["walk", "stand", "run", "hurdle", "stair", "maze", "pole"])
    def test_same_numbers_while_on_the_feet(self, task):
        """Reset noise included. Later, links touch each other, and their simplified hulls make a difference."""
        official = make_vec(f"humanoid_bench:h1-{task}-v0", 4)
        native = make_vec(f"h1-{task}-v0", 4)
        assert official.max_episode_steps == native.max_episode_steps
        assert success_score(official.env_id) == success_score(native.env_id)
        np.testing.assert_array_equal(official.reset(seeds=0), native.reset(seed=0))
        for _ in range(4):
            action = native.random_action()
            expected, got = official.step(action), native.step(action)
            np.testing.assert_allclose(got.next_obs, expected.next_obs, rtol=0, atol=1e-4)
            np.testing.assert_allclose(got.reward, expected.reward, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("task", TASKS)
    def test_scenes_are_the_same(self, task):
        """Masses, inertias, joints, actuators, ties and what stands around; all but the robot's hulls."""
        official = gym.make(resolve_official(f"humanoid_bench:h1-{task}-v0")).unwrapped.model
        native = scene(task).model
        np.testing.assert_array_equal(native.jnt_type, official.jnt_type)
        for field in FIELDS:
            np.testing.assert_allclose(
                getattr(native, field), getattr(official, field), atol=1e-12, err_msg=field
            )
        np.testing.assert_allclose(scene(task).initial_qpos, official.key_qpos[0])
        assert moving_bodies(native) == moving_bodies(official)
        assert fixed_shapes(native) == fixed_shapes(official)

    def test_native_ids_stay_native(self):
        make_vec("humanoid_bench:h1-walk-v0")
        assert gym.spec("h1-walk-v0").entry_point == "envs.humanoid.env:HumanoidEnv"

    @pytest.mark.parametrize("task", ["reach", "sit_hard"])
    def test_seeds_decide_randomised_tasks(self, task):
        first, again, other = (make_vec(f"humanoid_bench:h1-{task}-v0") for _ in range(3))
        np.testing.assert_array_equal(first.reset(seeds=1), again.reset(seed=1))
        assert (first.reset(seeds=1) != other.reset(seed=2)).any()

    def test_restores(self):
        env, other = (make_vec("humanoid_bench:h1-walk-v0") for _ in range(2))
        env.reset(seeds=0)
        for _ in range(20):
            env.step(env.random_action())
        other.load_state_dict(env.state_dict())
        for _ in range(10):
            action = env.random_action()
            np.testing.assert_array_equal(env.step(action).obs, other.step(action).obs)

    def test_renders(self):
        env = make_vec("humanoid_bench:h1-walk-v0", render_mode="rgb_array")
        env.reset(seeds=0)
        assert env.render().std() > 5
        env.close()

    def test_hands(self):
        folder = Path(importlib.util.find_spec("humanoid_bench").origin).parent
        if not (folder / "assets" / "shadow_hand_submodel").is_dir():
            pytest.skip("needs a clone with the hands' meshes")
        env = make_vec("humanoid_bench:h1hand-push-v0", 2, action_repeat=2)
        assert (env.observation_space.shape, env.action_space.shape) == ((163,), (61,))
        assert env.max_episode_steps == 250
        env.reset(seeds=0)
        for _ in range(3):
            step = env.step(env.random_action())
        assert np.isfinite(step.next_obs).all() and not step.terminated.any()

    def test_missing_file_is_one_line(self):
        # The original registers it, but does not hold its model.
        with pytest.raises(
            EnvError, match=r"cannot build h1simplehand-walk: .*h1simplehand_pos_walk.xml"
        ) as caught:
            make_vec("humanoid_bench:h1simplehand-walk-v0")
        assert "\n" not in str(caught.value)

    def test_unknown_task(self):
        with pytest.raises(EnvError, match="has no environment 'h1-wlak-v0'"):
            make_vec("humanoid_bench:h1-wlak-v0")
