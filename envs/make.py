"""From an environment name to one Gymnasium environment in the form every agent of ours expects."""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, RepeatAction, TransformAction
from gymnasium.wrappers.utils import rescale_box

from common.games import NAMESPACE, find_game, game_names
from envs.errors import EnvError
from envs.official import PREFIX, resolve_official
from envs.rendering import select_gl_backend


def resolve_env_id(env_id: str) -> str:
    """Return the registered id that ``env_id`` stands for.

    ``h1-walk`` is short for ``h1-walk-v0``; ``humanoid_bench:h1-walk-v0`` is the official package's environment;
    ``BeamRider`` and ``beam_rider`` are ``ALE/BeamRider-v5``; ``module:Id-v0`` is Gymnasium's spelling for an id that
    a module registers. Nothing is imported here, as the name may come from a file of someone else: see
    ``import_module_of``.

    Raises:
        EnvError: the name is not registered, and the message lists the nearest names that are; or its module is not
            imported.
    """
    if env_id.startswith(PREFIX):
        return resolve_official(env_id)
    module, colon, name = env_id.rpartition(":")
    if colon:
        if module not in sys.modules:
            raise EnvError(
                f"{env_id}: the module {module!r} is not imported just because a file names it; to run its code, give "
                f"train.py --env {env_id}, or evaluate.py --allow-import, or import it first (Python)"
            )
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


def import_module_of(env_id: str) -> None:
    """Run the code of the module that ``module:Id-v0`` names, so that ``resolve_env_id`` knows the id.

    Only for an id that the user has typed, or allowed: one that a file names may be someone else's.

    Raises:
        EnvError: the module cannot be imported.
    """
    module, colon, _ = env_id.rpartition(":")
    if not colon or env_id.startswith(PREFIX):
        return
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever its own code raises
        raise EnvError(
            f"{env_id}: cannot import the module {module!r}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


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
    if render_mode is not None and any(
        word in str(gym.spec(resolved).entry_point) for word in ("mujoco", "official")
    ):
        select_gl_backend()  # Gymnasium's own choice needs a display
    try:
        # Without a mode the argument is left out: an environment need not know it.
        rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        env: gym.Env = gym.make(resolved, disable_env_checker=True, **rendering)
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
    has = f"{env_id} has the action space {' '.join(str(space).split())}"
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise EnvError(f"{has}; only Discrete and real Box are supported")
    if not space.shape or 0 in space.shape:
        raise EnvError(f"{has}; only shapes of one axis or more that hold a number are supported")
    with np.errstate(over="ignore"):  # the largest floats stand for no bounds, too
        if not np.isfinite(space.high - space.low).all():
            raise EnvError(f"{has}, which has no bounds to map [-1, 1] to")
    if len(space.shape) == 1 and np.all(space.low == -1) and np.all(space.high == 1):
        return env
    return _rescaled_action(env, space)


def _rescaled_action(env: gym.Env, space: spaces.Box) -> gym.Env:
    """Map a vector in [-1, 1] to a bounded Box of any shape; where both bounds are one number, that is the action."""
    free = space.low < space.high
    # Gymnasium's arithmetic to the last digit: saved actions are played back through it.
    _, _, from_unit = rescale_box(
        spaces.Box(space.low[free], space.high[free], dtype=space.dtype.type), np.float32(-1), np.float32(1)
    )

    def to_space(action: np.ndarray) -> np.ndarray:
        mapped = space.low.copy()
        mapped[free] = from_unit(action.reshape(space.shape)[free])
        return np.minimum(np.maximum(mapped, space.low), space.high)  # rounding can lead out of the bounds

    return TransformAction(env, to_space, spaces.Box(-1, 1, (space.low.size,), space.dtype.type))


def _standard_observation(env: gym.Env, env_id: str) -> gym.Env:
    space = env.observation_space
    has = f"{env_id} has the observation space {' '.join(str(space).split())}"
    if any(isinstance(leaf, spaces.Box) and _is_image(leaf) for leaf in _leaves(space)):
        raise EnvError(
            f"{env_id} has image observations, which are supported for Atari games by name only, such as Asterix"
        )
    if not space.is_np_flattenable:
        raise EnvError(f"{has}, which cannot be flattened to a vector")
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        env = FlattenObservation(env)
    if env.observation_space.shape == (0,):
        raise EnvError(f"{has}, which holds no number")
    return env


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
