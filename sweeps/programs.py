"""Programs: what a sweep starts, ``train.py`` with one run, or with several seeds and resets at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from common.files import safe_name
from configs import loader
from configs.errors import ConfigError
from sweeps.experiment import PlannedRun
from sweeps.state import saved_steps
from training.folder import RESET, SEED, is_claimed


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Program: runs that one process of ``train.py`` trains.

    Seeds ``first``, ``first + 1``, ... of one cell, or of several that differ in the reset alone, cell after cell.
    """

    runs: tuple[PlannedRun, ...]

    @cached_property
    def resets(self) -> list[str]:
        """Of its cells, in their order."""
        return list(dict.fromkeys(run.config.reset.name for run in self.runs))

    @property
    def name(self) -> str:
        first, more = self.runs[0], len(self.resets) - 1
        if len(self.runs) == 1:
            return first.name
        cell = _with_reset(first, f"{safe_name(self.resets[0])}+{more}") if more else first.cell
        return f"{cell}/seeds{first.seed}-{self.runs[-1].seed}".removeprefix("/")

    def argv(self, folder: Path, parents: Mapping[str, PlannedRun] | None) -> list[str]:
        """Return the words behind ``train.py``.

        Args:
            folder: of the experiment.
            parents: all runs by name; None: branches begin from nothing.
        """
        first = self.runs[0]
        words = list(first.flags)
        if len(self.resets) > 1:
            words = [*_without_reset(first), "--resets", *self.resets]
        if (seeds := len(self.runs) // len(self.resets)) > 1:
            words += ["--num-agents", str(seeds)]
        cell = _with_reset(first, RESET) if len(self.resets) > 1 else first.cell
        words += ["--run-dir", str(folder / self._place(first, cell))]
        if parents and first.parent and first.branch_step is not None:
            parent = parents[first.parent]
            below = self._place(parent, parent.cell) / checkpoint_name(first.branch_step)
            words += ["--branch-from", str(_branch_home(folder, first, below) / below)]
        return words

    def _place(self, run: PlannedRun, cell: str) -> Path:
        """Return a run's folder, or that of all runs of ``cell`` with the seed left open."""
        return Path(run.folder) if len(self.runs) == 1 else Path(cell) / f"seed{SEED}"

    def is_ready(self, folder: Path, parents: Mapping[str, PlannedRun]) -> bool:
        """Return whether the checkpoints from which the runs branch are there."""
        return all(
            run.parent is None
            or run.branch_step is None
            or saved_steps(folder / run.folder)
            or (folder / parents[run.parent].folder / checkpoint_name(run.branch_step)).exists()
            for run in self.runs
        )

    def is_busy(self, folder: Path) -> bool:
        """Return whether another process, perhaps of a sweep that was killed, still trains one of the runs."""
        return any(is_claimed(folder / run.folder) for run in self.runs)


def _with_reset(run: PlannedRun, text: str) -> str:
    """Return the run's cell with ``text`` for the name of its reset; the cell itself where it does not say it."""
    parts = run.cell.rpartition("/")
    own = f"reset={safe_name(run.config.reset.name)}"
    named = [f"reset={text}" if part == own else part for part in parts[-1].split(",")]
    return "".join((*parts[:-1], ",".join(named)))


def _without_reset(run: PlannedRun) -> list[str]:
    """Return the run's words of a command line without those that name its reset."""
    words = list(run.flags)
    if "--reset" in words:
        at = words.index("--reset")
        del words[at : at + 2]
    return words


def checkpoint_name(env_step: int) -> Path:
    """Return a checkpoint's place below its run's folder."""
    return Path("checkpoints") / f"step_{env_step:012d}"


def kind_of(program: Program) -> Hashable:
    """Return what decides a program's speed: programs of one kind are about as fast."""
    config, replay = program.runs[0].config, program.runs[0].config.replay
    return config.algo, config.env, config.agent, replay.batch_size, replay.replay_ratio, len(program.runs)


def make_programs(
    runs: Sequence[PlannedRun],
    folder: Path,
    stacked: Collection[str],
    alone: Collection[str],
    across_resets: bool = False,
) -> list[Program]:
    """Return programs for unfinished runs, in their order.

    Args:
        runs: unfinished ones.
        folder: of the experiment.
        stacked: names of runs to be trained beside the other seeds of their cell.
        alone: names of runs that must not be, for all that.
        across_resets: whether programs that differ in the reset alone become one.
    """
    programs = []
    for members in _neighbours(runs, stacked, alone):
        if _stand_together(members, folder):
            programs.append(Program(tuple(members)))
        else:
            programs += [Program((run,)) for run in members]
    return _joined(programs, folder, alone) if across_resets else programs


def _joined(programs: Sequence[Program], folder: Path, alone: Collection[str]) -> list[Program]:
    """Return programs, those that differ in the reset alone as one where the first of them stands."""
    alike: dict[Hashable, list[Program]] = {}
    for program in programs:
        first = program.runs[0]
        named = RESET in _with_reset(first, RESET) and first.name not in alone
        parent = first.parent and first.parent.rpartition("/")[0]
        # A reset's file may set other options, too.
        options = repr(dataclasses.replace(first.config, reset=programs[0].runs[0].config.reset))
        of_all = (*_without_reset(first), options, len(program.runs), parent, first.branch_step)
        alike.setdefault(of_all if named else program, []).append(program)
    joined: list[Program] = []
    for members in alike.values():
        runs = [run for program in members for run in program.runs]
        joined += [Program(tuple(runs))] if _stand_together(runs, folder) else members
    return joined


def _neighbours(
    runs: Sequence[PlannedRun], stacked: Collection[str], alone: Collection[str]
) -> Iterator[list[PlannedRun]]:
    """Yield runs of one cell with seeds in a row, and others one by one."""
    members: list[PlannedRun] = []
    for run in runs:
        joins = (
            bool(members)
            and {members[-1].name, run.name} <= set(stacked) - set(alone)
            and run.cell == members[-1].cell
            and run.seed == members[-1].seed + 1
        )
        if members and not joins:
            yield members
            members = []
        members.append(run)
    if members:
        yield members


def _stand_together(members: Sequence[PlannedRun], folder: Path) -> bool:
    """Return whether runs have a common checkpoint, or none has any; see ``training.folder.starting_points``."""
    steps = [saved_steps(folder / run.folder) for run in members]
    return not any(steps) or bool(set.intersection(*steps))


def _branch_home(folder: Path, run: PlannedRun, below: Path) -> Path:
    """Return the folder of the experiment as ``branch_from`` of a begun run says it, for a run keeps its options."""
    try:
        stored = loader.read_config(folder / run.folder / "config.yaml").branch_from or ""
    except ConfigError:
        return folder
    tail = str(below).replace(SEED, str(run.seed))
    return Path(stored.removesuffix(tail)) if stored.endswith(tail) else folder
