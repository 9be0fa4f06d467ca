"""Tasks that change: what an environment shows, how it moves or which one it is becomes another from time to time.

``ChangingBackend`` wraps what any ``Backend`` delivers. The tasks of a run follow from its seed alone, so they are the
same for every agent and every reset. ``VecEnv`` decides when the next one begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from common.seeding import stream_seed
from configs.schema import ChangeConfig, PhysicsConfig
from envs.backend import Backend, Physical, Transition
from envs.errors import EnvError

# Sub-streams of a run's stream ``change``.
STANDARD, TASK = 0, 1


class Tasks(NamedTuple):
    """What a ``VecEnv`` must know of tasks that change."""

    options: ChangeConfig
    seeds: tuple[int, ...]  # of the K runs, from which their tasks follow
    go_on: bool  # whether the next task begins by itself, as in training


class Standard(NamedTuple):
    """What observations are standardised by, each (size,) float64."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, observations: np.ndarray) -> Standard:
        """Return mean and standard deviation of ``observations`` (T, size); what never varied keeps its scale."""
        deviation = observations.std(axis=0, dtype=np.float64)
        scale = np.where(deviation > 1e-8, deviation, 1.0)
        return cls(observations.mean(axis=0, dtype=np.float64), scale)


class Series:
    """Series: what the tasks of one run are, each drawn by a generator of its own, knowing the task before.

    Args:
        seed: of the run.
        draw: returns a task, given a generator and the task before (None for the first).
    """

    def __init__(self, seed: int, draw: Callable[[np.random.Generator, Any], Any]) -> None:
        self._seed = seed
        self._draw = draw
        self._number, self._newest = -1, None

    def __getitem__(self, number: int) -> Any:
        if number < self._number:
            self._number, self._newest = -1, None
        while self._number < number:
            self._number += 1
            generator = np.random.default_rng(stream_seed(self._seed, "change", TASK, self._number))
            self._newest = self._draw(generator, self._newest)
        return self._newest


def random_isometry(generator: np.random.Generator, dims: int, size: int) -> np.ndarray:
    """Return a (dims, size) float64 matrix with orthonormal columns, uniform among all (Mezzadri 2007, section 5)."""
    q, r = np.linalg.qr(generator.standard_normal((dims, size)))
    return q * np.sign(np.diagonal(r))


def random_rotation(generator: np.random.Generator, dims: int, angle: float) -> np.ndarray:
    """Return the matrix exponential, (dims, dims) float64, of a random skew matrix.

    Its entries are normal with standard deviation ``angle / sqrt(dims)``: a vector turns by about ``angle`` (rad).
    """
    half = generator.standard_normal((dims, dims)) * (angle / math.sqrt(2 * dims))
    # i S is Hermitian: with i S = V w V*, exp(S) = V exp(-i w) V*.
    values, vectors = np.linalg.eigh(1j * (half - half.T))
    return ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real


def random_factors(generator: np.random.Generator, physics: PhysicsConfig) -> dict[str, float]:
    """Return a factor for every quantity, uniform in the logarithm within its range."""
    return {
        name: math.exp(generator.uniform(math.log(low), math.log(high)))
        for name, (low, high) in physics.ranges().items()
    }


def other_actions(
    generator: np.random.Generator, before: np.ndarray | None, space: spaces.Box | spaces.Discrete
) -> np.ndarray:
    """Return another permutation (n,) of discrete actions, or other signs (n,) of continuous ones, than ``before``."""
    while True:
        if isinstance(space, spaces.Discrete):
            drawn = generator.permutation(int(space.n))
        else:
            drawn = generator.choice(np.array([-1, 1], space.dtype), space.shape)
        if before is None or not np.array_equal(drawn, before):
            return drawn


class ChangingBackend:
    """``Backend`` whose rows play one task after the other, rows of one run the same; all runs change together.

    A new task needs a ``start``: episodes do not go on in it.

    Args:
        backends: the environment, or those that take turns (``sequence``).
        names: of these, for errors.
        options: of ``env.change``.
        seeds: of the K runs.
        num_envs: rows of each run.
        standards: of each run (``rotate`` and ``drift``); empty: observations are mapped as they are.

    Attributes:
        task: number of the present one, from 0.

    Raises:
        EnvError: the kind of change is impossible here, or environments that take turns have different spaces.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        names: Sequence[str],
        options: ChangeConfig,
        seeds: Sequence[int],
        num_envs: int,
        standards: Sequence[Standard] = (),
    ) -> None:
        self._backends = list(backends)
        self._inner = self._backends[0]
        self._options = options
        self._num_runs = len(seeds)
        self._num_envs = num_envs
        self.action_space = self._inner.action_space
        self.observation_space = self._inner.observation_space
        self.frames_per_second = self._inner.frames_per_second
        limits = [backend.max_episode_steps for backend in self._backends]
        self.max_episode_steps = None if None in limits else max(limit for limit in limits if limit)
        self._standards = list(standards)
        draw = {
            "rotate": self._draw_rotation,
            "drift": self._draw_drift,
            "actions": lambda generator, before: other_actions(generator, before, self.action_space),
            "physics": lambda generator, _: random_factors(generator, options.physics),
            "sequence": lambda generator, _: None,
        }[options.kind]
        self._check(names)
        if options.kind in ("rotate", "drift"):
            self.observation_space = spaces.Box(-np.inf, np.inf, (self._dims,), np.float64)
        self._series = [Series(seed, draw) for seed in seeds]
        self.set_task(0)

    def _check(self, names: Sequence[str]) -> None:
        space, kind = self.observation_space, self._options.kind
        first = self._backends[0]
        if kind in ("rotate", "drift"):
            self._dims = self._options.dims or space.shape[0]
            if self._dims < space.shape[0]:
                raise EnvError(
                    f"env.change.dims {self._dims} is less than the {space.shape[0]} numbers that {names[0]} observes; "
                    "0 stands for as many"
                )
        if kind == "actions" and isinstance(self.action_space, spaces.Discrete) and self.action_space.n < 2:
            raise EnvError(f"env.change.kind actions: {names[0]} has one action only")
        if kind == "physics":
            known = first.quantities if isinstance(first, Physical) else ()
            asked = self._options.physics.ranges()
            unknown = [name for name, bounds in asked.items() if bounds != (1.0, 1.0) and name not in known]
            if unknown:
                valid = ", ".join(known) or "nothing"
                raise EnvError(
                    f"env.change.physics.{unknown[0]}: {names[0]} cannot change it; it can change: {valid}"
                )
        for name, backend in zip(names[1:], self._backends[1:], strict=True):
            for what in ("observation_space", "action_space"):
                ours, theirs = getattr(first, what), getattr(backend, what)
                if not same_space(ours, theirs):
                    raise EnvError(
                        f"env.change.ids: {names[0]} and {name} have different {what.replace('_', ' ')}s, "
                        f"{_described(ours)} and {_described(theirs)}"
                    )

    def set_task(self, task: int) -> None:
        """Make ``task`` the present one; ``start`` or ``load_state_dict`` must follow."""
        self.task = task
        drawn = [series[task] for series in self._series]
        kind = self._options.kind
        if kind == "sequence":
            self._inner = self._backends[task % len(self._backends)]
        elif kind == "physics":
            assert isinstance(self._inner, Physical)
            self._inner.set_physics([each for each in drawn for _ in range(self._num_envs)])
        elif kind == "actions":
            self._actions = np.stack(drawn)  # (K, n)
        else:
            self._set_maps(drawn)

    def _set_maps(self, maps: Sequence[np.ndarray]) -> None:
        """Join standardisation and map: ``map @ ((obs - mean) / scale) = obs @ matrix + offset``."""
        size = maps[0].shape[1]
        standards = self._standards or [Standard(np.zeros(size), np.ones(size))] * self._num_runs
        pairs = list(zip(maps, standards, strict=True))
        self._matrix = np.stack([(each / standard.scale).T for each, standard in pairs])  # (K, size, dims)
        offsets = [each @ (-standard.mean / standard.scale) for each, standard in pairs]
        self._offset = np.stack(offsets)[:, None]  # (K, 1, dims)

    def _draw_rotation(self, generator: np.random.Generator, before: np.ndarray | None) -> np.ndarray:
        return random_isometry(generator, self._dims, self._backends[0].observation_space.shape[0])

    def _draw_drift(self, generator: np.random.Generator, before: np.ndarray | None) -> np.ndarray:
        if before is None:
            return self._draw_rotation(generator, None)
        return random_rotation(generator, self._dims, self._options.angle) @ before

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self._shown(self._inner.start(seeds))

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return self._shown(self._inner.restart(rows, seeds))

    def step(self, actions: np.ndarray) -> Transition:
        reached = self._inner.step(self._taken(actions))
        next_obs = self._shown(reached.next_obs)
        obs = next_obs if reached.obs is reached.next_obs else self._shown(reached.obs)
        return reached._replace(next_obs=next_obs, obs=obs)

    def _shown(self, obs: np.ndarray) -> np.ndarray:
        """Return what the agent sees of ``obs`` (R, ...)."""
        if self._options.kind not in ("rotate", "drift"):
            return obs
        # Run by run, so that a run's rounding does not depend on its company.
        by_run = obs.reshape(self._num_runs, -1, obs.shape[-1]).astype(np.float64)  # mixed products are slow
        return (by_run @ self._matrix + self._offset).reshape(len(obs), -1)

    def _taken(self, actions: np.ndarray) -> np.ndarray:
        """Return the actions that the environment gets, (R, ...)."""
        if self._options.kind != "actions":
            return actions
        by_run = actions.reshape(self._num_runs, -1, *actions.shape[1:])
        if isinstance(self.action_space, spaces.Discrete):
            taken = np.take_along_axis(self._actions, by_run, axis=1)
        else:
            taken = by_run * self._actions[:, None]
        return taken.reshape(actions.shape)

    def state_dict(self, rows: slice) -> dict[str, Any]:
        run = rows.start // self._num_envs
        change: dict[str, Any] = {"task": self.task}
        if self._standards:
            change |= {name: value.copy() for name, value in self._standards[run]._asdict().items()}
        return {**self._inner.state_dict(rows), "change": change}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> np.ndarray | None:
        saved = [state["change"] for state in states]
        if self._standards:
            self._standards = [
                Standard(np.asarray(each["mean"]), np.asarray(each["scale"])) for each in saved
            ]
        self.set_task(int(saved[0]["task"]))
        reached = self._inner.load_state_dict(states, seeds)
        return None if reached is None else self._shown(reached)

    def follow(self, other: ChangingBackend, run: int) -> None:
        """Take over how run ``run`` of ``other`` standardises observations; ``set_task`` must follow."""
        if other._standards:
            self._standards = [other._standards[run]] * self._num_runs

    def render(self) -> np.ndarray:
        return self._inner.render()

    def close(self) -> None:
        for backend in self._backends:
            backend.close()


def require_flat(name: str, backend: Backend) -> None:
    """Raise EnvError where observations are images, which have no axes to turn."""
    shape = backend.observation_space.shape
    if len(shape) != 1:
        raise EnvError(f"env.change.kind rotate and drift need flat observations, but {name} has {shape}")


def same_space(one: spaces.Box | spaces.Discrete, other: spaces.Box | spaces.Discrete) -> bool:
    """Return whether an agent for ``one`` fits ``other``: bounds of observations do not matter."""
    if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
        return one.shape == other.shape and one.dtype == other.dtype
    return one == other


def _described(space: spaces.Space) -> str:
    return " ".join(str(space).split()) if isinstance(space, spaces.Discrete) else f"Box{space.shape}"
