"""``VecEnv``: environments stepped together, and the one place that knows how Gymnasium ends an episode.

Every episode of every sub-environment is reset with its own seed, computed from (run seed, sub-environment,
episode number). Nothing but these counters has to be remembered to repeat an episode, which is what makes an
exact save possible for any environment that keeps Gymnasium's promise: same seed and actions, same episode.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from common.games import find_game
from configs.schema import AtariConfig, Config
from envs.errors import EnvError
from envs.humanoid.vector import HumanoidVectorEnv
from envs.make import agent_steps, make_env, resolve_env_id

# First word of numpy.random.SeedSequence's spawn_key: which consumer a stream belongs to.
_RESET_STREAM, _RANDOM_POLICY_STREAM = 0, 1


class Episode(NamedTuple):
    """A finished episode."""

    env_index: int
    episodic_return: float  # undiscounted sum of the rewards the environment returned
    length: int  # env_steps, that is agent transitions, not frames


class Step(NamedTuple):
    """One transition in each of the N sub-environments; all arrays have N rows and are the caller's.

    ``obs`` and ``next_obs`` are one and the same array where no episode ended.
    """

    obs: (
        np.ndarray
    )  # (N, *obs_shape) float32 or uint8: what to act on now, after a reset where the episode ended
    next_obs: (
        np.ndarray
    )  # (N, *obs_shape), likewise: where the action led, the true last observation included
    reward: (
        np.ndarray
    )  # (N,) float32 to learn from, summed over the repeated frames (Atari: clipped if so set)
    terminated: np.ndarray  # (N,) bool: the task ended, nothing follows (Atari with episodic_life: or a life)
    truncated: np.ndarray  # (N,) bool: only the clock ended; never true together with ``terminated``
    episodes: list[Episode]  # those that ended in this step, by rising env_index


class VecEnv:
    """N copies of one environment, stepped together and reset by themselves when an episode ends.

    Attributes:
        env_id: the registered id.
        num_envs: N.
        observation_space: of one sub-environment, Box float32; Atari: uint8 (4, 84, 84).
        action_space: of one sub-environment, Box(-1, 1) float32 or Discrete(n) counted from 0.
        action_repeat: frames per agent transition.
        max_episode_steps: time limit in agent transitions, or None.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        action_repeat: int = 1,
        render_mode: str | None = None,
        atari: AtariConfig | None = None,
    ) -> None:
        """Build the environments; see ``make_vec`` for the arguments and errors."""
        for name, count in (("num_envs", num_envs), ("action_repeat", action_repeat)):
            if count < 1:
                raise EnvError(f"{name} must be at least 1, got {count}")
        self.env_id = resolve_env_id(env_id)
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        atari = atari or AtariConfig()
        game = find_game(self.env_id)
        max_frames = atari.max_frames if game else gym.spec(self.env_id).max_episode_steps
        self.max_episode_steps = agent_steps(max_frames, action_repeat)
        if game:
            from envs.atari import AtariVector  # imports the emulator, which other environments do not need

            self._vector = AtariVector(game, num_envs, action_repeat, atari, render_mode is not None)
        else:
            self._vector = _native_vector(self.env_id, num_envs, action_repeat, render_mode)
        self._is_game = game is not None
        self._is_native = self._vector is not None
        if self._vector is None:
            # Only sub-environment 0 is ever drawn; a renderer for each of the others would cost a GL context.
            modes = [render_mode, *[None] * (num_envs - 1)]
            self._vector = SyncVectorEnv(
                [lambda mode=mode: make_env(self.env_id, action_repeat, mode) for mode in modes],
                copy=False,
                autoreset_mode=AutoresetMode.DISABLED,
            )
        space = self._vector.single_observation_space
        self._obs_dtype = np.uint8 if self._is_game else np.float32
        with np.errstate(over="ignore"):  # a float64 bound beyond float32 is no bound: infinity
            low, high = space.low.astype(self._obs_dtype), space.high.astype(self._obs_dtype)
            self.observation_space = spaces.Box(low, high, dtype=self._obs_dtype)
        self.action_space = self._vector.single_action_space
        self._discrete = isinstance(self.action_space, spaces.Discrete)
        self._render_mode = render_mode
        self._seed: int | None = None

    def reset(self, seed: int) -> np.ndarray:
        """Start a first episode everywhere and forget all earlier ones; return (N, *obs_shape).

        Args:
            seed: non-negative; decides every later reset and every ``random_action``.
        """
        self._seed = seed
        self._random_draws = 0
        self._episode = np.zeros(self.num_envs, dtype=np.int64)
        self._episode_return = np.zeros(self.num_envs, dtype=np.float64)
        self._length = np.zeros(self.num_envs, dtype=np.int64)
        self._actions: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]
        if self._is_game:
            self._vector.forget()
        self._obs = self._reset_where(np.ones(self.num_envs, dtype=np.bool_))
        return self._obs.copy()

    def step(self, actions: np.ndarray) -> Step:
        """Take one agent transition everywhere.

        Args:
            actions: (N, *action_shape) real numbers, clipped to [-1, 1]; or (N,) integers below n.

        Raises:
            ValueError: wrong shape or type, a NaN, an action outside a Discrete space.
            RuntimeError: no ``reset`` or ``load_state_dict`` came before.
        """
        self._require_reset()
        actions = self._checked(actions)
        reached, reward, terminated, truncated, infos = self._vector.step(actions)
        next_obs = np.array(reached, dtype=self._obs_dtype)
        truncated = truncated & ~terminated
        self._episode_return += reward
        self._length += 1
        if not self._is_native:
            for index in range(self.num_envs):
                self._actions[index].append(actions[index])

        ended = terminated | truncated
        over = infos.get("game_over", ended)
        episodes = []
        if ended.any():
            for index in np.flatnonzero(over).tolist():
                length = int(self._length[index])
                episodes.append(Episode(index, float(self._episode_return[index]), length))
                self._actions[index] = []
            self._episode_return[over] = 0.0
            self._length[over] = 0
            self._episode += over
            where = ended.reshape(-1, *[1] * (next_obs.ndim - 1))
            self._obs = np.where(where, self._reset_where(over), next_obs)
            obs = self._obs.copy()
        else:
            # Games hand out a new array at every step, too large to be copied without need.
            self._obs = reached if self._is_game else next_obs.copy()
            obs = next_obs
        reward = infos.get("learner_reward", reward).astype(np.float32)
        return Step(obs, next_obs, reward, terminated, truncated, episodes)

    def running_episodes(self) -> list[Episode]:
        """Return the episodes under way with return and length so far, those not yet begun left out."""
        self._require_reset()
        so_far = zip(self._episode_return.tolist(), self._length.tolist(), strict=True)
        return [
            Episode(i, episodic_return, length)
            for i, (episodic_return, length) in enumerate(so_far)
            if length
        ]

    def random_action(self) -> np.ndarray:
        """Draw uniform actions, (N, *action_shape) float32 or (N,) int64; ``reset``'s seed decides."""
        self._require_reset()
        draw = np.random.SeedSequence(self._seed, spawn_key=(_RANDOM_POLICY_STREAM, self._random_draws))
        self._random_draws += 1
        generator = np.random.default_rng(draw)
        if self._discrete:
            return generator.integers(self.action_space.n, size=self.num_envs)
        return generator.uniform(-1, 1, size=(self.num_envs, *self.action_space.shape)).astype(np.float32)

    def render(self) -> np.ndarray:
        """Return a picture of sub-environment 0, (height, width, 3) uint8 (``render_mode="rgb_array"``)."""
        if self._render_mode is None:
            raise EnvError(f"{self.env_id} was not built with render_mode='rgb_array'")
        return self._vector.picture(0) if self._is_native else self._vector.envs[0].render()

    @property
    def frames_per_second(self) -> float:
        """Rate at which one ``render`` per step plays in real time; 30 frames a second where none is declared."""
        return self._vector.metadata.get("render_fps", 30) / self.action_repeat

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to go on bit for bit, the episodes under way included.

        Arrays, ints, strings and lists only. A native environment is saved as it stands, any other as the actions
        since its last reset, which grow with the length of the episode.
        """
        self._require_reset()
        return {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "action_repeat": self.action_repeat,
            "seed": self._seed,
            "random_draws": self._random_draws,
            "episode": self._episode.copy(),
            "episode_return": self._episode_return.copy(),
            "episode_length": self._length.copy(),
            "obs": self._obs.copy(),
            "actions": [self._taken(index) for index in range(self.num_envs)],
            "native": self._vector.get_state() if self._is_native else np.zeros(0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> np.ndarray:
        """Take up a saved state and return the observations to act on; arrays may have become CPU tensors.

        Raises:
            EnvError: saved by other environments, or the environment did not repeat itself when its actions
                were played back, so that an exact continuation is impossible.
        """
        for name in ("env_id", "num_envs", "action_repeat"):
            saved, ours = state[name], getattr(self, name)
            if saved != ours:
                raise EnvError(f"the state was saved with {name} = {saved!r}, not {ours!r}")
        self._seed = int(state["seed"])
        self._random_draws = int(state["random_draws"])
        self._episode = _array(state["episode"], np.int64)
        self._episode_return = _array(state["episode_return"], np.float64)
        self._length = _array(state["episode_length"], np.int64)
        self._obs = _array(state["obs"], self._obs_dtype)
        self._actions = [list(_array(taken, self.action_space.dtype)) for taken in state["actions"]]
        everywhere = np.ones(self.num_envs, dtype=np.bool_)
        if self._is_game:
            reached = self._vector.set_state(state["native"])
        else:
            reached = self._reset_where(everywhere)
            if self._is_native:
                self._vector.set_state(_array(state["native"], np.float64))
                return self._obs.copy()
            for index, env in enumerate(self._vector.envs):
                for action in self._actions[index]:
                    reached[index] = env.step(action)[0]
        for index in range(self.num_envs):
            if not np.array_equal(reached[index], self._obs[index], equal_nan=not self._is_game):
                raise EnvError(
                    f"{self.env_id} cannot be resumed exactly (not deterministic): sub-environment {index} "
                    f"did not repeat itself when its actions were played back from the same seed"
                )
        return self._obs.copy()

    def close(self) -> None:
        """Free the sub-environments."""
        self._vector.close()

    def _reset_where(self, mask: np.ndarray) -> np.ndarray:
        """Start the next episode where ``mask`` holds; return all observations (fresh array)."""
        streams = [
            np.random.SeedSequence(self._seed, spawn_key=(_RESET_STREAM, index, episode))
            for index, episode in enumerate(self._episode.tolist())
        ]
        seeds = [int(stream.generate_state(1)[0]) for stream in streams]
        obs, _ = self._vector.reset(seed=seeds, options={"reset_mask": mask})
        return np.array(obs, dtype=self._obs_dtype)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions as a fresh array of the action space's dtype, or raise ValueError."""
        actions = np.asarray(actions)
        shape = (self.num_envs, *self.action_space.shape)
        if actions.shape != shape:
            raise ValueError(f"{self.env_id} takes actions of shape {shape}, got {actions.shape}")
        if self._discrete:
            if not np.issubdtype(actions.dtype, np.integer):
                raise ValueError(f"{self.env_id} takes integer actions, got {actions.dtype}")
            valid = (actions >= 0) & (actions < self.action_space.n)
            wanted = f"0 to {self.action_space.n - 1}"
        else:
            valid = np.isfinite(actions).reshape(self.num_envs, -1).all(axis=1)
            wanted = "finite numbers"
        if not valid.all():
            index = int(np.flatnonzero(~valid)[0])
            where = f"{self.env_id}, sub-environment {index}"
            raise ValueError(f"{where}: action {actions[index]} is not {wanted}")
        if not self._discrete:
            actions = np.clip(actions, -1, 1)
        return actions.astype(self.action_space.dtype)

    def _taken(self, index: int) -> np.ndarray:
        """Return the actions of sub-environment ``index`` since its last reset, (steps, *action_shape)."""
        actions = np.array(self._actions[index], dtype=self.action_space.dtype)
        return actions.reshape(-1, *self.action_space.shape)

    def _require_reset(self) -> None:
        if self._seed is None:
            raise RuntimeError("VecEnv: call reset(seed) or load_state_dict(state) first")


def _native_vector(
    env_id: str, num_envs: int, action_repeat: int, render_mode: str | None
) -> HumanoidVectorEnv | None:
    """Return the batched form of a native environment, which also saves and restores its state; None for others."""
    spec = gym.spec(env_id)
    if spec.vector_entry_point != "envs.humanoid.vector:HumanoidVectorEnv":
        return None
    return HumanoidVectorEnv(
        spec.kwargs["task"],
        num_envs,
        action_repeat,
        spec.max_episode_steps,
        autoreset_mode=AutoresetMode.DISABLED,
        render_mode=render_mode,
    )


def _array(saved: Any, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Return a copy of an array or CPU tensor."""
    return np.asarray(saved).astype(dtype, copy=True)


def make_vec(
    env_id: str,
    num_envs: int = 1,
    action_repeat: int = 1,
    render_mode: str | None = None,
    atari: AtariConfig | None = None,
) -> VecEnv:
    """Build ``num_envs`` copies of an environment, to be stepped together.

    Args:
        env_id: any registered Gymnasium id, ``h1-<task>`` for ``h1-<task>-v0``, or an Atari game by name.
        num_envs: copies.
        action_repeat: frames for which each action is held; rewards are summed. Atari's protocols have 4.
        render_mode: None, or "rgb_array" for ``VecEnv.render``.
        atari: protocol of a game; None: FIRE's.

    Raises:
        EnvError: unknown id, missing dependency, unsupported spaces, a count below 1.
    """
    return VecEnv(env_id, num_envs, action_repeat, render_mode, atari)


def make_training_env(config: Config) -> VecEnv:
    """Build the environments that ``config`` trains in; see ``make_vec`` for errors."""
    return make_vec(config.env.id, config.env.num_envs, config.env.action_repeat, atari=config.env.atari)


def make_evaluation_env(config: Config, num_envs: int, render_mode: str | None = None) -> VecEnv:
    """Build environments as ``config`` trains in, but for whole games; see ``make_vec`` for errors."""
    atari = dataclasses.replace(config.env.atari, episodic_life=False)
    return make_vec(config.env.id, num_envs, config.env.action_repeat, render_mode, atari)
