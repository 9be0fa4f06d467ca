"""Speed of the Atari environments against the wrapper chain of the published DQN script.

    python -m benchmarks.atari [--games Pong Breakout Asterix] [--num-envs 4] [--rounds 15] [--python PYTHON]
                               [--json FILE]

The script's four environments, a process each, against --num-envs of all others. In every round the contenders take
turns, in changing order, at 400 env steps (1,600 frames) of random play; figures are env steps per CPU second of all
processes of a contender, and the median over rounds of the paired ratios, so that a busy machine counts little. The
rival runs on this interpreter's packages and, with --python, also in a process of that interpreter, which needs
gymnasium, ale-py and opencv in whatever versions, such as the script's own pins: gymnasium 0.28.1, ale-py 0.8.1 (its
cartridges installed), NumPy 1. Beside them play ale-py's vector environment alone, on which ours is built, and bare
consoles without preprocessing: the limit of anything on ALE. The rival's script wants ``opencv-python-headless`` from
requirements-dev.txt here. Updates and whole training steps: ``benchmarks.dqn``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median

from common.table import format_table

WORKER = Path(__file__).with_name("atari_worker.py")
WARM_UP = 1  # rounds not counted
PUBLISHED_ENVS = 4  # the script's number, a process each


class Contender:
    """A worker process that plays one slice at a time."""

    def __init__(self, python: str, kind: str, game: str, num_envs: int) -> None:
        self._process = subprocess.Popen(
            [python, str(WORKER), kind, game, str(num_envs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.versions = self._answer()

    def steps_per_cpu_second(self) -> float:
        """Play a slice."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["steps"] / answer["cpu_seconds"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker died: {' '.join(self._process.args)}")
        return json.loads(line)


def compare(game: str, num_envs: int, rounds: int, python: str | None) -> dict[str, object]:
    """Return speeds and ratios of one game."""
    with contextlib.ExitStack() as stack:
        contenders = {
            "ours": Contender(sys.executable, "ours", game, num_envs),
            "ale-py's vector environment": Contender(sys.executable, "ale-py", game, num_envs),
            "bare emulator": Contender(sys.executable, "emulator", game, num_envs),
            "published wrappers": Contender(sys.executable, "published", game, PUBLISHED_ENVS),
        }
        if python:
            contenders["published wrappers, pinned"] = Contender(python, "published", game, PUBLISHED_ENVS)
        for contender in contenders.values():
            stack.callback(contender.close)
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for index in range(rounds + WARM_UP):
            names = list(contenders)
            for name in names[index % len(names) :] + names[: index % len(names)]:
                speed = contenders[name].steps_per_cpu_second()
                if index >= WARM_UP:
                    speeds[name].append(speed)
    ratios = {
        name: sorted(ours / theirs for ours, theirs in zip(speeds["ours"], values, strict=True))
        for name, values in speeds.items()
        if name != "ours"
    }
    return {
        "game": game,
        "env_steps_per_cpu_second": {name: median(values) for name, values in speeds.items()},
        "ratio": {name: median(values) for name, values in ratios.items()},
        "ratio_quartiles": {
            name: [values[len(values) // 4], values[-1 - len(values) // 4]] for name, values in ratios.items()
        },
        "versions": {name: contender.versions for name, contender in contenders.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atari", description=__doc__.splitlines()[0])
    parser.add_argument("--games", nargs="+", default=["Pong", "Breakout", "Asterix"], metavar="GAME")
    parser.add_argument(
        "--num-envs",
        type=int,
        default=4,
        help="environments of all but the published script's four (default: 4)",
    )
    parser.add_argument("--rounds", type=int, default=15, help="counted rounds (default: 15)")
    parser.add_argument("--python", metavar="PYTHON", help="interpreter with the script's pinned packages")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    found = []
    for game in args.games:
        found.append(compare(game, args.num_envs, args.rounds, args.python))
        result = found[-1]
        rows = []
        for name, speed in result["env_steps_per_cpu_second"].items():
            ratio = "" if name == "ours" else f"{result['ratio'][name]:.2f}"
            spread = "" if name == "ours" else "{:.2f} to {:.2f}".format(*result["ratio_quartiles"][name])
            rows.append([f"{game}, {name}", f"{speed:,.0f} env steps per CPU second", ratio, spread])
        print(format_table(rows), flush=True)
    print(json.dumps(found[0]["versions"]))
    if args.json:
        args.json.write_text(json.dumps({"date": date.today().isoformat(), "games": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
