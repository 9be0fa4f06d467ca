"""Any Gymnasium environment as a ``Backend``, saved as the actions since the last reset and played back from them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RepeatAction, TransformAction
from gymnasium.wrappers.utils import rescale_box

from envs.backend import Transition, agent_steps
from envs.contract import NUMBER_KINDS, construct, is_number, said, short, shown
from envs.errors import EnvError
from envs.ids import resolve_env_id
from envs.physics import nominal_of, quantities_of, scale_env
from envs.rendering import select_gl_backend

_RESET = "reset(seed=..., options=...) must return (observation, info)"
_STEP = "step(action) must return (observation, reward, terminated, truncated, info)"
_RENDER = "render() must return a picture, (height, width, 3) uint8"


class GymnasiumBackend:
    """``Backend`` of copies of one registered environment, stepped one after the other in this thread.

    Args:
        env_id: registered id.
        num_rows: copies.
        action_repeat: frames for which an action is held.
        render_mode: of row 0; a renderer for each of the others would cost a GL context.

    Raises:
        EnvError: as ``make_env``.
    """

    def __init__(self, env_id: str, num_rows: int, action_repeat: int, render_mode: str | None) -> None:
        modes = [render_mode, *[None] * (num_rows - 1)]
        self._envs = [make_env(env_id, action_repeat, mode) for mode in modes]
        space = self._envs[0].action_space
        assert isinstance(space, spaces.Box | spaces.Discrete)
        self.action_space = space
        assert isinstance(self._envs[0].observation_space, spaces.Box)
        self.observation_space = self._envs[0].observation_space
        self.max_episode_steps = agent_steps(gym.spec(env_id).max_episode_steps, action_repeat)
        self.frames_per_second = _frames_per_second(self._envs[0])
        self.quantities = quantities_of(self._envs[0])
        self._nominal: list[Any] = []  # physics of each row as it was built; known once it is changed
        self._obs = np.zeros((num_rows, *self.observation_space.shape), self.observation_space.dtype)
        self._actions: list[
            np.ndarray
        ] = []  # (R, *action_shape) per step, since the oldest running episode began
        self._begun = np.zeros(
            num_rows, dtype=np.int64
        )  # position in ``_actions`` where each row's episode began

    def set_physics(self, factors: Sequence[Mapping[str, float]]) -> None:
        if not self._nominal:
            self._nominal = [nominal_of(env) for env in self._envs]
        for env, nominal, own in zip(self._envs, self._nominal, factors, strict=True):
            scale_env(env, nominal, own)

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self.restart(np.arange(len(self._envs)), seeds)

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        self._obs = self._obs.copy()
        for row, seed in zip(rows.tolist(), seeds, strict=True):
            self._obs[row], _ = self._envs[row].reset(seed=seed, options={})
        self._begun[rows] = len(self._actions)
        if oldest := int(self._begun.min()):
            del self._actions[:oldest]
            self._begun -= oldest
        return self._obs

    def step(self, actions: np.ndarray) -> Transition:
        self._actions.append(actions.copy())  # an environment may write to what it is given
        obs, reward = np.empty_like(self._obs), np.empty(len(self._envs))
        terminated, truncated = np.empty((2, len(self._envs)), dtype=np.bool_)
        for row, (env, action) in enumerate(zip(self._envs, actions, strict=True)):
            obs[row], reward[row], terminated[row], truncated[row], _ = env.step(action)
        self._obs = obs
        return Transition(obs, obs, reward, reward, terminated, truncated, terminated | truncated)

    def state_dict(self, rows: slice) -> dict[str, Any]:
        return {"actions": [self._since(row) for row in range(*rows.indices(len(self._envs)))]}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray:
        taken = [self._saved(actions) for state in states for actions in state["actions"]]
        self._actions = []
        self.start(seeds)
        for row, actions in enumerate(taken):
            for action in actions:
                self._obs[row] = self._envs[row].step(action.copy())[0]
        longest = max(map(len, taken))
        log = np.zeros((longest, len(taken), *self._action_shape), self.action_space.dtype)
        for row, actions in enumerate(taken):
            self._begun[row] = longest - len(actions)
            log[self._begun[row] :, row] = actions
        self._actions = list(log)
        return self._obs

    def render(self) -> np.ndarray:
        picture: Any = self._envs[0].render()
        return picture

    def close(self) -> None:
        for env in self._envs:
            env.close()

    @property
    def _action_shape(self) -> tuple[int, ...]:
        assert self.action_space.shape is not None
        return self.action_space.shape

    def _since(self, row: int) -> np.ndarray:
        """Return a row's actions in its present episode, (steps, *action_shape)."""
        return self._saved([actions[row] for actions in self._actions[self._begun[row] :]])

    def _saved(self, actions: Any) -> np.ndarray:
        return np.asarray(actions).astype(self.action_space.dtype).reshape(-1, *self._action_shape)


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
        if not isinstance(reward, float) and not is_number(reward):
            raise EnvError(f"{self._env_id}: the reward must be one number, step returned {shown(reward)}")
        for name, end in (("terminated", terminated), ("truncated", truncated)):
            if type(end) is not bool and not (is_number(end) and end in (0, 1)):
                raise EnvError(f"{self._env_id}: {name} must be true or false, step returned {shown(end)}")
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return a picture; see ``gymnasium.Env.render``."""
        try:
            picture = self.env.render()
        except Exception as error:
            raise self._broken("render", error, _RENDER) from error
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            raise EnvError(f"{self._env_id}: {_RENDER}, it returned {shown(picture)}")
        return picture

    def _vector(self, obs: Any, called: str, contract: str) -> np.ndarray:
        try:
            vector = np.asarray(obs if self._is_vector else spaces.flatten(self._declared, obs))
            fits = vector.shape == self._obs_shape and vector.dtype.kind in NUMBER_KINDS
        except Exception:  # whatever flattening or joining unlike parts raises
            fits = False
        if not fits:
            raise EnvError(
                f"{self._env_id}: {contract}, the observation as its space {short(self._declared)} declares; "
                f"{called} returned {shown(obs)}"
            )
        return vector

    def _broken(self, called: str, error: Exception, contract: str) -> EnvError:
        if isinstance(error, EnvError):
            return error
        return EnvError(f"{self._env_id}: {called} failed: {said(error)}; {contract}")


def make_env(env_id: str, action_repeat: int = 1, render_mode: str | None = None) -> gym.Env:
    """Build one environment with a 1-D Box observation and Box(-1, 1) or Discrete(n) actions.

    From the inside out: the environment with its time limit (which therefore counts raw frames), the observation
    flattened, the action repeated ``action_repeat`` times with the rewards summed (less often where the episode
    ends), the action space brought to standard form.

    Raises:
        EnvError: unknown id, missing dependency, unsupported spaces, a constructor that fails.
    """
    resolved = resolve_env_id(env_id)
    if render_mode == "rgb_array":
        # Without it pygame, which draws the classic-control tasks, complains about a missing display.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    if render_mode is not None and any(
        word in str(gym.spec(resolved).entry_point) for word in ("mujoco", "official")
    ):
        select_gl_backend()  # Gymnasium's own choice needs a display
    # Without a mode the argument is left out: an environment need not know it.
    rendering: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    env = construct(resolved, lambda: gym.make(resolved, disable_env_checker=True, **rendering))
    try:
        _require_vectors(env.observation_space, resolved)
        env = ContractEnv(env, resolved)
        if action_repeat != 1:
            env = RepeatAction(env, action_repeat)
        return _standard_action(env, resolved)
    except EnvError:
        env.close()
        raise


def _frames_per_second(env: gym.Env) -> float:
    """Return the rate that ``env`` declares; 30 where it declares none that is a number."""
    declared = env.metadata.get("render_fps", 30)
    return float(declared) if isinstance(declared, int | float) and declared > 0 else 30.0


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


def _require_vectors(space: spaces.Space, env_id: str) -> None:
    has = f"{env_id} has the observation space {' '.join(str(space).split())}"
    if any(isinstance(leaf, spaces.Box) and _is_image(leaf) for leaf in _leaves(space)):
        raise EnvError(
            f"{env_id} has image observations, which are supported for Atari games by name only, such as Asterix"
        )
    if not space.is_np_flattenable:
        raise EnvError(f"{has}, which cannot be flattened to a vector")
    if spaces.flatdim(space) == 0:
        raise EnvError(f"{has}, which holds no number")


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
