"""Greedy episodes of a policy, and their figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common import checkpoint
from common.stats import bootstrap_interval, standard_error
from envs.vec import Episode, VecEnv

# Word of numpy.random.SeedSequence's spawn_key beside VecEnv's own two streams.
EXPLORATION_STREAM = 2


class EvaluationStopped(Exception):
    """Someone asked to stop in the middle of an evaluation, of which nothing is kept."""


class Frames(Protocol):
    """Anything that takes pictures ``(H, W, 3)`` uint8: a list, or a video."""

    def append(self, picture: np.ndarray) -> None: ...


class Policy(Protocol):
    """Anything that maps observations ``(N, ...)`` to actions."""

    def act_greedy(self, obs: np.ndarray) -> np.ndarray: ...


class RandomPolicy:
    """Uniform actions from the environment's own generator."""

    def __init__(self, env: VecEnv) -> None:
        self._env = env

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        return self._env.random_action()


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (env steps) of episodes.

    Attributes:
        cut_off: episodes that reached ``max_episode_steps``, counted or not.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut_off: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN for a single episode."""
        return standard_error(self.returns)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean."""
        return bootstrap_interval(self.returns)

    def success_rate(self, bar: float) -> float:
        """Share of episodes whose return reaches ``bar``."""
        return float(np.mean(np.asarray(self.returns) >= bar))


def evaluate(
    policy: Policy,
    env: VecEnv,
    episodes: int | None,
    seed: int,
    frames: Frames | None = None,
    *,
    steps: int = 0,
    unfinished: str = "drop",
    epsilon: float = 0.0,
    max_episode_steps: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Play ``episodes`` complete episodes, or for ``steps``, or whichever is shorter.

    Every environment plays a share fixed in advance: counting whichever episodes end first would favour short ones. An
    evaluation by steps does favour them, as published ones do, since it drops what it cuts off.

    Args:
        policy: acts greedily.
        env: used by nothing else; it is reset here.
        episodes: at least 1; None: as many as ``steps`` hold.
        seed: of the environments; the same seed gives the same episodes.
        frames: pictures of environment 0 during its first episode are appended, if given.
        steps: env steps to play, summed over environments and rounded up to whole steps of all; 0: no limit.
        unfinished: whether episodes that ``steps`` or ``max_episode_steps`` cut off are left out (``drop``, unless none
            has ended) or counted with their return so far (``count``).
        epsilon: share of actions drawn uniformly, each environment for itself.
        max_episode_steps: length at which an episode is cut off where ``env`` has no time limit; None: never.
        stop: asked at every step; whether to give up.

    Raises:
        ValueError: neither ``episodes`` nor ``steps``.
        EvaluationStopped: ``stop`` said so.
    """
    if episodes is None and not steps:
        raise ValueError("evaluate: give a number of episodes, of steps, or both")
    quota = np.full(env.num_envs, np.iinfo(np.int64).max)
    if episodes is not None:
        quota[:] = episodes // env.num_envs
        quota[: episodes % env.num_envs] += 1
    played = np.zeros_like(quota)
    finished: list[Episode] = []
    cut: list[Episode] = []
    limit = max_episode_steps if env.max_episode_steps is None else None
    lengths = np.zeros_like(quota)  # of the episodes under way; kept only with a limit
    chance = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EXPLORATION_STREAM,)))
    steps_left = -(-steps // env.num_envs)
    obs = env.reset(seed)
    while (played < quota).any() and not (steps and steps_left <= 0):
        if stop():
            raise EvaluationStopped
        if frames is not None and played[0] == 0:
            frames.append(env.render())
        actions = policy.act_greedy(obs)
        if epsilon:
            actions = np.where(chance.random(env.num_envs) < epsilon, env.random_action().T, actions.T).T
        step = env.step(actions)
        obs = step.obs
        for episode in step.episodes:
            if played[episode.env_index] < quota[episode.env_index]:
                finished.append(episode)
            played[episode.env_index] += 1
        if limit is not None:
            lengths += 1
            lengths[[episode.env_index for episode in step.episodes]] = 0
            if (lengths >= limit).any():
                rows = np.flatnonzero(lengths >= limit)
                obs, episodes_cut = env.cut_off(rows)
                cut += [
                    episode
                    for episode in episodes_cut
                    if played[episode.env_index] < quota[episode.env_index]
                ]
                played[rows] += 1
                lengths[rows] = 0
        steps_left -= 1
    if unfinished == "count" or not finished:
        finished += cut
        finished += [
            game for game in env.running_episodes() if played[game.env_index] < quota[game.env_index]
        ]
    # In the order of environments, so that results do not depend on which of them finished first.
    finished.sort(key=lambda episode: episode.env_index)
    returns, lengths_played = (e.episodic_return for e in finished), (e.length for e in finished)
    return Evaluation(tuple(returns), tuple(lengths_played), len(cut))


def load_agent(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """Read the policy of the ``best`` evaluation or the agent of the ``latest`` step, best falling back to latest.

    The run may go on writing meanwhile; nothing of it is touched.

    Returns:
        the checkpoint's folder, and its ``env_step`` and ``agent`` on the CPU, for ``Agent.load_policy``.

    Raises:
        CheckpointError: the run has saved nothing yet, or what it saved cannot be read.
    """
    return checkpoint.load_newest(folder, ["best", "step"] if kind == "best" else ["step"], ["agent"])
