"""Environments of all ages: built so that what fails there is one line, and the words for what breaks the contract."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.errors import EnvError

NUMBER_KINDS = "biuf"  # NumPy's kinds of dtype


def construct(env_id: str, build: Callable[[], gym.Env]) -> gym.Env:
    """Return what ``build`` makes, an environment with both spaces.

    Raises:
        EnvError: building it failed, for whatever reason, or a space is missing.
    """
    try:
        env = build()
    except Exception as error:  # whatever its own code raises
        raise EnvError(f"cannot build {env_id}: {said(error)}") from error
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            raise EnvError(
                f"{env_id}: {name} must be a space of gymnasium, got {type(space).__name__}"
                if space is not None
                else f"{env_id} has no {name}; Gymnasium's environments set one in __init__"
            )
    return env


def is_number(value: Any) -> bool:
    """Whether ``value`` is one number or truth value, of Python or of NumPy."""
    return isinstance(value, int | float | np.number | np.bool_) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in NUMBER_KINDS
    )


def shown(value: Any) -> str:
    """Describe a value in a message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"{type(value).__name__} {short(value)}"


def short(value: object) -> str:
    """Return the beginning of a value's text, in one line."""
    return " ".join(repr(value).split())[:80]


def said(error: Exception) -> str:
    """Return an error in one line, with the place where the program would have stopped."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split())
    if isinstance(error, gym.error.Error | ImportError):  # sentences for the user already
        return said
    return f"{type(error).__name__}: {said}{where}" if said else f"{type(error).__name__}{where}"
