"""From an environment name to one Gymnasium environment in the form every agent of ours expects."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, RepeatAction, RescaleAction, TransformAction

from common.games import NAMESPACE, find_game, game_names
from envs.errors import EnvError
from envs.official import PREFIX, resolve_official
from envs.rendering import select_gl_backend


def resolve_env_id(env_id: str) -> str:
    """Return the registered id that ``env_id`` stands for.

    ``h1-walk`` is short for ``h1-walk-v0``; ``humanoid_bench:h1-walk-v0`` is the official package's environment;
    ``BeamRider`` and ``beam_rider`` are ``ALE/BeamRider-v5``; ``module:Id-v0``, Gymnasium's spelling, imports
    the module that registers ``Id-v0``.

    Raises:
        EnvError: the name is not registered; the message lists the nearest names that are.
    """
    if env_id.startswith(PREFIX):
        return resolve_official(env_id)
    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise EnvError(f"{env_id}: cannot import the module {module!r}: {error}") from error
        env_id = name
    for candidate in (env_id, f"{env_id}-v0" if env_id.startswith("h1-") else env_id):
        if candidate in gym.registry and not _is_atari(candidate):
            return candidate
    if game := find_game(env_id):
        return f"{NAMESPACE}{game_names()[game]}-v5"
    short_names = [name.removesuffix("-v0") for name in gym.registry if name.startswith("h1-")]
    names = [*short_names, *game_names().values()]
    names += [name for name in gym.registry if not _is_atari(name)]
    # Older ids, such as BreakoutNoFrameskip-v4, name a game and half of a protocol.
    wanted = re.sub(r"(-ram)?(NoFrameskip|Deterministic)?-v[04]$", "", env_id)
    if env_id.upper().startswith(NAMESPACE):
        wanted = re.sub(r"(-ram)?(-v\d+)?$", "", wanted[len(NAMESPACE) :])
    by_lower_case = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), by_lower_case, n=5, cutoff=0.4)
    nearest = [by_lower_case[name] for name in close]
    hint = f"nearest names: {', '.join(nearest)}" if nearest else "see gymnasium.pprint_registry()"
    raise EnvError(f"unknown environment {env_id!r}; {hint}")


def _is_atari(registered: str) -> bool:
    return str(gym.spec(registered).entry_point).startswith("ale_py")


def make_env(env_id: str, action_repeat: int = 1, render_mode: str | None = None) -> gym.Env:
    """Build one environment with a 1-D Box observation and Box(-1, 1) or Discrete(n) actions.

    From the inside out: the environment with its time limit (which therefore counts raw frames), the action
    repeated ``action_repeat`` times with the rewards summed (less often where the episode ends), the action
    space brought to standard form, the observation flattened.

    Raises:
        EnvError: unknown id, missing dependency, unsupported spaces.
    """
    resolved = resolve_env_id(env_id)
    if render_mode == "rgb_array":
        # Without it pygame, which draws the classic-control tasks, complains about a missing display.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    if rendering and any(word in str(gym.spec(resolved).entry_point) for word in ("mujoco", "official")):
        select_gl_backend()  # Gymnasium's own choice needs a display
    try:
        env = gym.make(resolved, disable_env_checker=True, **rendering)
    except (gym.error.Error, ImportError) as error:
        raise EnvError(f"cannot build {resolved}: {' '.join(str(error).split())}") from error
    try:
        if action_repeat != 1:
            env = RepeatAction(env, action_repeat)
        return _standard_observation(_standard_action(env, resolved), resolved)
    except EnvError:
        env.close()
        raise


def agent_steps(max_frames: int | None, action_repeat: int) -> int | None:
    """Return how many agent transitions fit into a limit of ``max_frames`` raw frames (None: no limit)."""
    return None if max_frames is None else math.ceil(max_frames / action_repeat)


def _standard_action(env: gym.Env, env_id: str) -> gym.Env:
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        if space.start == 0:
            return env
        return TransformAction(env, lambda action: action + space.start, spaces.Discrete(int(space.n)))
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise EnvError(f"{env_id} has the action space {space}; only Discrete and real Box are supported")
    if not space.is_bounded():
        raise EnvError(f"{env_id} has the action space {space}, which has no bounds to map [-1, 1] to")
    if np.all(space.low == -1) and np.all(space.high == 1):
        return env
    return RescaleAction(env, np.float32(-1), np.float32(1))


def _standard_observation(env: gym.Env, env_id: str) -> gym.Env:
    space = env.observation_space
    if any(isinstance(leaf, spaces.Box) and _is_image(leaf) for leaf in _leaves(space)):
        raise EnvError(
            f"{env_id} has image observations, which are supported for Atari games by name only, such as Asterix"
        )
    if not space.is_np_flattenable:
        raise EnvError(f"{env_id} has the observation space {space}, which cannot be flattened to a vector")
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return env
    return FlattenObservation(env)


def _is_image(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) >= 2


def _leaves(space: spaces.Space) -> Iterator[spaces.Space]:
    """Yield the parts of a nested Dict or Tuple space."""
    if isinstance(space, spaces.Dict):
        space = spaces.Tuple(tuple(space.spaces.values()))
    if isinstance(space, spaces.Tuple):
        for part in space.spaces:
            yield from _leaves(part)
    else:
        yield space
