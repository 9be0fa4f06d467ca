"""From the names of environments that people type to the ids under which Gymnasium registers them."""

from __future__ import annotations

import difflib
import importlib
import re
import sys

import gymnasium as gym

from common.games import NAMESPACE, find_game, game_names
from envs.errors import EnvError
from envs.official import PREFIX, resolve_official


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
