"""``VecEnv``: environments stepped together, and the one place that knows how Gymnasium ends an episode.

Every episode of every sub-environment is reset with its own seed, computed from (run seed, sub-environment,
episode number). Nothing but these counters has to be remembered to repeat an episode, which is what makes an
exact save possible for any environment that keeps Gymnasium's promise: same seed and actions, same episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from configs.schema import AtariConfig
from envs.backend import Backend
from envs.backends import make_backend, make_changing_backend
from envs.change import ChangingBackend, Tasks
from envs.errors import EnvError
from envs.ids import resolve_env_id

# First word of numpy.random.SeedSequence's spawn_key: which consumer a stream belongs to.
_RESET_STREAM, _RANDOM_POLICY_STREAM = 0, 1


class Episode(NamedTuple):
    """A finished episode."""

    env_index: int  # row: run env_index // N, sub-environment env_index % N
    episodic_return: float  # undiscounted sum of the rewards the environment returned
    length: int  # env_steps, that is agent transitions, not frames


class Step(NamedTuple):
    """One transition in each of the R = K * N rows; all arrays have R rows and are the caller's.

    ``obs`` and ``next_obs`` are one and the same array where no episode ended.
    """

    # (R, *obs_shape) float32 or uint8: what to act on now, after a reset where the episode ended
    obs: np.ndarray
    # (R, *obs_shape), likewise: where the action led, the true last observation included
    next_obs: np.ndarray
    # (R,) float32 to learn from, summed over the repeated frames (Atari: clipped if so set)
    reward: np.ndarray
    terminated: np.ndarray  # (R,) bool: the task ended, nothing follows (Atari with episodic_life: or a life)
    truncated: np.ndarray  # (R,) bool: only the clock ended; never true together with ``terminated``
    # those that ended in this step, by rising env_index; one that a change of tasks has cut off is not among them
    episodes: list[Episode]


class VecEnv:
    """N copies of one environment for each of K runs, stepped together and reset when an episode ends.

    Rows are run-major: run k owns rows k * N to (k + 1) * N - 1 and gets what a ``VecEnv`` of its own would give it,
    bit for bit. With ``tasks`` that go on, all rows are truncated and start anew after every ``change.every`` env steps
    of a run, in the next task; the last ``next_obs`` of a task is still its own.

    Attributes:
        env_id: the registered id.
        num_envs: N, of one run.
        num_runs: K.
        num_rows: K * N.
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
        num_runs: int = 1,
        tasks: Tasks | None = None,
    ) -> None:
        """Build the environments; see ``make_vec`` for the arguments and errors."""
        for name, count in (("num_envs", num_envs), ("action_repeat", action_repeat), ("num_runs", num_runs)):
            if count < 1:
                raise EnvError(f"{name} must be at least 1, got {count}")
        self.env_id = resolve_env_id(env_id)
        self.num_envs = num_envs
        self.num_runs = num_runs
        self.num_rows = num_runs * num_envs
        self.action_repeat = action_repeat
        parts = (num_runs, num_envs, action_repeat, render_mode, atari or AtariConfig())
        self._backend: Backend
        self._changing: ChangingBackend | None = None
        self._period = 0  # env steps of a run after which the next task begins
        self._steps = 0  # env steps of each run
        if tasks is None:
            self._backend = make_backend(self.env_id, *parts)
        else:
            self._backend = self._changing = make_changing_backend(self.env_id, tasks, *parts)
            self._period = tasks.options.period if tasks.go_on else 0
        self.max_episode_steps = self._backend.max_episode_steps
        self.observation_space = _standard_space(self._backend.observation_space)
        self.action_space = self._backend.action_space
        self._obs_dtype = self.observation_space.dtype
        assert self.action_space.shape is not None
        self._actions_shape = (self.num_rows, *self.action_space.shape)
        self._render_mode = render_mode
        self._seeds: list[int] = []  # of the runs

    def reset(self, seeds: int | Sequence[int]) -> np.ndarray:
        """Start a first episode everywhere and forget all earlier ones; return (R, *obs_shape).

        Args:
            seeds: one per run, non-negative; a run's decides its every later reset and ``random_action``. An int for
                a single run.
        """
        seeds = [seeds] if isinstance(seeds, int | np.integer) else list(seeds)
        self._require_one_per_run("seeds", len(seeds))
        self._seeds = [int(seed) for seed in seeds]
        self._steps = 0
        if self._period:
            self.set_task(0)
        self._random_draws = [0] * self.num_runs
        self._episode = np.zeros(self.num_rows, dtype=np.int64)
        self._episode_return = np.zeros(self.num_rows, dtype=np.float64)
        self._length = np.zeros(self.num_rows, dtype=np.int64)
        self._obs = self._backend.start(self._reset_seeds(np.arange(self.num_rows)))
        obs = self._obs.astype(self._obs_dtype)
        self._require_finite("observation", obs)
        return obs

    def step(self, actions: np.ndarray) -> Step:
        """Take one agent transition everywhere.

        Args:
            actions: (R, *action_shape) real numbers, clipped to [-1, 1]; or (R,) integers below n.

        Raises:
            ValueError: wrong shape or type, a NaN, an action outside a Discrete space.
            EnvError: an observation or a reward is NaN or infinite.
            RuntimeError: no ``reset`` or ``load_state_dict`` came before.
        """
        self._require_reset()
        reached = self._backend.step(self._checked(actions))
        next_obs = reached.next_obs.astype(self._obs_dtype)
        reward = reached.learner_reward.astype(np.float32)
        self._episode_return += reached.reward
        self._length += 1
        self._require_finite("observation", next_obs)
        self._require_finite("reward", reward)
        self._obs, episodes, truncated = reached.obs, [], reached.truncated
        if np.count_nonzero(reached.over):  # far quicker than any() on a few numbers
            episodes = self._start_next_episodes(np.flatnonzero(reached.over))
        self._steps += self.num_envs
        if self._period and self._steps % self._period == 0:
            truncated = np.ones_like(truncated)
            self._start_next_task(reached.over)
        obs = next_obs if self._obs is reached.next_obs else self._obs.astype(self._obs_dtype)
        if self._obs is not reached.obs:
            self._require_finite("observation", obs)
        truncated = truncated & ~reached.terminated
        return Step(obs, next_obs, reward, reached.terminated, truncated, episodes)

    @property
    def task(self) -> int:
        """Number of the task that is played now, from 0."""
        return 0 if self._changing is None else self._changing.task

    def set_task(self, task: int, like: VecEnv | None = None, run: int = 0) -> None:
        """Play ``task`` from the next ``reset`` on; only where tasks change.

        Args:
            task: its number, from 0.
            like: environments of the same configuration, as whose run ``run`` observations are standardised.
            run: see above.
        """
        assert self._changing is not None, f"{self.env_id} has one task only"
        if like is not None and like._changing is not None:
            self._changing.follow(like._changing, run)
        self._changing.set_task(task)

    def cut_off(self, rows: np.ndarray) -> tuple[np.ndarray, list[Episode]]:
        """End the episodes of ``rows``, ascending indices, which would go on, and start the next ones there.

        Returns:
            what to act on now, (R, *obs_shape), and the episodes ended.
        """
        self._require_reset()
        episodes = self._start_next_episodes(rows)
        obs = self._obs.astype(self._obs_dtype)
        self._require_finite("observation", obs)
        return obs, episodes

    def running_episodes(self) -> list[Episode]:
        """Return the episodes under way with return and length so far, those not yet begun left out."""
        self._require_reset()
        return self._episodes(np.flatnonzero(self._length))

    def random_action(self) -> np.ndarray:
        """Draw uniform actions, (R, *action_shape) float32 or (R,) int64; the run's seed decides on its rows."""
        self._require_reset()
        return np.concatenate([self._draw(run) for run in range(self.num_runs)])

    def render(self) -> np.ndarray:
        """Return a picture of row 0, (height, width, 3) uint8 (``render_mode="rgb_array"``)."""
        if self._render_mode is None:
            raise EnvError(f"{self.env_id} was not built with render_mode='rgb_array'")
        return self._backend.render()

    @property
    def frames_per_second(self) -> float:
        """Rate at which one ``render`` per step plays in real time; 30 frames a second where none is declared."""
        return self._backend.frames_per_second / self.action_repeat

    def state_dict(self, run: int = 0) -> dict[str, Any]:
        """Return everything run ``run`` needs to go on bit for bit, the episodes under way included.

        It is what a ``VecEnv`` of that run alone would return. Arrays, ints, strings, lists and dicts only. A native
        environment is saved as it stands, any other as the actions since its last reset, which grow with the length
        of the episode (a game: since its console was seeded).
        """
        self._require_reset()
        steps = {"steps": self._steps} if self._period else {}
        rows = slice(run * self.num_envs, (run + 1) * self.num_envs)
        none_taken = np.zeros((0, *self._actions_shape[1:]), dtype=self.action_space.dtype)
        return {
            "env_id": self.env_id,
            "num_envs": self.num_envs,
            "action_repeat": self.action_repeat,
            "seed": self._seeds[run],
            "random_draws": self._random_draws[run],
            "episode": self._episode[rows].copy(),
            "episode_return": self._episode_return[rows].copy(),
            "episode_length": self._length[rows].copy(),
            "obs": self._obs[rows].astype(self._obs_dtype),
            "actions": [none_taken.copy() for _ in range(self.num_envs)],
            "native": np.zeros(0),
            **steps,
            **self._backend.state_dict(rows),
        }

    def load_state_dict(self, states: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Take up the runs' saved states and return the observations to act on, (R, *obs_shape).

        Args:
            states: results of ``state_dict``, one per run, saved by whatever number of runs; a mapping for a single
                run. Arrays may have become CPU tensors.

        Raises:
            EnvError: saved by other environments, or the environment did not repeat itself when its actions
                were played back, so that an exact continuation is impossible.
        """
        states = [states] if isinstance(states, Mapping) else list(states)
        self._require_one_per_run("states", len(states))
        for state in states:
            for name in ("env_id", "num_envs", "action_repeat"):
                saved, ours = state[name], getattr(self, name)
                if saved != ours:
                    raise EnvError(f"the state was saved with {name} = {saved!r}, not {ours!r}")

        def joined(name: str, dtype: np.typing.DTypeLike) -> np.ndarray:
            return np.concatenate([np.asarray(state[name]) for state in states]).astype(dtype)

        self._seeds = [int(state["seed"]) for state in states]
        self._random_draws = [int(state["random_draws"]) for state in states]
        self._episode = joined("episode", np.int64)
        self._episode_return = joined("episode_return", np.float64)
        self._length = joined("episode_length", np.int64)
        self._obs = joined("obs", self._obs_dtype)
        self._steps = int(states[0].get("steps", 0))
        reached = self._backend.load_state_dict(states, self._reset_seeds(np.arange(self.num_rows)))
        if reached is not None:
            for row, (again, saved) in enumerate(
                zip(reached.astype(self._obs_dtype), self._obs, strict=True)
            ):
                if not np.array_equal(again, saved):
                    raise EnvError(
                        f"{self.env_id} cannot be resumed exactly (not deterministic): {self._row_name(row)} "
                        f"did not repeat itself when its actions were played back from the same seed"
                    )
        return self._obs.copy()

    def close(self) -> None:
        """Free the sub-environments."""
        self._backend.close()

    def _start_next_episodes(self, rows: np.ndarray) -> list[Episode]:
        """Count the episodes of ``rows`` as finished, begin the next ones there, return the finished ones."""
        episodes = self._episodes(rows)
        self._episode_return[rows] = 0.0
        self._length[rows] = 0
        self._episode[rows] += 1
        self._obs = self._backend.restart(rows, self._reset_seeds(rows))
        return episodes

    def _start_next_task(self, over: np.ndarray) -> None:
        """Cut off what goes on, all but the rows just started anew (``over``), and begin the next task everywhere."""
        self._episode_return[:] = 0.0
        self._length[:] = 0
        self._episode[~over] += 1
        self.set_task(self._steps // self._period)
        self._obs = self._backend.start(self._reset_seeds(np.arange(self.num_rows)))

    def _episodes(self, rows: np.ndarray) -> list[Episode]:
        returns, lengths = self._episode_return[rows].tolist(), self._length[rows].tolist()
        return [Episode(*each) for each in zip(rows.tolist(), returns, lengths, strict=True)]

    def _reset_seeds(self, rows: np.ndarray) -> list[int]:
        """Return the seeds of the present episodes of ``rows``."""
        seeds = []
        for row, episode in zip(rows.tolist(), self._episode[rows].tolist(), strict=True):
            run, index = divmod(row, self.num_envs)
            stream = np.random.SeedSequence(self._seeds[run], spawn_key=(_RESET_STREAM, index, episode))
            seeds.append(int(stream.generate_state(1)[0]))
        return seeds

    def _draw(self, run: int) -> np.ndarray:
        """Return random actions of one run, (N, *action_shape)."""
        path = (_RANDOM_POLICY_STREAM, self._random_draws[run])
        self._random_draws[run] += 1
        generator = np.random.default_rng(np.random.SeedSequence(self._seeds[run], spawn_key=path))
        if isinstance(self.action_space, spaces.Discrete):
            return generator.integers(self.action_space.n, size=self.num_envs)
        shape = (self.num_envs, *self.action_space.shape)
        return generator.uniform(-1, 1, size=shape).astype(np.float32)

    def _checked(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions as a fresh array of the action space's dtype, or raise ValueError."""
        actions = np.asarray(actions)
        if actions.shape != self._actions_shape:
            raise ValueError(
                f"{self.env_id} takes actions of shape {self._actions_shape}, got {actions.shape}"
            )
        if isinstance(self.action_space, spaces.Discrete):
            if not np.issubdtype(actions.dtype, np.integer):
                raise ValueError(f"{self.env_id} takes integer actions, got {actions.dtype}")
            valid = (actions >= 0) & (actions < self.action_space.n)
            wanted = f"0 to {self.action_space.n - 1}"
        else:
            valid = np.isfinite(actions)
            wanted = "finite numbers"
        if np.count_nonzero(valid) != valid.size:
            row = int(np.argwhere(~valid)[0, 0])
            where = f"{self.env_id}, {self._row_name(row)}"
            raise ValueError(f"{where}: action {actions[row]} is not {wanted}")
        if not isinstance(self.action_space, spaces.Discrete):
            actions = np.minimum(np.maximum(actions, -1), 1)
        return actions.astype(self.action_space.dtype)

    def _require_finite(self, name: str, values: np.ndarray) -> None:
        """Raise EnvError if an observation or reward, (R, ...), holds NaN or infinity."""
        if values.dtype == np.uint8:
            return
        finite = np.isfinite(values)
        if np.count_nonzero(finite) == finite.size:
            return
        row, *where = np.argwhere(~finite)[0].tolist()
        raise EnvError(
            f"{self.env_id}, {self._row_name(row)}: {name}{where or ''} is {values[row, *where]} at env step "
            f"{self._length[row]} of episode {self._episode[row]} (the first is 0); it must be finite"
        )

    def _row_name(self, row: int) -> str:
        run, index = divmod(row, self.num_envs)
        return f"sub-environment {index}" if self.num_runs == 1 else f"run {run}, sub-environment {index}"

    def _require_one_per_run(self, what: str, count: int) -> None:
        if count != self.num_runs:
            raise EnvError(f"{self.env_id}: {count} {what} for {self.num_runs} runs; give one per run")

    def _require_reset(self) -> None:
        if not self._seeds:
            raise RuntimeError("VecEnv: call reset(seeds) or load_state_dict(states) first")


def _standard_space(space: spaces.Box) -> spaces.Box:
    """Return the space as agents see it: images as they are, vectors as float32."""
    if len(space.shape) > 1:
        return space
    with np.errstate(over="ignore"):  # a float64 bound beyond float32 is no bound: infinity
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
