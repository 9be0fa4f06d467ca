"""What can be known to fail before anything starts, and what each run will take."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from gymnasium import spaces

from agents import make_agent, pick_device
from agents.make import replay_bytes
from configs.errors import ConfigError
from configs.schema import Config
from envs import import_module_of, make_training_env
from sweeps.experiment import PlannedRun
from training.checks import require_known_metric
from training.failures import one_line
from training.folder import BRANCH_WITH_OTHER, differences


class Demand(NamedTuple):
    """What a run takes."""

    replay_bytes: int
    stacks: bool  # whether the seeds of its cell are faster as one program (results/sweep.md)


class _Spaces(NamedTuple):
    observation: spaces.Box
    action: spaces.Space
    max_episode_steps: int | None


def inspect(runs: Sequence[PlannedRun], where: str, allow_import: bool) -> dict[str, Demand]:
    """Build the environment and the agent of every cell once; return what each run takes, by name.

    Args:
        runs: of an experiment.
        where: its file.
        allow_import: whether environments ``module:Id`` may run the code of their module.

    Raises:
        ConfigError: an environment, an algorithm or an option that does not fit, with the name of the cell.
    """
    by_name = {run.name: run for run in runs}
    known: dict[object, _Spaces] = {}
    of_cell: dict[str, Demand] = {}
    for run in runs:
        if run.cell not in of_cell:
            try:
                if allow_import:
                    import_module_of(run.config.env.id)
                of_cell[run.cell] = _demand(run.config, known)
            except Exception as error:
                if (line := one_line(error)) is None:
                    raise
                # What a command line would say is said otherwise here.
                line = line.replace("give train.py --env ", "give --allow-import for ").split(
                    ", or evaluate.py"
                )[0]
                raise ConfigError(f"{where}, cell {run.cell or 'alone'}: {line}") from error
        if run.parent and (other := differences(by_name[run.parent].config, run.config, BRANCH_WITH_OTHER)):
            raise ConfigError(
                f"{where}, {run.name}: a branch may differ in reset, eval, log, checkpoint and total_steps alone, but "
                f"{run.parent} has {other}"
            )
    return {run.name: of_cell[run.cell] for run in runs}


def _demand(config: Config, known: dict[object, _Spaces]) -> Demand:
    device = pick_device(config.device)
    key = (config.algo, config.env)
    if key not in known:
        with contextlib.closing(make_training_env(config)) as env:
            known[key] = _Spaces(env.observation_space, env.action_space, env.max_episode_steps)
    found = known[key]
    # Whatever else differs cannot make it fail.
    reset = (config.reset.networks, config.reset.temperature, config.reset.normalizer, config.reset.trigger)
    numbers = (config.precision, config.compile, config.log.expensive_metrics)
    if (key, config.agent, reset, numbers) not in known:
        known[key, config.agent, reset, numbers] = found
        agent = make_agent(config, *found, torch.device(device))
        require_known_metric(agent, config)
    stacks = config.algo == "dqn" and len(found.observation.shape) == 1 and not config.compile
    return Demand(replay_bytes(config, found.observation, found.action), stacks)
