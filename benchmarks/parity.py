"""The native H1 tasks against the official ``humanoid_bench`` package on the same MuJoCo.

    python -m benchmarks.parity --official PATH [--tasks walk stand ...] [--episodes 300] [--json FILE]
    python -m benchmarks.parity --official PATH --run RUN [--episodes 100] [--json FILE]

PATH is the folder of a clone of github.com/carlosferrazza/humanoid-bench (dm_control must be importable).
The first form plays uniform random actions, one per frame; the second the greedy policy of a run of
train.py, in the run's task at the run's action repeat. Both sides play the same episodes: same seeds, same
random actions. Reported per task: mean return and length with their standard errors, and how many standard
errors apart the two sides are (below 1.96 in 95 % of tasks that agree).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np
import torch

from agents import make_agent
from common import checkpoint
from common.stats import standard_error
from configs.loader import read_config
from envs import make_vec
from envs.humanoid.tasks import TASKS
from envs.vec import VecEnv
from evaluate import Policy, RandomPolicy, evaluate, newest_agent


def trained_policy(run: Path, env: VecEnv) -> Policy:
    """Return the best checkpoint's agent of a run, built for ``env``."""
    device = torch.device("cpu")
    config = read_config(run / "config.yaml")
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    saved = newest_agent(run / "checkpoints", "best")
    agent.load_state_dict(checkpoint.load(saved, ["agent"], device)["agent"])
    return agent


def compare(
    task: str, make_policy: Callable[[VecEnv], Policy], action_repeat: int, episodes: int, seed: int
) -> dict[str, float]:
    """Return the figures of one task."""
    row: dict[str, float] = {"episodes": episodes, "action_repeat": action_repeat}
    for side, env_id in (("native", f"h1-{task}-v0"), ("official", f"humanoid_bench:h1-{task}-v0")):
        env = make_vec(env_id, action_repeat=action_repeat)
        played = evaluate(make_policy(env), env, episodes, seed)
        env.close()
        for name, values in (("return", played.returns), ("length", played.lengths)):
            row[f"{side}_{name}"] = float(np.mean(values))
            row[f"{side}_{name}_se"] = float(standard_error(values))
    for name in ("return", "length"):
        apart = math.hypot(row[f"native_{name}_se"], row[f"official_{name}_se"])
        row[f"{name}_apart"] = abs(row[f"native_{name}"] - row[f"official_{name}"]) / apart if apart else 0.0
    return row


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
    tasks, action_repeat, make_policy = options.tasks, 1, RandomPolicy
    if options.run is not None:
        config = read_config(options.run / "config.yaml")
        tasks, action_repeat = (
            [config.env.id.removeprefix("h1-").removesuffix("-v0")],
            config.env.action_repeat,
        )
        make_policy = lambda env: trained_policy(options.run, env)  # noqa: E731
    print(
        f"MuJoCo {mujoco.__version__}, NumPy {np.__version__}, {options.episodes} episodes per task and side"
    )
    print(
        f"{'task':16s} {'native return':>18s} {'official':>18s} {'length':>16s} {'official':>16s}   apart (s.e.)"
    )
    rows = {}
    for task in tasks:
        row = rows[task] = compare(task, make_policy, action_repeat, options.episodes, options.seed)
        cells = [
            f"{row[f'{side}_{name}']:10.2f} ± {row[f'{side}_{name}_se']:.2f}"
            for name in ("return", "length")
            for side in ("native", "official")
        ]
        print(f"{task:16s}", *cells, f"  {row['return_apart']:.1f} {row['length_apart']:.1f}", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps({"mujoco": mujoco.__version__, "tasks": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
