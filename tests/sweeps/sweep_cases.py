"""Small experiments, and programs that train in this very process: real runs without the seconds of a start-up."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import sweep
import train
from common import checkpoint
from sweeps.experiment import read_experiment

ROOT = Path(__file__).parents[2]
PATIENCE = 400.0  # seconds, on a machine that has other work
STARTED: list[subprocess.Popen[str]] = []  # ended after each test, whatever came of it
BASE = (
    "base: {algo: dqn, env: CartPole-v1, preset: quick, total_steps: 200, replay.learning_starts: 60, "
    "replay.batch_size: 16, replay.replay_ratio: 0.2, eval.every: 100, eval.episodes: 1, log.every: 30, "
    "log.metrics_every: 0, log.probe_size: 32, agent.hidden_widths: [16], checkpoint.every: 100, num_threads: 1}\n"
)
# Two runs that take long enough to be stopped on their way.
LONG = (
    BASE.replace("total_steps: 200", "total_steps: 2_500") + "grid: {reset: [none, full]}\ntogether: none\n"
)
GRID = "grid: {reset: [none, full], seed: {count: 2}}\n"


class InProcess:
    """Stands for ``sweeps.processes.Process``: ``train.main`` in this process, done when it is made."""

    started: list[list[str]]

    def __init__(self, argv, log, threads):
        type(self).started.append(argv)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            self._code = train.main(argv)
        log.write_text(output.getvalue())
        self._lines = output.getvalue().splitlines()[-8:]

    def poll(self):
        return self._code

    def stop(self):
        pass

    def wait(self):
        return self._code

    def last_lines(self):
        return self._lines


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def plan(folder: Path, text: str):
    return read_experiment(write(folder, text))


def sweep_here(folder: Path, text: str, *words: str) -> int:
    """The exit code of ``sweep.py`` with an experiment of this text, in ``folder/out``."""
    return sweep.main([str(write(folder, text)), "--output", str(folder / "out"), "--workers", "1", *words])


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """``sweep.py`` as a process of its own, on the experiment that ``write`` wrote, in ``folder/out``."""
    command = [sys.executable, str(ROOT / "sweep.py"), str(folder / "small.yaml")]
    command += ["--output", str(folder / "out"), *words]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    STARTED.append(process)
    return process


def until(condition, process=None, seconds=PATIENCE):
    """Wait for ``condition``, which will not come any more once ``process`` has ended."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)


def folders(folder):
    """Those of the two runs of ``LONG``."""
    return [folder / "out" / f"reset={reset}/seed0" for reset in ("none", "full")]


def steps(run_dir):
    return [checkpoint.step_of(path) for path in checkpoint.find(run_dir / "checkpoints", "step")]
