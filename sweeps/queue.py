"""The queue: starts programs while there is room, takes note of how they end, stops them when asked to."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from sweeps.checks import Demand
from sweeps.experiment import PlannedRun
from sweeps.processes import STOPPED, Process
from sweeps.programs import Program, make_programs
from sweeps.state import Journal, saved_steps

POLL_SECONDS = 0.2
# Memory of a process beside its replay buffer; results/sweep.md has the measurement.
PROCESS_BYTES = 500_000_000


@dataclass(frozen=True)
class Limits:
    """How much may go on at a time."""

    workers: int  # 0: as many as the cluster holds
    threads: int  # of each program
    memory: int | None  # bytes for all programs; None: not known


class Work(Protocol):
    """A program at work: a process of this machine, or a task of a cluster."""

    def poll(self) -> int | None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...

    def last_lines(self) -> list[str]: ...


class Machines(Protocol):
    """Where programs run other than on this machine: ``sweeps.cluster.Cluster``, ``sweeps.slurm.Slurm``."""

    @property
    def threads(self) -> int: ...

    def room(self) -> int: ...

    def require_fit(self, name: str, memory: int) -> None: ...

    def batch(self) -> contextlib.AbstractContextManager[None]: ...

    def start(self, argv: Sequence[str], log: Path, locks: Sequence[Path], memory: int) -> Work: ...


class Watcher(Protocol):
    """What the queue tells while it goes on."""

    def say(self, line: str) -> None: ...

    def show(self, queue: Queue) -> None: ...


class Queue:
    """Queue: the programs of an experiment, from the first that waits to the last that ends.

    Args:
        runs: what is to be made, parents before their branches.
        everything: all runs of the plan by name, for parents that are not among ``runs``.
        folder: of the experiment, claimed.
        demands: what each run takes, by name.
        stacked: names of runs to be trained beside the other seeds of their cell.
        limits: how much may go on at a time.
        journal: what was before, and what will be.
        watcher: told of every start and end.
        cluster: where programs run; None: on this machine.
        across_resets: whether cells that differ in the reset alone are trained as one program, too.

    Attributes:
        finished: names of the runs that are over.
        waiting: programs not started.
        running: programs at work, each with its process or task.
        stopped: names of runs that someone stopped.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        everything: Mapping[str, PlannedRun],
        folder: Path,
        demands: Mapping[str, Demand],
        stacked: Collection[str],
        limits: Limits,
        journal: Journal,
        watcher: Watcher,
        cluster: Machines | None = None,
        across_resets: bool = False,
    ) -> None:
        self.runs = list(runs)
        self.folder = folder
        self.journal = journal
        self.limits = limits
        self._everything = everything
        self._demands = demands
        self._watcher = watcher
        self._cluster = cluster
        self.finished = {run.name for run in runs if journal.is_finished(run, folder / run.folder)}
        todo = [run for run in runs if run.name not in self.finished and run.name not in journal.failed]
        self.waiting = make_programs(todo, folder, stacked, journal.alone, across_resets)
        self.running: dict[Program, Work] = {}
        self.stopped: set[str] = set()
        self._stop_requests = 0
        self._at_once = False
        self._told_busy: set[Program] = set()

    def run(self) -> None:
        """Make all runs that can be made; returns when none is at work any more."""
        (self.folder / "logs").mkdir(exist_ok=True)
        with self._interruptible():
            try:
                while self._go_on():
                    time.sleep(POLL_SECONDS)
            finally:
                for process in self.running.values():  # nothing is left training behind a fault of ours
                    process.stop()
                for process in self.running.values():
                    process.wait()

    def _go_on(self) -> bool:
        """Do what there is to do now; returns whether anything is left."""
        self._take_ended()
        if not self._stop_requests:
            with contextlib.nullcontext() if self._cluster is None else self._cluster.batch():
                self._start_what_fits()
        # Not in the handler: a signal may come while a program is just being started.
        for process in self.running.values() if self._stop_requests else ():
            process.kill() if self._at_once else process.stop()
        self._watcher.show(self)
        return bool(self.running or (self.waiting and not self._stop_requests and not self.stuck))

    @property
    def room(self) -> int:
        """How many programs may be at work at a time; on a cluster that follows its nodes, which come and go."""
        if self._cluster is None or self.limits.workers:
            return self.limits.workers
        return self._cluster.room()

    @property
    def stopping(self) -> bool:
        """Whether someone has asked to stop."""
        return self._stop_requests > 0

    @property
    def stuck(self) -> bool:
        """Whether what waits can never start, since what it branches from is not made."""
        return not self.running and bool(self.waiting) and not any(map(self._is_ready, self.waiting))

    @property
    def blocked(self) -> dict[str, str]:
        """Names of waiting runs whose parent is not going to bring the checkpoint they need, with the parent's name."""
        lost = set(self.journal.failed)
        blocked: dict[str, str] = {}
        for program in self.waiting:
            for run in program.runs:
                if run.parent and not self._is_ready(program):
                    parent = run.parent
                    if parent in lost or parent in self.finished or parent in blocked:
                        blocked[run.name] = parent
        return blocked

    # Starting

    def _start_what_fits(self) -> None:
        for program in list(self.waiting):
            if len(self.running) >= self.room:
                return
            if not self._is_ready(program) or not self._has_memory_for(program):
                continue
            if program.is_busy(self.folder):
                if program not in self._told_busy:
                    self._told_busy.add(program)
                    self._watcher.say(f"{program.name} waits: another process is still training it")
                continue
            self._start(program)

    def _is_ready(self, program: Program) -> bool:
        return program.is_ready(self.folder, self._everything)

    def _has_memory_for(self, program: Program) -> bool:
        """Return whether it fits beside what is at work; the first one is always tried."""
        if self.limits.memory is None or not self.running:
            return True
        taken = sum(self.bytes_of(each) for each in self.running)
        return taken + self.bytes_of(program) <= self.limits.memory

    def bytes_of(self, program: Program) -> int:
        """Return the memory that a program takes when its replay buffers are full."""
        return PROCESS_BYTES + sum(self.replay_bytes_of(run) for run in program.runs)

    def replay_bytes_of(self, run: PlannedRun) -> int:
        """Return the size of a run's replay buffer when it is full, in memory and in a checkpoint."""
        return self._demands[run.name].replay_bytes

    def _start(self, program: Program) -> None:
        self.waiting.remove(program)
        log = self._beside(program.name, "log")
        self.journal.note("start", program.runs)
        argv = program.argv(self.folder, self._everything)
        if self._cluster is None:
            self.running[program] = Process(argv, log, self.limits.threads)
        else:
            locks = [self._beside(run.name, "lock") for run in program.runs]
            self.running[program] = self._cluster.start(argv, log, locks, self.bytes_of(program))
        steps = max(saved_steps(self.folder / program.runs[0].folder), default=None)
        first = program.runs[0]
        where = f", from env step {steps:,}" if steps else f", from {first.parent}" if first.parent else ""
        self._watcher.say(f"{program.name} starts{where}")

    def _beside(self, name: str, kind: str) -> Path:
        return self.folder / "logs" / f"{name.replace('/', '--')}.{kind}"

    # Ending

    def _take_ended(self) -> None:
        for program, process in list(self.running.items()):
            code = process.poll()
            if code is not None:
                del self.running[program]
                self._take_one(program, process, code)

    def _take_one(self, program: Program, process: Work, code: int) -> None:
        done = [
            run
            for run in program.runs
            if code == 0 or self.journal.is_finished(run, self.folder / run.folder)
        ]
        rest = [run for run in program.runs if run not in done]
        if done:
            self.journal.note("finished", done)
            self.finished |= {run.name for run in done}
            self._watcher.say(f"{program.name} is finished")
        if not rest:
            return
        if code in STOPPED:
            self.stopped |= {run.name for run in rest}
            self.journal.note("stopped", rest, code=code)
            self._watcher.say(
                f"{program.name} has stopped and goes on with the next start of the same command"
            )
            return
        lines = process.last_lines()
        lines = lines or [f"train.py ended with code {code} and said nothing"]
        if code == -signal.SIGKILL:
            lines.append("killed from outside (signal 9); out of memory, perhaps: dmesg says")
        if len(program.runs) > 1:  # only one of them may be at fault
            self.journal.note("split", rest, lines, code=code)
            self.waiting[:0] = [Program((run,)) for run in rest]
            self._watcher.say(f"{program.name} failed; its runs go on one by one")
            return
        self.journal.note("failed", rest, lines, code=code)
        self._watcher.say(f"{program.name} FAILED: {lines[-1]}")

    # Stopping

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._request_stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        """Let all runs save and stop; a second Ctrl-C ends them at once."""
        self._at_once = self._stop_requests > 0 and number == signal.SIGINT
        self._stop_requests += 1
