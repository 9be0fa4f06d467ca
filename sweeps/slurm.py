"""Programs of a sweep as jobs of Slurm, through submitit: what starts at one moment is one job array.

Before its time limit a job hears a signal; its runs save, and Slurm puts it back into its queue, from which it goes on.
All nodes see the same files under the same paths, as with Ray. docs/cluster.md says what that asks of them.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from configs.errors import ConfigError
from sweeps.nodes import ROOT, Attempt
from sweeps.processes import LAST_LINES, STOPPED

LOCAL = "local"
# Time limits that one job survives.
REQUEUES = 1_000
SAVE_SECONDS = 180  # between the signal and the limit
ROOM = 256  # jobs handed over at a time; which of them run is Slurm's affair
WAIT_SECONDS = 1.0
# Options that submitit calls the same on every kind of cluster.
_SHARED = ("cpus_per_task", "gpus_per_node", "mem_gb")


class Slurm:
    """Slurm: submits programs as jobs.

    Args:
        minutes: time limit of a job.
        options: of sbatch, by submitit's names, such as ``partition``; ``cluster: local`` makes jobs processes of this
            machine, for trying it out.
        folder: for submitit's own files, on storage that all nodes see.
        name: of the jobs.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm, or an option is none.
    """

    def __init__(self, minutes: int, options: Mapping[str, Any], folder: Path, name: str) -> None:
        self._submitit = _import_submitit()
        given = dict(options)
        cluster = given.pop("cluster", "slurm")
        if cluster not in ("slurm", LOCAL):
            raise ConfigError(f"--slurm-options cluster={cluster}: must be slurm or {LOCAL}")
        self.threads = given.setdefault("cpus_per_task", 1)
        self._memory_given = "mem_gb" in given
        self._gigabytes = 0
        self._handed: list[Job] = []
        limits = {"timeout_min": minutes, "slurm_signal_delay_s": min(SAVE_SECONDS, 20 * minutes)}
        words = {key if key in _SHARED else f"slurm_{key}": value for key, value in given.items()}
        # The jobs import this package, wherever they are started.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            counts = {"slurm_max_num_timeout": REQUEUES, "local_max_num_timeout": REQUEUES}
            self._executor = self._submitit.AutoExecutor(folder=folder, cluster=cluster, **counts)
            self._executor.update_parameters(name=name, **limits, **words)
        except (NameError, ValueError, AssertionError, RuntimeError, OSError) as error:
            raise ConfigError(f"--slurm: {' '.join(str(error).split())}") from error

    def room(self) -> int:
        """Return how many programs may be handed over at a time."""
        return ROOM

    def require_fit(self, name: str, memory: int) -> None:
        """Take note of the memory in bytes that a program takes; all jobs ask for what the largest does."""
        if math.ceil(memory / 1e9) > self._gigabytes and not self._memory_given:
            self._gigabytes = math.ceil(memory / 1e9)
            self._executor.update_parameters(mem_gb=self._gigabytes)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Submit what is started inside as one job array.

        Raises:
            ConfigError: Slurm does not take it.
        """
        yield
        handed, self._handed = self._handed, []
        if not handed:
            return
        known = (RuntimeError, OSError, subprocess.CalledProcessError)
        refusals: tuple[type[Exception], ...] = (*known, *self._failed)
        try:
            with self._executor.batch():
                submitted = [self._executor.submit(job.work) for job in handed]
        except refusals as error:
            raise ConfigError(f"--slurm: no job was taken: {' '.join(str(error).split())[:500]}") from error
        for job, real in zip(handed, submitted, strict=True):
            job.is_submitted_as(real)

    def start(self, argv: Sequence[str], log: Path, locks: Sequence[Path], memory: int) -> Job:
        """Return the job of a program; it is submitted at the end of ``batch``.

        Args:
            argv: words behind ``train.py``.
            log: file on storage that all nodes see; its folder exists.
            locks: a file for each run, beside the log.
            memory: see ``require_fit``.
        """
        stop = log.with_suffix(".stop")
        stop.unlink(missing_ok=True)
        work = Work(
            list(argv), str(log), [str(path) for path in locks], self.threads, str(Path.cwd()), str(stop)
        )
        job = Job(work, self._failed)
        self._handed.append(job)
        return job

    @property
    def _failed(self) -> tuple[type[Exception], ...]:
        errors = self._submitit.core.utils
        return errors.FailedJobError, errors.UncompletedJobError


class Job:
    """Job: to the queue of the sweep what ``sweeps.processes.Process`` is.

    Args:
        work: what it does.
        failures: errors of submitit for a job that brings no result.
    """

    def __init__(self, work: Work, failures: tuple[type[Exception], ...]) -> None:
        self.work = work
        self._failures = failures
        self._job: Any = None
        self._asked_to_stop = False
        self._code: int | None = None
        self._lines: list[str] = []

    def is_submitted_as(self, job: Any) -> None:
        """Take note of submitit's job."""
        self._job = job

    def poll(self) -> int | None:
        """Return the exit code; None while it waits or is at work."""
        if self._job is None:  # Slurm did not take it
            return STOPPED[0]
        if self._code is None and self._job.done():
            self._code, self._lines = self._result()
        return self._code

    def stop(self) -> None:
        """Ask it, once, to save and end; one that waits for a node never starts."""
        if self._asked_to_stop or self.poll() is not None:
            return
        self._asked_to_stop = True
        Path(self.work.stop).touch()
        if self._job.state in ("PENDING", "REQUEUED"):
            self.kill()
            self._code = STOPPED[0]

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            self._job.cancel(check=False)

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(WAIT_SECONDS)
        return code

    def last_lines(self) -> list[str]:
        """Return what it printed last, or what submitit says of it."""
        return self._lines

    def _result(self) -> tuple[int, list[str]]:
        try:
            code, lines = self._job.result()
            return code, lines
        except self._failures as error:
            if self._asked_to_stop:
                return STOPPED[0], []
            return 1, [line.rstrip() for line in str(error).splitlines() if line.strip()][-LAST_LINES:]


class Work:
    """Work: what a job does on its node; submitit pickles it, calls it, and calls ``checkpoint`` before the limit.

    Args:
        argv, log, locks, threads, home: see ``sweeps.nodes.Attempt``.
        stop: file by which the sweep asks it to save and end; a signal of Slurm's would have its own time limit.
    """

    def __init__(
        self, argv: list[str], log: str, locks: list[str], threads: int, home: str, stop: str
    ) -> None:
        self.stop = stop
        self._arguments = (argv, log, locks, threads, home)
        self._attempt: Attempt | None = None

    def __call__(self) -> tuple[int, list[str]]:
        """Run ``train.py`` to its end; return its exit code and last lines."""
        self._attempt = Attempt(*self._arguments, asked=Path(self.stop).exists)
        signal.signal(signal.SIGTERM, self._leave)  # scancel, a node that shuts down, preemption
        return self._attempt.run()

    def checkpoint(self) -> Any:
        """Save, and return what is to be done when the job has a node again."""
        from submitit.helpers import DelayedSubmission

        if self._attempt is not None:
            self._attempt.stop_now()
        return DelayedSubmission(Work(*self._arguments, self.stop))

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """Save and end without a result, so that a job which Slurm starts again goes on."""
        if self._attempt is not None:
            self._attempt.stop_now()
        sys.exit(128 + number)


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Return ``KEY=VALUE`` words as a mapping, whole numbers and ``true`` as what they are; ConfigError for others."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key.isidentifier() and equals and value):
            raise ConfigError(f"--slurm-options must be KEY=VALUE, such as partition=gpu, got {word!r}")
        options[key] = int(value) if value.isdigit() else True if value == "true" else value
    return options


def _import_submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise ConfigError("--slurm needs submitit: pip install -r requirements-slurm.txt") from error
    return submitit
