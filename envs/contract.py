"""Gymnasium's contract, held against environments of all ages: what breaks it is one line, not a traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.errors import EnvError

_RESET = "reset(seed=..., options=...) must return (observation, info)"
_STEP = "step(action) must return (observation, reward, terminated, truncated, info)"
_RENDER = "render() must return a picture, (height, width, 3) uint8"
_NUMBERS = "biuf"  # NumPy's kinds of dtype


def construct(env_id: str, build: Callable[[], gym.Env]) -> gym.Env:
    """Return what ``build`` makes, an environment with both spaces.

    Raises:
        EnvError: building it failed, for whatever reason, or a space is missing.
    """
    try:
        env = build()
    except Exception as error:  # whatever its own code raises
        raise EnvError(f"cannot build {env_id}: {_said(error)}") from error
    for name in ("observation_space", "action_space"):
        space = getattr(env, name, None)
        if not isinstance(space, spaces.Space):
            raise EnvError(
                f"{env_id}: {name} must be a space of gymnasium, got {type(space).__name__}"
                if space is not None
                else f"{env_id} has no {name}; Gymnasium's environments set one in __init__"
            )
    return env


class ContractEnv(gym.Wrapper):
    """The environment with observations as vectors; what breaks Gymnasium's contract raises EnvError.

    Args:
        env: with observations that can be flattened.
        env_id: for messages.
    """

    def __init__(self, env: gym.Env, env_id: str) -> None:
        super().__init__(env)
        self._env_id = env_id
        self._declared = env.observation_space
        flat = spaces.flatten_space(env.observation_space)
        assert isinstance(flat, spaces.Box)
        self._is_vector = isinstance(self._declared, spaces.Box) and len(self._declared.shape) == 1
        self.observation_space = self._declared if self._is_vector else flat
        self._obs_shape = flat.shape

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset; see ``gymnasium.Env.reset``."""
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._broken("reset", error, _RESET) from error
        return self._vector(obs, "reset", _RESET), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Step; see ``gymnasium.Env.step``."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise self._broken("step", error, _STEP) from error
        obs = self._vector(obs, "step", _STEP)
        if type(reward) is not float and not _is_number(reward):
            raise EnvError(f"{self._env_id}: the reward must be one number, step returned {_shown(reward)}")
        for name, end in (("terminated", terminated), ("truncated", truncated)):
            if type(end) is not bool and not (_is_number(end) and end in (0, 1)):
                raise EnvError(f"{self._env_id}: {name} must be true or false, step returned {_shown(end)}")
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return a picture; see ``gymnasium.Env.render``."""
        try:
            picture = self.env.render()
        except Exception as error:
            raise self._broken("render", error, _RENDER) from error
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise EnvError(f"{self._env_id}: {_RENDER}, it returned {_shown(picture)}")
        return picture

    def _vector(self, obs: Any, called: str, contract: str) -> np.ndarray:
        try:
            vector = np.asarray(obs if self._is_vector else spaces.flatten(self._declared, obs))
            fits = vector.shape == self._obs_shape and vector.dtype.kind in _NUMBERS
        except Exception:  # whatever flattening or joining unlike parts raises
            fits = False
        if not fits:
            raise EnvError(
                f"{self._env_id}: {contract}, the observation as its space {_short(self._declared)} declares; "
                f"{called} returned {_shown(obs)}"
            )
        return vector

    def _broken(self, called: str, error: Exception, contract: str) -> EnvError:
        if isinstance(error, EnvError):
            return error
        return EnvError(f"{self._env_id}: {called} failed: {_said(error)}; {contract}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_) or (
        isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in _NUMBERS
    )


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return f"{type(value).__name__} {_short(value)}"


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:80]


def _said(error: Exception) -> str:
    """Return an error in one line, with the place where the program would have stopped."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    said = " ".join(str(error).split())
    if isinstance(error, gym.error.Error | ImportError):  # sentences for the user already
        return said
    return f"{type(error).__name__}: {said}{where}" if said else f"{type(error).__name__}{where}"
