"""Reference scores by environment: undiscounted episode returns that others measured.

HumanoidBench's H1 tasks: ``success`` is the task's success bar (``success_bar`` in the task classes of HumanoidBench,
Sferrazza et al. 2024). ``random`` is the mean return of the uniform random policy at action repeat 2, over 10 seeds and
10 environments, as SimBa's code base tabulates it (Lee et al. 2024, scale_rl/envs/humanoid_bench.py); None where it
does not.

Atari's 57 games: uniform random policy and professional human tester, no-op starts, at most 108,000 frames, as
google-deepmind/dqn_zoo tabulates them (dqn_zoo/atari_data.py; Wang et al. 2016, table 2). Neither faced sticky actions.
"""

from __future__ import annotations

from typing import NamedTuple

from common.games import find_game
from envs.ids import resolve_env_id
from envs.official import NAMESPACE


class Score(NamedTuple):
    """Returns in a HumanoidBench task."""

    random: float | None
    success: float


class AtariScore(NamedTuple):
    """Returns in a game."""

    random: float
    human: float


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


ATARI_SCORES: dict[str, AtariScore] = {
    "alien": AtariScore(227.8, 7127.7),
    "amidar": AtariScore(5.8, 1719.5),
    "assault": AtariScore(222.4, 742.0),
    "asterix": AtariScore(210.0, 8503.3),
    "asteroids": AtariScore(719.1, 47388.7),
    "atlantis": AtariScore(12850.0, 29028.1),
    "bank_heist": AtariScore(14.2, 753.1),
    "battle_zone": AtariScore(2360.0, 37187.5),
    "beam_rider": AtariScore(363.9, 16926.5),
    "berzerk": AtariScore(123.7, 2630.4),
    "bowling": AtariScore(23.1, 160.7),
    "boxing": AtariScore(0.1, 12.1),
    "breakout": AtariScore(1.7, 30.5),
    "centipede": AtariScore(2090.9, 12017.0),
    "chopper_command": AtariScore(811.0, 7387.8),
    "crazy_climber": AtariScore(10780.5, 35829.4),
    "defender": AtariScore(2874.5, 18688.9),
    "demon_attack": AtariScore(152.1, 1971.0),
    "double_dunk": AtariScore(-18.6, -16.4),
    "enduro": AtariScore(0.0, 860.5),
    "fishing_derby": AtariScore(-91.7, -38.7),
    "freeway": AtariScore(0.0, 29.6),
    "frostbite": AtariScore(65.2, 4334.7),
    "gopher": AtariScore(257.6, 2412.5),
    "gravitar": AtariScore(173.0, 3351.4),
    "hero": AtariScore(1027.0, 30826.4),
    "ice_hockey": AtariScore(-11.2, 0.9),
    "jamesbond": AtariScore(29.0, 302.8),
    "kangaroo": AtariScore(52.0, 3035.0),
    "krull": AtariScore(1598.0, 2665.5),
    "kung_fu_master": AtariScore(258.5, 22736.3),
    "montezuma_revenge": AtariScore(0.0, 4753.3),
    "ms_pacman": AtariScore(307.3, 6951.6),
    "name_this_game": AtariScore(2292.3, 8049.0),
    "phoenix": AtariScore(761.4, 7242.6),
    "pitfall": AtariScore(-229.4, 6463.7),
    "pong": AtariScore(-20.7, 14.6),
    "private_eye": AtariScore(24.9, 69571.3),
    "qbert": AtariScore(163.9, 13455.0),
    "riverraid": AtariScore(1338.5, 17118.0),
    "road_runner": AtariScore(11.5, 7845.0),
    "robotank": AtariScore(2.2, 11.9),
    "seaquest": AtariScore(68.4, 42054.7),
    "skiing": AtariScore(-17098.1, -4336.9),
    "solaris": AtariScore(1236.3, 12326.7),
    "space_invaders": AtariScore(148.0, 1668.7),
    "star_gunner": AtariScore(664.0, 10250.0),
    "surround": AtariScore(-10.0, 6.5),
    "tennis": AtariScore(-23.8, -8.3),
    "time_pilot": AtariScore(3568.0, 5229.2),
    "tutankham": AtariScore(11.4, 167.6),
    "up_n_down": AtariScore(533.4, 11693.2),
    "venture": AtariScore(0.0, 1187.5),
    "video_pinball": AtariScore(16256.9, 17667.9),
    "wizard_of_wor": AtariScore(563.5, 4756.5),
    "yars_revenge": AtariScore(3092.9, 54576.9),
    "zaxxon": AtariScore(32.5, 9173.3),
}


def random_score(env_id: str) -> float | None:
    """Return the random policy's mean return, None where unknown. Raises EnvError for unknown ids."""
    score = _atari_score(env_id) or _score(env_id)
    return None if score is None else score.random


def success_score(env_id: str) -> float | None:
    """Return the return that counts as solved, None where unknown. Raises EnvError for unknown ids."""
    score = _score(env_id)
    return None if score is None else score.success


def human_score(env_id: str) -> float | None:
    """Return a human tester's mean return, None where unknown. Raises EnvError for unknown ids."""
    score = _atari_score(env_id)
    return None if score is None else score.human


def human_normalized_score(env_id: str, episodic_return: float) -> float | None:
    """Return 0 for the random policy's return, 1 for a human's, linear between and beyond; None where unknown.

    ``(return - random) / (human - random)``, Mnih et al. 2015, Methods. Raises EnvError for unknown ids.
    """
    score = _atari_score(env_id)
    return None if score is None else (episodic_return - score.random) / (score.human - score.random)


def _score(env_id: str) -> Score | None:
    """Look up a task; the official package's environments have the scores of the native ones."""
    return SCORES.get(resolve_env_id(env_id).removeprefix(NAMESPACE))


def _atari_score(env_id: str) -> AtariScore | None:
    return ATARI_SCORES.get(find_game(resolve_env_id(env_id)) or "")
