"""Small experiments, and programs that train in this very process: real runs without the seconds of a start-up."""

import contextlib
import io
from pathlib import Path

import sweep
import train
from sweeps.experiment import read_experiment

BASE = (
    "base: {algo: dqn, env: CartPole-v1, preset: quick, total_steps: 200, replay.learning_starts: 60, "
    "replay.batch_size: 16, replay.replay_ratio: 0.2, eval.every: 100, eval.episodes: 1, log.every: 30, "
    "log.metrics_every: 0, log.probe_size: 32, agent.hidden_widths: [16], checkpoint.every: 100, num_threads: 1}\n"
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
