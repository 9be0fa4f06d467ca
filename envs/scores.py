"""Reference scores of the HumanoidBench H1 tasks, by registered id.

``success`` is the task's success bar (``success_bar`` in the task classes of HumanoidBench, Sferrazza et al.
2024). ``random`` is the mean return of the uniform random policy at action repeat 2, over 10 seeds and 10
environments, as SimBa's code base tabulates it (Lee et al. 2024, scale_rl/envs/humanoid_bench.py);
None where it does not.
"""

from __future__ import annotations

from typing import NamedTuple

from envs.make import resolve_env_id
from envs.official import NAMESPACE


class Score(NamedTuple):
    """Undiscounted episode returns."""

    random: float | None
    success: float


SCORES: dict[str, Score] = {
    "h1-balance_hard-v0": Score(9.044, 800.0),
    "h1-balance_simple-v0": Score(9.391, 800.0),
    "h1-basketball-v0": Score(None, 1200.0),
    "h1-crawl-v0": Score(272.658, 700.0),
    "h1-door-v0": Score(None, 600.0),
    "h1-highbar_simple-v0": Score(None, 750.0),
    "h1-hurdle-v0": Score(2.214, 700.0),
    "h1-maze-v0": Score(106.441, 1200.0),
    "h1-package-v0": Score(None, 1500.0),
    "h1-pole-v0": Score(20.09, 700.0),
    "h1-push-v0": Score(None, 700.0),
    "h1-reach-v0": Score(260.302, 12000.0),
    "h1-run-v0": Score(2.02, 700.0),
    "h1-sit_hard-v0": Score(2.448, 750.0),
    "h1-sit_simple-v0": Score(9.393, 750.0),
    "h1-slide-v0": Score(3.191, 700.0),
    "h1-stair-v0": Score(3.112, 700.0),
    "h1-stand-v0": Score(10.545, 800.0),
    "h1-truck-v0": Score(None, 3000.0),
    "h1-walk-v0": Score(2.377, 700.0),
}


def random_score(env_id: str) -> float | None:
    """Return the random policy's mean return, None where unknown. Raises EnvError for unknown ids."""
    score = _score(env_id)
    return None if score is None else score.random


def success_score(env_id: str) -> float | None:
    """Return the return that counts as solved, None where unknown. Raises EnvError for unknown ids."""
    score = _score(env_id)
    return None if score is None else score.success


def _score(env_id: str) -> Score | None:
    """Look up a task; the official package's environments have the scores of the native ones."""
    return SCORES.get(resolve_env_id(env_id).removeprefix(NAMESPACE))
