"""From an environment's id to the ``Backend`` that steps it, tasks that change included."""

from __future__ import annotations

import contextlib
import functools

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from common.games import find_game
from common.seeding import stream_seed
from configs.schema import AtariConfig
from envs.backend import Backend
from envs.change import STANDARD, ChangingBackend, Standard, Tasks, require_flat
from envs.errors import EnvError
from envs.gymnasium_backend import GymnasiumBackend
from envs.ids import resolve_env_id


def make_backend(
    env_id: str, num_runs: int, num_envs: int, action_repeat: int, render_mode: str | None, atari: AtariConfig
) -> Backend:
    """Build the environments of all runs in one backend; ``env_id`` is registered.

    Raises:
        EnvError: missing dependency, unsupported spaces.
    """
    num_rows = num_runs * num_envs
    # The emulator and MuJoCo are imported for those who need them only.
    if game := find_game(env_id):
        from envs.atari import AtariBackend

        return AtariBackend(game, num_rows, action_repeat, atari, render_mode is not None)
    if gym.spec(env_id).vector_entry_point == "envs.humanoid.vector:HumanoidVectorEnv":
        from envs.humanoid.backend import HumanoidBackend

        # A run of a single environment computes its rewards on plain numbers; beside others it must do the same.
        return HumanoidBackend(env_id, num_rows, action_repeat, render_mode, scalar_rewards=num_envs == 1)
    return GymnasiumBackend(env_id, num_rows, action_repeat, render_mode)


def make_changing_backend(
    env_id: str,
    tasks: Tasks,
    num_runs: int,
    num_envs: int,
    action_repeat: int,
    render_mode: str | None,
    atari: AtariConfig,
) -> ChangingBackend:
    """Build the environments of all runs with ``tasks``, which hold a seed for each run.

    Raises:
        EnvError: as ``make_backend`` and ``ChangingBackend``.
    """
    options, standards = tasks.options, []
    names = [resolve_env_id(each) for each in options.ids] if options.kind == "sequence" else [env_id]
    parts = (num_runs, num_envs, action_repeat, render_mode, atari)
    backends = [make_backend(name, *parts) for name in names]
    try:
        if options.kind in ("rotate", "drift"):
            require_flat(env_id, backends[0])
            standards = [
                random_play_standard(env_id, action_repeat, options.standardize_steps, seed)
                for seed in tasks.seeds
                if options.standardize_steps
            ]
        return ChangingBackend(backends, names, options, tasks.seeds, num_envs, standards)
    except EnvError:
        for backend in backends:
            backend.close()
        raise


@functools.lru_cache(maxsize=64)  # the environments that evaluate need the same
def random_play_standard(env_id: str, action_repeat: int, steps: int, seed: int) -> Standard:
    """Return what observations are standardised by: their figures in ``steps`` env steps of uniformly random play.

    Args:
        env_id: registered, with flat observations.
        action_repeat: frames for which an action is held.
        steps: at least 1.
        seed: of the run, whose stream ``change`` decides on actions and episodes.
    """
    generator = np.random.default_rng(stream_seed(seed, "change", STANDARD))
    with contextlib.closing(make_backend(env_id, 1, 1, action_repeat, None, AtariConfig())) as backend:
        seen = [backend.start([int(generator.integers(2**32))])]
        space = backend.action_space
        for _ in range(steps):
            if isinstance(space, spaces.Discrete):
                action = generator.integers(space.n, size=1)
            else:
                action = generator.uniform(-1, 1, (1, *space.shape)).astype(space.dtype)
            reached = backend.step(action)
            seen.append(reached.next_obs)
            if reached.over[0]:
                seen.append(backend.restart(np.zeros(1, np.int64), [int(generator.integers(2**32))]))
    return Standard.of(np.concatenate(seen))
