"""One call of ``sweep.py``: what it finds, what it does, what it says at the end."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from common.memory import available_memory
from configs.errors import ConfigError
from sweeps import plan as plans
from sweeps.checks import Demand, inspect
from sweeps.experiment import Experiment, PlannedRun
from sweeps.queue import PROCESS_BYTES, Limits, Machines, Queue
from sweeps.state import Journal
from sweeps.watch import Watch
from training.folder import Claim


class Session:
    """Session: an experiment, checked, and the machine it is to run on.

    Args:
        experiment: as its file says.
        runs: those of it that are asked for.
        folder: of the experiment.
        workers: programs at a time, or None for as many as fit.
        cluster: where the runs are made; None: on this machine.
        allow_import: see ``sweeps.checks.inspect``.

    Raises:
        ConfigError: something would fail later.
    """

    def __init__(
        self,
        experiment: Experiment,
        runs: Sequence[PlannedRun],
        folder: Path,
        workers: int | None,
        allow_import: bool,
        cluster: Machines | None = None,
    ) -> None:
        self.experiment = experiment
        self.runs = runs
        self.folder = folder
        self.cluster = cluster
        self.demands = inspect(experiment.runs, experiment.file, allow_import)
        self.stacked = _stacked(experiment, self.demands)
        self.limits = Limits(workers or 0, cluster.threads, None) if cluster else _limits(workers)

    def run(self, retry_failed: bool, accept_changes: bool) -> int:
        """Make the runs; returns the exit code."""
        claim = Claim(self.folder, "running a sweep")
        try:
            changed = self._settle_plan(accept_changes)
            journal = Journal(self.folder)
            journal.forget_failures(
                run.name
                for run in self.runs
                if retry_failed or run.name in changed or journal.has_other_flags(run)
            )
            watch = Watch()
            queue = self._queue(journal, watch)
            if self.cluster:
                for program in queue.waiting:
                    self.cluster.require_fit(program.name, queue.bytes_of(program))
            at_work = f"{queue.room} at a time, {self.limits.threads} thread" + (
                "s each" if self.limits.threads > 1 else " each"
            )
            watch.say(
                f"{self.experiment.name}: {len(self.runs)} runs, {len(queue.finished)} finished, {at_work}; "
                f"{self.folder}"
            )
            with watch.open():
                queue.run()
                watch.show(queue, at_once=True)
            return self._conclude(queue, watch)
        finally:
            claim.close()

    def estimate(self) -> int:
        """Say what the runs will take; returns the exit code."""
        from sweeps.estimate import estimate

        if (known := plans.read_plan(self.folder)) is not None:
            changes = plans.compare(self.folder, known, self.experiment.runs)
            if changes:
                print("\n".join([self._differs(), *changes.lines()]))
        for line in estimate(self._queue(Journal(self.folder), Watch())):
            print(line)
        return 0

    def _differs(self) -> str:
        return f"{self.experiment.file}, with the options in configs/, differs from what has run in {self.folder}:"

    def _queue(self, journal: Journal, watch: Watch) -> Queue:
        everything = {run.name: run for run in self.experiment.runs}
        return Queue(
            self.runs,
            everything,
            self.folder,
            self.demands,
            self.stacked,
            self.limits,
            journal,
            watch,
            self.cluster,
            across_resets=self.experiment.together == "resets",
        )

    def _settle_plan(self, accept_changes: bool) -> Collection[str]:
        """Compare the file with what ran, and write the plan; return the names of runs that have changed.

        Raises:
            ConfigError: they differ, and nobody has accepted it.
        """
        known = plans.read_plan(self.folder)
        if known is None and any(self.folder.glob("*.yaml")):
            raise ConfigError(
                f"{self.folder} is a run's folder, not an experiment's; choose another --output"
            )
        changes = plans.Changes()
        if known is not None:
            changes = plans.compare(self.folder, known, self.experiment.runs)
            if changes:
                print("\n".join([self._differs(), *changes.lines()]), file=sys.stderr)
                if not accept_changes:
                    raise ConfigError(
                        "nothing was started; --accept-changes goes on with the file as it is now, --output DIR begins "
                        "elsewhere"
                    )
                if aside := plans.set_aside(self.folder, list(changes.changed)):
                    print(f"what has changed was moved to {aside}", file=sys.stderr)
        plans.write_plan(self.folder, self.experiment)
        return {*changes.changed, *changes.longer}

    def _conclude(self, queue: Queue, watch: Watch) -> int:
        """Say how it ended; returns the exit code."""
        watch.say(watch.summary(queue))
        failed = [run for run in queue.runs if run.name in queue.journal.failed]
        for run in failed:
            watch.say(f"{run.name} failed:")
            for line in queue.journal.failed[run.name]:
                watch.say(f"    {line}")
        for name, parent in queue.blocked.items():
            watch.say(f"{name} cannot begin: {parent} has no checkpoint at the step where it branches")
        if queue.stopping or queue.stopped:
            watch.say("the same command goes on")
            return 130
        if failed:
            watch.say("--retry-failed tries failed runs again")
        return 1 if failed or queue.waiting else 0


def _stacked(experiment: Experiment, demands: dict[str, Demand]) -> set[str]:
    """Return the names of runs that are trained beside the other seeds of their cell."""
    if experiment.together == "none":
        return set()
    by_force = experiment.together in ("seeds", "resets")
    return {run.name for run in experiment.runs if by_force or demands[run.name].stacks}


def _limits(workers: int | None) -> Limits:
    cores = plans.cores()
    memory = available_memory(torch.device("cpu"))
    if workers is None:
        workers = cores if memory is None else max(1, min(cores, memory // PROCESS_BYTES))
    return Limits(workers, max(1, cores // workers), memory)
