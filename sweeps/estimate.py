"""What an experiment will take on this machine: memory, disk and hours, by earlier runs or a measurement of seconds."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import checkpoint
from configs import loader
from configs.errors import ConfigError
from sweeps.experiment import PlannedRun
from sweeps.processes import Process
from sweeps.programs import Program, kind_of
from sweeps.progress import RunProgress
from sweeps.queue import Queue
from sweeps.state import saved_steps
from sweeps.watch import duration

MEASURE_SECONDS = 20.0
START_SECONDS = 120.0  # that a program may take to its first update
MOST_KINDS = 6  # measured; others are taken to be as fast as these on average
SHOWN_CELLS = 30


def estimate(queue: Queue) -> list[str]:
    """Return what the queue's unfinished runs will take, as lines; measures speeds that no earlier run tells."""
    left = sum(len(program.runs) for program in queue.waiting)
    lines = [*_cells(queue), ""]
    lines.append(f"{len(queue.runs)} runs, {len(queue.finished)} finished, {left} to make")
    if failed := sum(run.name in queue.journal.failed for run in queue.runs):
        lines[-1] += f", {failed} failed"
    if not queue.waiting:
        return lines
    lines += [_memory(queue), _disk(queue)]
    return [*lines, *_hours(queue)]


def _cells(queue: Queue) -> Iterator[str]:
    seeds: dict[str, list[int]] = {}
    for run in queue.runs:
        seeds.setdefault(run.cell, []).append(run.seed)
    for cell, numbers in list(seeds.items())[:SHOWN_CELLS]:
        yield f"  {cell or '(one cell)'}  seeds {', '.join(map(str, numbers))}"
    if len(seeds) > SHOWN_CELLS:
        yield f"  and {len(seeds) - SHOWN_CELLS} more cells"


def _memory(queue: Queue) -> str:
    largest = sorted((queue.bytes_of(program) for program in queue.waiting), reverse=True)
    limit, chosen, taken = queue.limits, 0, 0
    for size in largest[: limit.workers]:
        if chosen and limit.memory is not None and taken + size > limit.memory:
            break
        chosen, taken = chosen + 1, taken + size
    there = "" if limit.memory is None else f" of {limit.memory / 1e9:.1f} GB available"
    words = (
        f"memory: at most {taken / 1e9:.1f} GB{there}, {chosen} program{'s' if chosen > 1 else ''} at a time"
    )
    if limit.memory is not None and largest[0] > limit.memory:
        words += (
            f"; the largest needs {largest[0] / 1e9:.1f} GB and DOES NOT FIT: lower replay.replay_capacity"
        )
    return words


def _disk(queue: Queue) -> str:
    """Checkpoints hold the replay buffer; the next one is written before the last is deleted."""
    needed = 0
    for program in queue.waiting:
        for run in program.runs:
            options = run.config.checkpoint
            needed += queue.replay_bytes_of(run) * (options.keep + len(options.at))
    one_more = sum(sorted((queue.replay_bytes_of(r) for p in queue.waiting for r in p.runs), reverse=True)[
        : queue.limits.workers
    ])  # fmt: skip
    existing = next(path for path in (queue.folder, *queue.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    words = f"disk: at most {(needed + one_more) / 1e9:.1f} GB of {free / 1e9:.1f} GB free"
    return words + ("; this DOES NOT FIT" if needed + one_more > free else "")


def _hours(queue: Queue) -> list[str]:
    kinds: dict[Any, list[Program]] = {}
    for program in queue.waiting:
        kinds.setdefault(kind_of(program), []).append(program)
    known = _earlier_speeds(queue)
    speeds: dict[Any, float] = {}
    lines = []
    for kind, programs in kinds.items():
        if kind in known:
            speeds[kind] = known[kind]
            lines.append(
                f"speed: {_words(programs[0])} {known[kind]:,.0f} env steps/s, as in earlier runs here"
            )
        elif len(speeds) < MOST_KINDS:
            copies = min(queue.limits.workers, len(programs))
            speeds[kind] = _measure(programs[0], queue, copies)
            lines.append(
                f"speed: {_words(programs[0])} {speeds[kind]:,.0f} env steps/s, measured for {MEASURE_SECONDS:.0f} s "
                f"with {copies} at a time, without evaluations"
            )
    usual = sum(speeds.values()) / len(speeds)
    seconds = [_steps_left(program, queue) / speeds.get(kind_of(program), usual) for program in queue.waiting]
    whole = max(max(seconds), sum(seconds) / queue.limits.workers)
    return [*lines, f"time: {duration(whole)} with {queue.limits.workers} at a time"]


def _words(program: Program) -> str:
    config, count = program.runs[0].config, len(program.runs)
    return f"{config.algo} on {config.env.id}{f', {count} runs as one program' if count > 1 else ''}:"


def _steps_left(program: Program, queue: Queue) -> int:
    return max(run.last_step - _standing(run, queue.folder) for run in program.runs)


def _standing(run: PlannedRun, folder: Path) -> int:
    return max((*saved_steps(folder / run.folder), run.branch_step or 0))


def _earlier_speeds(queue: Queue) -> Mapping[Any, float]:
    """Return the speeds of runs in this experiment's folder, everything included, by kind of program."""
    speeds: dict[Any, float] = {}
    for run in queue.runs:
        found = checkpoint.find(queue.folder / run.folder / "checkpoints", "step")
        if not found:
            continue
        try:
            together = loader.read_config(queue.folder / run.folder / "config.yaml").num_agents
            seconds = checkpoint.load(found[-1], ["run"])["run"]["record"]["seconds"]
        except (ConfigError, checkpoint.CheckpointError, KeyError):
            continue
        if seconds > 0:
            speeds[kind_of(Program((run,) * together))] = checkpoint.step_of(found[-1]) / seconds
    return speeds


def _measure(program: Program, queue: Queue, copies: int) -> float:
    """Return the env steps a second of a program while it learns, beside others like it.

    Raises:
        ConfigError: it fails, or does not come to its first update in time.
    """
    print(f"measuring {_words(program)} {MEASURE_SECONDS:.0f} s ...", file=sys.stderr, flush=True)
    config = program.runs[0].config
    starts = min(config.replay.learning_starts, max(2 * config.replay.batch_size, 200))
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        processes, seen = [], []
        try:
            for copy in range(copies):
                home = Path(temporary) / str(copy)
                home.mkdir()
                argv = [*program.argv(home, None), *_light(program, starts)]
                processes.append(Process(argv, home / "output.log", queue.limits.threads))
                seen.append(RunProgress(home / program.runs[0].folder, config.total_steps))
            _wait_for(processes, seen, starts + config.env.num_envs, START_SECONDS)
            begin = time.monotonic()
            first = [progress.env_step for progress in seen]
            while time.monotonic() < begin + MEASURE_SECONDS and all(p.poll() is None for p in processes):
                time.sleep(0.5)
            for progress in seen:
                progress.update()
            seconds = time.monotonic() - begin
            return max(sum(p.env_step for p in seen) - sum(first), 1) / copies / seconds
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()


def _wait_for(
    processes: Sequence[Process], seen: Sequence[RunProgress], env_step: int, most_seconds: float
) -> None:
    begin = time.monotonic()
    while any(progress.env_step < env_step for progress in seen):
        for process in processes:
            if process.poll():
                raise ConfigError(f"the measurement failed: {' '.join(process.last_lines()[-1:])}")
        if time.monotonic() > begin + most_seconds:
            raise ConfigError(f"the measurement came to no update within {most_seconds:.0f} s")
        time.sleep(0.2)
        for progress in seen:
            progress.update()


def _light(program: Program, starts: int) -> list[str]:
    """Return options under which a program learns soon and does nothing else."""
    config = program.runs[0].config
    words = f"--replay.learning-starts {starts} --log.every 100 --eval.every 0 --eval.episodes 1 --checkpoint.every 0"
    words += " --reset.every 0 --reset.at"
    return words.split() if config.reset.trigger.metric else [*words.split(), "--log.metrics-every", "0"]
