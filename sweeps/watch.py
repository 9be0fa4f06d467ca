"""What a person sees of a sweep: one live table on a terminal, otherwise a line for each event."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sweeps.programs import Program, kind_of
from sweeps.progress import RunProgress

if TYPE_CHECKING:
    from sweeps.experiment import PlannedRun
    from sweeps.queue import Queue

SHOW_SECONDS = 1.0
LINE_SECONDS = 60.0  # between two lines about the whole where there is no terminal
COLUMNS = ("run", "state", "step", "of", "steps/s", "return", "evaluation", "left")


class Row(NamedTuple):
    """What the table says of a run."""

    run: str
    state: str
    env_step: int | None
    total: int
    speed: float | None
    mean_return: float | None
    evaluation: float | None
    seconds_left: float | None

    def cells(self) -> list[str]:
        return [
            self.run,
            self.state,
            "" if self.env_step is None else f"{self.env_step:,}",
            f"{self.total:,}",
            _number(self.speed),
            _number(self.mean_return),
            _number(self.evaluation),
            duration(self.seconds_left) if self.state == "training" else "",
        ]


class Watch:
    """Watch: shows a queue at work.

    Args:
        console: where to; a terminal gets the table.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress: dict[str, RunProgress] = {}
        self._kinds: dict[str, Hashable] = {}  # of program, by run
        self._shown = 0.0
        self._said = time.monotonic()
        self._live: Live | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Watch]:
        """Show until the end of the block."""
        if not self._console.is_terminal:
            yield self
            return
        # Drawn by this very thread: another one would hold locks when a process is forked.
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self
        self._live = None

    def say(self, line: str) -> None:
        """Print a line above the table; whoever read the output may be gone."""
        with contextlib.suppress(OSError):
            moment = time.strftime("%H:%M:%S")
            self._console.print(f"{moment}  {line}", markup=False, highlight=False, soft_wrap=True)

    def show(self, queue: Queue, at_once: bool = False) -> None:
        """Show where all runs stand, at most once a second unless ``at_once``."""
        now = time.monotonic()
        if now - self._shown < SHOW_SECONDS and not at_once:
            return
        self._shown = now
        for program in queue.running:
            self._look_at(program, queue)
        if at_once:
            for seen in self._progress.values():
                seen.update()
        if self._live is not None:
            with contextlib.suppress(OSError):
                self._live.update(self._table(queue), refresh=True)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            self.say(self.summary(queue))

    def summary(self, queue: Queue) -> str:
        """Return one line about the whole."""
        failed = sum(run.name in queue.journal.failed for run in queue.runs)
        at_work = sum(len(program.runs) for program in queue.running)
        words = [f"{len(queue.finished)} of {len(queue.runs)} runs finished", f"{at_work} training"]
        words += [f"{failed} failed"] if failed else []
        words += [f"left {duration(self.seconds_left(queue))}"] if at_work and not queue.stopping else []
        words += (
            ["stopping, runs are being saved (Ctrl-C again: at once, without)"]
            if queue.stopping and at_work
            else []
        )
        return ", ".join(words)

    def seconds_left(self, queue: Queue) -> float | None:
        """Return how long the whole will take from here, by the speeds seen so far; None: not known yet."""
        speeds = self._speeds()
        if not speeds:
            return None
        usual = sum(speeds.values()) / len(speeds)
        each = []
        for program in (*queue.running, *queue.waiting):
            steps = [run.last_step - self._step_of(run) for run in program.runs]
            each.append(max(steps) / speeds.get(kind_of(program), usual))
        return max(max(each, default=0.0), sum(each) / max(queue.room, 1))

    def rows(self, queue: Queue) -> list[Row]:
        """Return the table: what trains, what failed, what waits, what is finished."""
        states: dict[str, str] = {}
        for program in queue.running:
            states |= {run.name: "saving" if queue.stopping else "training" for run in program.runs}
        states |= dict.fromkeys(queue.journal.failed, "FAILED")
        states |= dict.fromkeys(queue.stopped, "stopped")
        states |= dict.fromkeys(queue.finished, "finished")
        order = ("training", "saving", "FAILED", "stopped", "waiting", "finished")
        rows = []
        for run in queue.runs:
            state = states.get(run.name, "waiting")
            seen = self._progress.get(run.name)
            if seen is None and state != "waiting":
                seen = self._progress[run.name] = RunProgress(queue.folder / run.folder, run.last_step)
                seen.update()
            at_work = seen is not None and state in ("training", "saving")
            rows.append(
                Row(
                    run.name,
                    state,
                    run.last_step if state == "finished" else seen.env_step if seen else None,
                    run.last_step,
                    seen.speed if seen and at_work else None,
                    seen.mean_return if seen else None,
                    seen.evaluation if seen else None,
                    seen.seconds_left if seen else None,
                )
            )
        return sorted(rows, key=lambda row: order.index(row.state))

    def _table(self, queue: Queue) -> Table:
        table = Table(box=None, pad_edge=False, caption=self.summary(queue), caption_justify="left")
        for column in COLUMNS:
            words = column in ("run", "state")
            table.add_column(column, justify="left" if words else "right", overflow="fold", no_wrap=not words)
        rows = self.rows(queue)
        room = max(self._console.height - 5, 5)
        for row in rows[:room]:
            style = {"FAILED": "red", "training": "bold", "finished": "dim"}.get(row.state)
            table.add_row(*row.cells(), style=style)
        if len(rows) > room:
            table.add_row(f"and {len(rows) - room} more", "")
        return table

    def _look_at(self, program: Program, queue: Queue) -> None:
        for run in program.runs:
            self._kinds[run.name] = kind_of(program)
            if run.name not in self._progress:
                self._progress[run.name] = RunProgress(queue.folder / run.folder, run.last_step)
            self._progress[run.name].update()

    def _speeds(self) -> dict[Hashable, float]:
        """Env steps a second by kind of program, over all runs seen: one that has just begun says little."""
        steps: collections.Counter[Hashable] = collections.Counter()
        seconds: dict[Hashable, float] = collections.defaultdict(float)
        for name, kind in self._kinds.items():
            steps[kind] += self._progress[name].seen_steps
            seconds[kind] += self._progress[name].seen_seconds
        return {kind: count / seconds[kind] for kind, count in steps.items() if count and seconds[kind]}

    def _step_of(self, run: PlannedRun) -> int:
        seen = self._progress.get(run.name)
        return max(seen.env_step if seen else 0, run.branch_step or 0)


def duration(seconds: float | None) -> str:
    """Return a length of time as a person writes it: 40 s, 12 min, 3.5 h, 2.1 days."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.1f}"
