"""From names and configurations to the environments of a run, for training and for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from configs.schema import AtariConfig, Config
from envs.change import Tasks
from envs.vec import VecEnv


def make_vec(
    env_id: str,
    num_envs: int = 1,
    action_repeat: int = 1,
    render_mode: str | None = None,
    atari: AtariConfig | None = None,
    num_runs: int = 1,
    tasks: Tasks | None = None,
) -> VecEnv:
    """Build ``num_envs`` copies of an environment for each of ``num_runs`` runs, to be stepped together.

    Args:
        env_id: any registered Gymnasium id, ``h1-<task>`` for ``h1-<task>-v0``, or an Atari game by name.
        num_envs: copies per run.
        action_repeat: frames for which each action is held; rewards are summed. Atari's protocols have 4.
        render_mode: None, or "rgb_array" for ``VecEnv.render``.
        atari: protocol of a game; None: FIRE's.
        num_runs: runs that step as one.
        tasks: that change; None: there is one.

    Raises:
        EnvError: unknown id, missing dependency, unsupported spaces, a count below 1, a change that is impossible here.
    """
    return VecEnv(env_id, num_envs, action_repeat, render_mode, atari, num_runs, tasks)


def make_training_env(config: Config, seeds: Sequence[int] = ()) -> VecEnv:
    """Build the environments that runs of ``config`` train in; see ``make_vec`` for errors.

    Args:
        config: of any of the runs.
        seeds: of all of them; empty: there is one, with the configuration's own.
    """
    env, seeds = config.env, tuple(seeds) or (config.seed,)
    tasks = Tasks(env.change, seeds, go_on=True) if env.change.period else None
    return make_vec(env.id, env.num_envs, env.action_repeat, None, env.atari, len(seeds), tasks)


def make_evaluation_env(config: Config, num_envs: int, render_mode: str | None = None) -> VecEnv:
    """Build environments as one run of ``config`` trains in, but for whole games; see ``make_vec`` for errors.

    Where tasks change they stay in the first until ``set_task``.
    """
    env = config.env
    atari = dataclasses.replace(env.atari, episodic_life=False)
    tasks = Tasks(env.change, (config.seed,), go_on=False) if env.change.period else None
    return make_vec(env.id, num_envs, env.action_repeat, render_mode, atari, 1, tasks)
