"""What can be known to fail before a run begins, so that it is not found hours later."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import re

import numpy as np

from agents import Agent
from common.seeding import stream_seed
from configs.errors import ConfigError
from configs.schema import Config
from envs import EnvError, VecEnv, make_evaluation_env
from fire.metrics.cheap import METRIC_KEYS
from fire.metrics.costly import DIAGNOSTIC_KEYS

# Env steps of each of the two rollouts: enough for an episode or two of the shortest tasks.
ROLLOUT_STEPS = 32


def require_repeatable(config: Config) -> None:
    """Play the same actions twice from the same seed; what checkpoints, branches and evaluations rest on is equality.

    Raises:
        EnvError: an observation, a reward or an end differs.
    """
    seed = stream_seed(config.seed, "eval_env")
    with contextlib.closing(make_evaluation_env(config, 1)) as env:
        for task in range(len(config.env.change.ids) if config.env.change.kind == "sequence" else 1):
            if task:
                env.set_task(task)
            _require_equal(config.env.task_id(task), *(_rollout(env, seed) for _ in range(2)))


def _require_equal(
    env_id: str, first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]
) -> None:
    for index, (one, other) in enumerate(zip(first, second, strict=True)):
        for name, value in one.items():
            if not np.array_equal(value, other[name]):
                when = f"after {index} env steps" if index else "right after the reset"
                raise EnvError(
                    f"{env_id} does not repeat itself: from the same seed and with the same actions its {name} "
                    f"is another {when}, so no run in it could be resumed or repeated"
                )


def _rollout(env: VecEnv, seed: int) -> list[dict[str, np.ndarray]]:
    seen = [{"observation": env.reset(seed)}]
    for _ in range(ROLLOUT_STEPS):
        step = env.step(env.random_action())
        seen.append(
            {"observation": step.next_obs, "reward": step.reward, "end": step.terminated | step.truncated}
        )
    return seen


def metric_names(agent: Agent, config: Config) -> set[str]:
    """Return the keys of all plasticity metrics that a run of ``agent`` can measure, and perhaps a few more."""
    keys = (*METRIC_KEYS, *(DIAGNOSTIC_KEYS if config.log.expensive_metrics else ()))
    names = set()
    for network, slot in agent.networks().items():
        layers = [name for name, _ in slot.module.named_modules() if name]
        for key in keys:
            key = key.replace("<network>", network)
            names |= {key.replace("<layer>", layer) for layer in layers}
    return names


def require_known_metric(agent: Agent, config: Config) -> None:
    """Raise ConfigError if ``reset.trigger.metric`` is none that the run measures."""
    wanted = config.reset.trigger.metric
    # A module that is called twice is measured as <layer> and <layer>_2.
    known = metric_names(agent, config)
    if wanted and not (fnmatch.filter(known, wanted) or fnmatch.filter(known, re.sub(r"_\d+$", "", wanted))):
        near = difflib.get_close_matches(wanted, sorted(known), n=1, cutoff=0.0)[0]
        raise ConfigError(f"reset.trigger.metric {wanted}: no such metric is measured; did you mean {near}?")
