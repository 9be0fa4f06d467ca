"""The native H1 tasks against the official ``humanoid_bench`` package on the same MuJoCo.

    python -m benchmarks.parity --official PATH [--tasks walk stand ...] [--episodes 300] [--json FILE]
    python -m benchmarks.parity --official PATH --run RUN [--episodes 100] [--json FILE]

PATH is the folder of a clone of github.com/carlosferrazza/humanoid-bench (dm_control must be importable).
The first form plays uniform random actions, one per frame; the second the greedy policy of the best checkpoint of a
run of train.py, in the run's task at the run's action repeat, whichever of the two sides it was trained on. Both sides
play the same episodes: same seeds, same random actions. Reported per task: mean return and length (env steps) with 95 %
bootstrap intervals, and how many standard errors apart the two sides are (below 1.96 in 95 % of tasks that agree).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import torch

from agents import make_agent
from common.stats import bootstrap_interval, standard_error
from configs.loader import read_config
from configs.schema import Config
from envs import make_vec
from envs.humanoid.tasks import TASKS
from envs.official import PREFIX
from envs.vec import VecEnv
from training.evaluation import Policy, RandomPolicy, evaluate, load_agent

CELL = 26  # characters
Row = dict[str, float | tuple[float, float] | str]


def trained_policy(run: Path, config: Config, env: VecEnv) -> Policy:
    """Return the best checkpoint's policy of a run, built for ``env``."""
    device = torch.device("cpu")
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    _, state = load_agent(run / "checkpoints", "best")
    agent.load_policy(state["agent"])
    return agent


def task_and_side(env_id: str) -> tuple[str, str]:
    """Return the task that a run's environment plays, and whose: "native" or "official".

    Raises:
        ValueError: not one of the tasks that exist on both sides.
    """
    side = "official" if env_id.startswith(PREFIX) else "native"
    task = env_id.removeprefix(PREFIX).removeprefix("h1-").removesuffix("-v0")
    if task not in TASKS:
        raise ValueError(f"{env_id} is not on both sides; the tasks that are: {', '.join(TASKS)}")
    return task, side


def compare(
    task: str, make_policy: Callable[[VecEnv], Policy], action_repeat: int, episodes: int, seed: int
) -> Row:
    """Return the figures of one task."""
    row: Row = {"episodes": episodes, "action_repeat": action_repeat}
    apart = {}
    for side, env_id in (("native", f"h1-{task}-v0"), ("official", f"{PREFIX}h1-{task}-v0")):
        env = make_vec(env_id, action_repeat=action_repeat)
        played = evaluate(make_policy(env), env, episodes, seed)
        env.close()
        for name, values in (("return", played.returns), ("length", played.lengths)):
            row[f"{side}_{name}"] = float(np.mean(values))
            row[f"{side}_{name}_95"] = bootstrap_interval(values)
            row[f"{side}_{name}_se"] = standard_error(values)
            apart.setdefault(name, []).append((float(np.mean(values)), standard_error(values)))
    for name, ((native, native_se), (official, official_se)) in apart.items():
        error = math.hypot(native_se, official_se)
        row[f"{name}_apart"] = abs(native - official) / error if error else 0.0
    return row


def cell(row: Row, side: str, name: str) -> str:
    """Return a mean with its interval for the table."""
    low, high = row[f"{side}_{name}_95"]
    mean = row[f"{side}_{name}"]
    return f"{mean:.2f} ({low:.2f} to {high:.2f})".rjust(CELL)


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", type=Path, required=True, help="folder that holds the package humanoid_bench"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument(
        "--run", type=Path, help="run folder of train.py: its policy instead of random actions"
    )
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    tasks, action_repeat, make_policy, origin = options.tasks, 1, RandomPolicy, "random"
    if options.run is not None:
        config = read_config(options.run / "config.yaml")
        try:
            task, origin = task_and_side(config.env.id)
        except ValueError as error:
            parser.error(str(error))
        tasks, action_repeat = [task], config.env.action_repeat
        make_policy = functools.partial(trained_policy, options.run, config)
    print(
        f"MuJoCo {mujoco.__version__}, NumPy {np.__version__}, {options.episodes} episodes per task and side, "
        f"action repeat {action_repeat}, policy: {origin if origin == 'random' else f'trained in the {origin} task'}"
    )
    heads = ("native return", "official return", "native length", "official length")
    print(f"{'task':16s}", *(f"{head:>{CELL}s}" for head in heads), "  apart (s.e.)")
    rows = {}
    for task in tasks:
        row = rows[task] = {
            "policy": origin,
            **compare(task, make_policy, action_repeat, options.episodes, options.seed),
        }
        cells = [cell(row, side, name) for name in ("return", "length") for side in ("native", "official")]
        print(f"{task:16s}", *cells, f"  {row['return_apart']:.1f} {row['length_apart']:.1f}", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps({"mujoco": mujoco.__version__, "tasks": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
