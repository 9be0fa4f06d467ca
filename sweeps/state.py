"""How far the runs of an experiment have come: their checkpoints, and the journal of what the sweep did."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import checkpoint
from configs.errors import ConfigError
from sweeps.experiment import PlannedRun


def saved_steps(folder: Path) -> set[int]:
    """Return the env steps of a run's checkpoints."""
    return {checkpoint.step_of(path) for path in checkpoint.find(folder / "checkpoints", "step")}


def _evaluated(folder: Path) -> int:
    """Return the env step of the newest evaluation; -1 without one."""
    try:
        lines = (folder / "evaluations.csv").read_text().splitlines()
    except OSError:
        return -1
    step, _, rest = lines[-1].partition(",") if lines else ("", "", "")
    return int(step) if step.isdigit() and not rest.startswith("random_policy") else -1


class Journal:
    """Journal: ``state.jsonl``, a line for each start and each end of a run.

    Args:
        folder: of the experiment.

    Attributes:
        failed: by name of the run, the last lines of those whose last attempt failed.
        ended: names of runs that ended well; they count as finished without their checkpoints too.
        alone: names of runs that are not trained beside other seeds any more, since one of these failed.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.jsonl"
        self.failed: dict[str, list[str]] = {}
        self.ended: set[str] = set()
        self.alone: set[str] = set()
        self._flags: dict[str, list[str]] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    event = json.loads(line)
                    self._take(event["event"], event["runs"], event.get("lines", []))
                    self._flags |= event.get("flags", {})
                except (ValueError, KeyError, TypeError):  # cut off by a kill
                    continue

    def is_finished(self, run: PlannedRun, folder: Path) -> bool:
        """Return whether a run has taken all its steps, made its last evaluation and saved."""
        saved = run.name in self.ended or max(saved_steps(folder), default=-1) >= run.last_step
        return saved and _evaluated(folder) >= run.last_step

    def note(self, event: str, runs: Sequence[PlannedRun], lines: Sequence[str] = (), **more: Any) -> None:
        """Append an event: start, finished, stopped, failed or split."""
        names = [run.name for run in runs]
        flags = {"flags": {run.name: list(run.flags) for run in runs}} if event == "start" else {}
        self._take(event, names, list(lines))
        self._flags |= flags.get("flags", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"time": moment, "event": event, "runs": names, **more, "lines": list(lines), **flags}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write {self._path}: {error.strerror}") from error

    def has_other_flags(self, run: PlannedRun) -> bool:
        """Whether a run was started with other flags, or never."""
        return self._flags.get(run.name) != list(run.flags)

    def forget_failures(self, names: Iterable[str]) -> None:
        """Let runs be tried again."""
        for name in names:
            self.failed.pop(name, None)

    def _take(self, event: str, names: Sequence[str], lines: list[str]) -> None:
        for name in names:
            self.failed.pop(name, None)
            if event == "failed":
                self.failed[name] = lines
        if event == "finished":
            self.ended |= set(names)
        if event == "split":
            self.alone |= set(names)
