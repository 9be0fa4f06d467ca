"""Programs: what a sweep starts, ``train.py`` with one run, or with several seeds of a cell at once."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import loader
from configs.errors import ConfigError
from sweeps.experiment import PlannedRun
from sweeps.state import saved_steps
from training.folder import SEED, is_claimed


@dataclass(frozen=True, eq=False)
class Program:
    """Program: runs that one process of ``train.py`` trains, seeds ``first``, ``first + 1``, ... of one cell."""

    runs: tuple[PlannedRun, ...]

    @property
    def name(self) -> str:
        if len(self.runs) == 1:
            return self.runs[0].name
        return f"{self.runs[0].cell}/seeds{self.runs[0].seed}-{self.runs[-1].seed}".removeprefix("/")

    def argv(self, folder: Path, parents: Mapping[str, PlannedRun] | None) -> list[str]:
        """Return the words behind ``train.py``.

        Args:
            folder: of the experiment.
            parents: all runs by name; None: branches begin from nothing.
        """
        first = self.runs[0]
        words = list(first.flags)
        if len(self.runs) > 1:
            words += ["--num-agents", str(len(self.runs))]
        words += ["--run-dir", self._of_seeds(folder, first)]
        if parents and first.parent and first.branch_step is not None:
            below = Path(self._of_seeds(Path(), parents[first.parent])) / checkpoint_name(first.branch_step)
            words += ["--branch-from", str(_branch_home(folder, first, below) / below)]
        return words

    def _of_seeds(self, folder: Path, run: PlannedRun) -> str:
        """Return a run's folder, with the seed left open where there are several."""
        return str(folder / (run.folder if len(self.runs) == 1 else str(Path(run.cell) / f"seed{SEED}")))

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


def checkpoint_name(env_step: int) -> Path:
    """Return a checkpoint's place below its run's folder."""
    return Path("checkpoints") / f"step_{env_step:012d}"


def kind_of(program: Program) -> Hashable:
    """Return what decides a program's speed: programs of one kind are about as fast."""
    config, replay = program.runs[0].config, program.runs[0].config.replay
    return config.algo, config.env, config.agent, replay.batch_size, replay.replay_ratio, len(program.runs)


def make_programs(
    runs: Sequence[PlannedRun], folder: Path, stacked: Collection[str], alone: Collection[str]
) -> list[Program]:
    """Return programs for unfinished runs, in their order.

    Args:
        runs: unfinished ones.
        folder: of the experiment.
        stacked: names of runs to be trained beside the other seeds of their cell.
        alone: names of runs that must not be, for all that.
    """
    programs = []
    for members in _neighbours(runs, stacked, alone):
        if _stand_together(members, folder):
            programs.append(Program(tuple(members)))
        else:
            programs += [Program((run,)) for run in members]
    return programs


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
