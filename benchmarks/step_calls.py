"""How many of our functions one ordinary training step passes through, and in how many files.

python -m benchmarks.step_calls [--env h1-walk] [--list]

Trains for a few hundred steps under ``sys.setprofile`` and looks at what is called from one environment step to the
next, where updates are made and nothing else is due. Comprehensions belong to the function around them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from configs import loader

ROOT = Path(__file__).resolve().parents[1]
NEVER = ["--eval.every", "0", "--log.every", "0", "--log.metrics-every", "0", "--checkpoint.every", "0"]
SHORT = [
    "--total-steps",
    "260",
    "--replay.learning-starts",
    "60",
    "--eval.episodes",
    "1",
    "--num-threads",
    "1",
]


def calls_per_step(algo: str, env: str) -> list[CodeType]:
    """Return the functions of this repository that an ordinary training step calls, each once."""
    # Imported here: what importing calls is no part of a step.
    from agents import Replay
    from envs.vec import VecEnv
    from training.loop import train

    steps: list[set[CodeType]] = [set()]
    folders = {str(ROOT / name) for name in ("agents", "common", "configs", "envs", "fire", "training")}
    ours: dict[str, bool] = {}

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event != "call":
            return
        if code is VecEnv.step.__code__:
            steps.append(set())
        path = code.co_filename
        if path not in ours:
            ours[path] = any(path.startswith(folder) for folder in folders)
        if ours[path] and not (code.co_name.startswith("<") and code.co_name != "<lambda>"):
            steps[-1].add(code)

    argv = ["--algo", algo, "--env", env, "--preset", "quick", "--reset", "none", *SHORT, *NEVER]
    config, _ = loader.load(argv)
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(watch)
        try:
            train(config, Path(folder) / "run")
        finally:
            sys.setprofile(None)
    learning = [frozenset(step) for step in steps if Replay.gather.__code__ in step]
    (functions, _), *_ = Counter(learning).most_common(1)
    return sorted(functions, key=lambda code: (code.co_filename, code.co_firstlineno))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_calls", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--env", nargs="+", default=["Pendulum-v1", "h1-walk", "CartPole-v1"], metavar="ID")
    parser.add_argument("--list", action="store_true", help="name the functions")
    args = parser.parse_args()
    for env in args.env:
        algo = "dqn" if env.startswith("CartPole") else "sac"
        functions = calls_per_step(algo, env)
        files = Counter(Path(code.co_filename).relative_to(ROOT) for code in functions)
        print(f"{algo} on {env}: {len(functions)} functions in {len(files)} files")
        if args.list:
            for code in functions:
                print(
                    f"  {Path(code.co_filename).relative_to(ROOT)}:{code.co_firstlineno} {code.co_qualname}"
                )


if __name__ == "__main__":
    main()
