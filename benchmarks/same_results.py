"""Whether training still gives the same numbers, bit for bit, after a change that should move none.

python -m benchmarks.same_results record before.json      # in a checkout before the change
python -m benchmarks.same_results compare before.json     # after it; exit code 1 where a value differs

Trains SAC on h1-walk, DQN on CartPole and DQN on Breakout for a few minutes of one thread each: alone, two seeds as one
program, interrupted and resumed, and with the resets ``cbp`` and ``plasticity_injection``. Of every run it keeps
digests of all tensors in its checkpoints and of its logs without times. Names of tensors and of scalars are compared
apart from their values, so that a renaming shows as one.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import hashlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common import segments

ROOT = Path(__file__).parents[1]
TASKS = {
    "h1-walk": (
        "--algo sac --env h1-walk --preset quick --total-steps 3000 --reset.every 0 --reset.at 1500 2500 "
        "--eval.episodes 3"
    ),
    "cartpole": (
        "--algo dqn --env CartPole-v1 --preset quick --total-steps 8000 --reset.every 0 --reset.at 3000 6000 "
        "--eval.every 4000"
    ),
    "breakout": (
        "--algo dqn --env Breakout --preset quick --total-steps 4000 --reset.every 0 --reset.at 3000 --eval.every 2000 "
        "--eval.steps 400 --log.metrics-every 2000 --env.atari.num-threads 1"
    ),
}
VARIANTS = {
    "alone": "--reset fire",
    "together": "--reset fire --num-agents 2",
    "resumed": "--reset fire",
    "cbp": "--reset cbp",
    "injection": "--reset plasticity_injection",
}
CASES = [f"{task}/{variant}" for task in TASKS for variant in VARIANTS]


def run_case(case: str) -> dict[str, Any]:
    """Train one case in a folder of its own and return the digests of every run in it, by file."""
    task, variant = case.split("/")
    with tempfile.TemporaryDirectory() as folder:
        # A folder inside an existing one holds the runs of a program of several; a single run is the folder itself.
        run_dir = Path(folder) / "run"
        command = [sys.executable, "train.py", *TASKS[task].split(), *VARIANTS[variant].split()]
        command += ["--num-threads", "1", "--device", "cpu", "--run-dir", str(run_dir)]
        if variant == "resumed":
            _interrupt_midway(command, run_dir)
        _finish(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))
        found = sorted(path.parent for path in run_dir.rglob("config.yaml"))
        return {str(path.relative_to(run_dir)): digests(path) for path in found}


def _interrupt_midway(command: list[str], run_dir: Path) -> None:
    """Send Ctrl-C when half of the steps are logged; the run must stop with its exit code for that."""
    half = int(command[command.index("--total-steps") + 1]) // 2
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and _newest_step(run_dir / "scalars.csv") < half:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        if process.wait() != 130:
            raise RuntimeError(
                f"{' '.join(command)} was to be interrupted and ended with {process.returncode}"
            )


def _newest_step(path: Path) -> int:
    rows = path.read_text().splitlines() if path.exists() else []
    return int(rows[-1].split(",")[0]) if len(rows) > 2 and rows[-1][:1].isdigit() else 0


def _finish(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise RuntimeError(f"{' '.join(done.args)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def digests(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return, for every file of a run that its seed decides, the names in it and digests of their values."""
    found: dict[str, dict[str, Any]] = {}
    for checkpoint in sorted((run_dir / "checkpoints").iterdir()):
        for path in sorted(checkpoint.glob("*.pt")):
            state = segments.attach(torch.load(path, weights_only=True), checkpoint, "cpu")
            found[f"{checkpoint.name}/{path.name}"] = dict(_tensors(state, ""))
    found["scalars.csv"] = {
        f"{step} {key}": value
        for step, key, value in _rows(run_dir / "scalars.csv")
        if not key.startswith("time/") and "seconds" not in key
    }
    found["evaluations.csv"] = {" ".join(row[:2]): row[2:] for row in _rows(run_dir / "evaluations.csv")}
    for line in (run_dir / "resets.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[f"resets.jsonl {record['index']}"] = dict(_leaves(record, ""))
    return found


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def _tensors(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, torch.Tensor):
        content = value.numpy().tobytes()
        head = f"{value.dtype} {tuple(value.shape)} ".encode()
        yield path, hashlib.sha256(head + content).hexdigest()[:16]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{path}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _tensors(item, f"{path}/{index}")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if "seconds" not in key:
                yield from _leaves(item, f"{path}/{key}")
    else:
        yield path, value


# Of a reset's report; residual and DfI after it are bounds certified by the solver since the report costs nothing.
REPORT_TOLERANCE = 1e-6
RENAMED = "other names, same values"
BOUNDS = ("dfi_after", "dfi_scaled_after", "dfi_any_scale_after", "residual")


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return a line for each run file that differs, saying whether names or values do.

    Figures of a reset's report are compared within ``REPORT_TOLERANCE``: how they are rounded is not what training is.
    """
    lines = []
    for run in sorted({*before, *after}):
        ours, theirs = after.get(run, {}), before.get(run, {})
        for file in sorted({*ours, *theirs}):
            if file not in ours or file not in theirs:
                lines.append(f"{run} {file}: only {'before' if file in theirs else 'after'}")
                continue
            (a, a_report), (b, b_report) = _apart(theirs[file]), _apart(ours[file])
            if not _close(a_report, b_report):
                lines.append(f"{run} {file}: other figures of a reset's report")
            if a == b:
                continue
            same_values = sorted(map(str, a.values())) == sorted(map(str, b.values()))
            what = RENAMED if same_values else "other values"
            changed = [f"{k}: {a.get(k)} -> {b.get(k)}" for k in {**a, **b} if a.get(k) != b.get(k)]
            lines.append(f"{run} {file}: {what}, {len(changed)} in all, first {changed[0]}")
    return lines


def _apart(values: dict[str, Any]) -> tuple[dict[str, Any], list[float]]:
    """Split what a file holds into training and the figures of reports, sorted."""
    report = {k: v for k, v in values.items() if k.startswith("/report/") or " reset/" in k}
    figures = [float(v) for k, v in report.items() if not any(bound in k for bound in BOUNDS)]
    return {k: v for k, v in values.items() if k not in report}, sorted(figures)


def _close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(map(partial(math.isclose, rel_tol=REPORT_TOLERANCE), a, b))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.same_results", description=__doc__.splitlines()[0]
    )
    parser.add_argument("action", choices=("record", "compare"))
    parser.add_argument("file", type=Path, help="JSON written by record")
    parser.add_argument("--only", default="*", metavar="PATTERN", help=f"cases among {', '.join(CASES)}")
    parser.add_argument("--workers", type=int, default=2, help="cases run at the same time (default: 2)")
    args = parser.parse_args()
    cases = fnmatch.filter(CASES, args.only)
    before = json.loads(args.file.read_text()) if args.file.exists() else {}
    if args.action == "compare":
        cases = [case for case in cases if case in before]
    if not cases:
        parser.error(f"--only {args.only}: no such case; there are {', '.join(CASES)}")
    failed = False
    with ThreadPoolExecutor(args.workers) as pool:
        for case, after in zip(cases, pool.map(run_case, cases), strict=True):
            if args.action == "record":
                before[case] = after
                args.file.write_text(json.dumps(before, indent=0))
                print(f"{case}: recorded {len(after)} runs", flush=True)
                continue
            lines = differences(before[case], after)
            renamed = all(RENAMED in line for line in lines)
            failed |= not renamed
            verdict = "same" if not lines else f"same values, {len(lines)} files with other names"
            print(f"{case}: " + (verdict if renamed else "\n  ".join(["DIFFERS", *lines])), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
