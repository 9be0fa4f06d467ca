"""From an experiment's file to the runs that it plans; docs/experiments.md describes the file."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import UNSAFE
from common.schedules import first_reached
from configs import loader
from configs.command_line import SELECTORS, flag_of
from configs.errors import ConfigError
from configs.schema import Config
from configs.yaml_files import read_nested
from sweeps.stages import (
    ARM,
    KEYS,
    REPORT_KEYS,
    SEED,
    TOGETHER,
    Stage,
    cells_of,
    check_keys,
    choice,
    mapping,
    nearest,
    read_stages,
    safe,
    text_of,
)


@dataclass(frozen=True)
class PlannedRun:
    """PlannedRun: one run of an experiment.

    Attributes:
        name: ``[<stage>/]<factor>=<value>,.../seed<seed>``, unique; also its folder below that of the experiment.
        stage: name of its stage.
        factors: what the grid varies, the seed apart, by key.
        parent: name of the run that it branches from, or None.
        branch_step: env step of the parent's checkpoint at which it begins, or None.
        flags: of ``train.py``, without those of its folder and its parent.
        config: what the flags make.
    """

    name: str
    stage: str
    factors: Mapping[str, Any]
    parent: str | None
    branch_step: int | None
    flags: tuple[str, ...]
    config: Config

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def folder(self) -> str:
        """Relative to the experiment's folder."""
        return self.name

    @property
    def cell(self) -> str:
        """What it shares with its other seeds: the name without the seed."""
        return self.name.rpartition("/")[0]

    @property
    def last_step(self) -> int:
        """Env step at which it ends: the first multiple of the environments that reaches ``total_steps``."""
        return first_reached(self.config.total_steps, self.config.env.num_envs)


@dataclass(frozen=True)
class Experiment:
    """Experiment: what the file says, and the runs that come of it in the order in which they are to be made."""

    name: str
    title: str
    question: str
    file: str
    together: str
    report: Mapping[str, Any]
    runs: tuple[PlannedRun, ...]


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file and plan its runs; nothing is started or written.

    Raises:
        ConfigError: a key, an option or a value that does not exist, or no runs at all.
    """
    content = read_nested(path)
    where = str(path)
    check_keys(content, KEYS, where)
    name = str(content.get("name", path.stem))
    if UNSAFE.search(name):
        raise ConfigError(f"{where}: name {name!r} must be letters, digits, '.', '_', '-', '+' or '='")
    together = choice(content.get("together", "auto"), TOGETHER, f"{where}: together")
    report = mapping(content.get("report"), f"{where}: report")
    check_keys(report, REPORT_KEYS, f"{where}: report")
    stages = read_stages(content, path)
    runs: dict[str, PlannedRun] = {}
    by_stage: dict[str, list[PlannedRun]] = {}
    for stage in stages:
        by_stage[stage.name] = []
        for run in _runs_of(stage, content, by_stage, len(stages) > 1):
            if run.name in runs:
                raise ConfigError(f"{where}: two runs would have the name {run.name}")
            runs[run.name] = run
            by_stage[stage.name].append(run)
    if not runs:
        raise ConfigError(f"{where}: no runs: the grid is empty, or exclude leaves nothing")
    _check_compared(report, runs.values(), f"{where}: report")
    return Experiment(
        name,
        str(content.get("title", name)),
        str(content.get("question", "")),
        where,
        together,
        report,
        tuple(_keeping_branch_points(runs)),
    )


def select(runs: Sequence[PlannedRun], pattern: str) -> list[PlannedRun]:
    """Return the runs whose names match, and those that they branch from.

    Args:
        runs: of an experiment.
        pattern: with ``*``, ``?`` or ``[``: of the whole name, as in a shell; else: a part of it.

    Raises:
        ConfigError: none matches.
    """
    wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    wanted = {run.name for run in runs if fnmatch.fnmatchcase(run.name, wild)}
    if not wanted:
        names = [run.name for run in runs]
        raise ConfigError(
            f"--only {pattern}: no such run{nearest(pattern, names) or f'; there is {names[0]}'}"
        )
    for run in reversed(runs):  # parents stand before their branches
        if run.name in wanted and run.parent:
            wanted.add(run.parent)
    return [run for run in runs if run.name in wanted]


# The runs


def _runs_of(
    stage: Stage, content: Mapping[str, Any], by_stage: Mapping[str, Sequence[PlannedRun]], prefixed: bool
) -> Iterator[PlannedRun]:
    configs: dict[str, Config] = {}
    for cell in cells_of(stage, content):
        factors = {key: value for key, value in cell.items() if key != SEED}
        arm = stage.arms.get(factors.get(ARM, ""), {})
        options = {**stage.base, **arm, **{key: value for key, value in factors.items() if key != ARM}}
        parts = [stage.name] if prefixed else []
        parts += [",".join(f"{key}={safe(value)}" for key, value in factors.items())] if factors else []
        cell_name = "/".join(parts)
        if files := options.get("config"):
            files = files if isinstance(files, list) else [files]
            options["config"] = [os.path.normpath(stage.home / str(file)) for file in files]
        flags = to_flags(options)
        if cell_name not in configs:
            configs[cell_name] = _load(flags, f"{stage.where}, cell {cell_name or 'alone'}", options)
        config = dataclasses.replace(configs[cell_name], seed=cell[SEED])
        parent, branch_step = _parent(stage, factors, config, by_stage)
        yield PlannedRun(
            "/".join([*parts, f"seed{config.seed}"]),
            stage.name,
            factors,
            parent.name if parent else None,
            branch_step,
            (*flags, "--seed", str(config.seed)),
            config,
        )


def _parent(
    stage: Stage, factors: Mapping[str, Any], config: Config, by_stage: Mapping[str, Sequence[PlannedRun]]
) -> tuple[PlannedRun | None, int | None]:
    """Return the run of the earlier stage with the same seed and shared factors, and the step to leave it at."""
    if stage.parent is None:
        return None, None
    shared = {key: value for key, value in factors.items() if key not in stage.own}
    fitting = [
        run
        for run in by_stage[stage.parent]
        if run.seed == config.seed
        and all(text_of(run.factors[key]) == text_of(shared[key]) for key in shared if key in run.factors)
    ]
    if len(fitting) != 1:
        asked = ", ".join(f"{key} {text_of(value)}" for key, value in {**shared, SEED: config.seed}.items())
        raise ConfigError(
            f"{stage.where}: each run needs one run of stage {stage.parent} to branch from, but {len(fitting)} fit "
            f"{asked}"
        )
    parent = fitting[0]
    step = parent.last_step if stage.at is None else first_reached(stage.at, parent.config.env.num_envs)
    if step > parent.last_step:
        raise ConfigError(
            f"{stage.where}: at {stage.at} lies beyond the end of {parent.name}, {parent.last_step}"
        )
    if step >= config.total_steps:
        raise ConfigError(
            f"{stage.where}: total_steps {config.total_steps} must exceed the {step} env steps at which it branches"
        )
    return parent, step


def _check_compared(report: Mapping[str, Any], runs: Iterable[PlannedRun], where: str) -> None:
    compared = report.get("compare", [])
    if not isinstance(compared, list):
        raise ConfigError(f"{where}: compare must be a list of factors, got {compared!r}")
    check_keys(
        [str(key) for key in compared],
        list({key: 0 for run in runs for key in run.factors}),
        f"{where}: compare",
    )


def _keeping_branch_points(runs: Mapping[str, PlannedRun]) -> Iterator[PlannedRun]:
    """Yield the runs, those that others leave on their way with the checkpoints that these need."""
    steps: dict[str, set[int]] = {}
    for run in runs.values():
        if run.parent and run.branch_step and run.branch_step < runs[run.parent].last_step:
            steps.setdefault(run.parent, set()).add(run.branch_step)
    for run in runs.values():
        if points := sorted(steps.get(run.name, ())):
            flags = (*run.flags, "--checkpoint.at", *map(str, points))
            run = dataclasses.replace(run, flags=flags, config=loader.load(flags)[0])
        yield run


def _load(flags: Sequence[str], where: str, options: Mapping[str, Any]) -> Config:
    for kind, valid in (("reset", loader.resets()), ("algo", None)):
        name = options.get(kind)
        bare = str(name).partition(":")[0]
        if valid and name is not None and bare not in valid:
            raise ConfigError(
                f"{where}: unknown {kind} {bare!r}{nearest(bare, valid)}; valid: {', '.join(valid)}"
            )
    try:
        return loader.load(flags)[0]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def to_flags(options: Mapping[str, Any]) -> list[str]:
    """Return options, by the names of ``train.py``'s flags, as words of a command line."""
    first = [key for key in (*SELECTORS, "config") if key in options]
    words: list[str] = []
    for key in [*first, *(key for key in options if key not in first)]:
        value = options[key]
        words += [
            flag_of(key),
            *([text_of(v) for v in value] if isinstance(value, list) else [text_of(value)]),
        ]
    return words
