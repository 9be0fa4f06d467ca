"""From an experiment's file to the runs that it plans; docs/experiments.md describes the file."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.schedules import first_reached
from configs import loader
from configs.command_line import SELECTORS, flag_of
from configs.errors import ConfigError
from configs.schema import Config
from configs.yaml_files import flatten, read_nested

KEYS = (
    "name",
    "title",
    "question",
    "base",
    "grid",
    "arms",
    "exclude",
    "include",
    "stages",
    "together",
    "report",
)
STAGE_KEYS = ("name", "base", "grid", "arms", "total_steps", "branch_from", "at")
REPORT_KEYS = ("metric", "baseline", "title")
TOGETHER = ("seeds", "none", "auto")
# Options that decide where a run goes or what stands beside it, which is the sweep's affair, and what to write instead.
RESERVED = {
    "num_agents": "give grid.seed several values, and together: seeds",
    "branch_from": "use stages",
    "run_dir": "the sweep names the folders",
    "resets": "give grid.reset a list",
    "show_config": "use --dry-run",
}
_SELECTED = {path: flag for flag, (path, _) in SELECTORS.items()}  # "env.id" is written as "env"
_ARM, _SEED = "arm", "seed"
_UNSAFE = re.compile(r"[^\w.+=-]")


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


@dataclass(frozen=True)
class _Stage:
    """A stage as the file has it, with what it takes over from the top of the file."""

    name: str
    where: str
    home: Path  # folder of the experiment's file, to which the files of ``config`` are relative
    base: dict[str, Any]
    axes: dict[str, list[Any]]  # grid, then arm, then seed
    arms: dict[str, dict[str, Any]]
    parent: str | None
    at: int | None  # None: the parent's end


def read_experiment(path: Path) -> Experiment:
    """Read an experiment's file and plan its runs; nothing is started or written.

    Raises:
        ConfigError: a key, an option or a value that does not exist, or no runs at all.
    """
    content = read_nested(path)
    where = str(path)
    _check_keys(content, KEYS, where)
    name = str(content.get("name", path.stem))
    if _UNSAFE.search(name):
        raise ConfigError(f"{where}: name {name!r} must be letters, digits, '.', '_', '-', '+' or '='")
    together = _choice(content.get("together", "auto"), TOGETHER, f"{where}: together")
    report = _mapping(content.get("report"), f"{where}: report")
    _check_keys(report, REPORT_KEYS, f"{where}: report")
    stages = _stages(content, path)
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


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint at the valid name nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""


# The file


def _stages(content: Mapping[str, Any], path: Path) -> list[_Stage]:
    given = content.get("stages", [{"name": "main"}])
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{path}: stages must be a list of at least one stage, got {given!r}")
    stages: list[_Stage] = []
    for index, raw in enumerate(given):
        where = f"{path}: stage {index + 1}"
        raw = _mapping(raw, where)
        _check_keys(raw, STAGE_KEYS, where)
        name = str(raw.get("name", f"stage{index + 1}"))
        if _UNSAFE.search(name) or any(name == stage.name for stage in stages):
            raise ConfigError(f"{where}: name {name!r} must be a word of its own")
        stages.append(_stage(content, raw, name, [stage.name for stage in stages], path))
    return stages


def _stage(
    content: Mapping[str, Any], raw: Mapping[str, Any], name: str, earlier: Sequence[str], path: Path
) -> _Stage:
    where = f"{path}: stage {name}" if "stages" in content else str(path)
    base = _options(content.get("base"), f"{path}: base") | _options(raw.get("base"), f"{where}: base")
    if "total_steps" in raw:
        base["total_steps"] = raw["total_steps"]
    grid = _grid(content.get("grid"), f"{path}: grid") | _grid(raw.get("grid"), f"{where}: grid")
    seeds = grid.pop(_SEED, [base.pop(_SEED, 0)])
    arms = _arms(raw["arms"] if "arms" in raw else content.get("arms", []), where)
    both = [key for key in grid if key in base]
    both += [key for options in arms.values() for key in options if key in grid]
    if both:
        raise ConfigError(f"{where}: {both[0]} stands in the grid and beside it; leave one of them out")
    parent = raw.get("branch_from")
    if parent is not None and parent not in earlier:
        raise ConfigError(
            f"{where}: branch_from {parent!r} is no earlier stage{nearest(str(parent), earlier)}"
            f"; there {'are' if earlier else 'is none'}{' ' if earlier else ''}{', '.join(earlier)}"
        )
    at = raw.get("at", "end" if parent is not None else None)
    if at is not None and parent is None:
        raise ConfigError(f"{where}: at {at} needs branch_from, the stage whose runs it branches from")
    if at is not None and at != "end" and not (type(at) is int and at > 0):
        raise ConfigError(f"{where}: at must be an env step above 0, or end; got {at!r}")
    axes = {**grid, **({_ARM: list(arms)} if arms else {}), _SEED: seeds}
    return _Stage(name, where, path.parent, base, axes, arms, parent, at if type(at) is int else None)


def _options(raw: Any, where: str) -> dict[str, Any]:
    """Return options by the spelling of ``train.py``'s flags, without dashes: env, reset.every."""
    options: dict[str, Any] = {}
    for key, value in flatten(_mapping(raw, where), where).items():
        key = key.replace("-", "_")
        key = _SELECTED.get(key, key)
        if key in RESERVED:
            raise ConfigError(f"{where}: {key} cannot stand here; {RESERVED[key]}")
        if key in options:
            raise ConfigError(f"{where}: {key} stands there twice")
        if isinstance(value, dict):  # an empty section
            raise ConfigError(f"{where}: {key} holds no options")
        options[key] = value
    return options


def _grid(raw: Any, where: str) -> dict[str, list[Any]]:
    given = dict(_mapping(raw, where))
    seeds = {_SEED: _seeds(given.pop(_SEED), where)} if _SEED in given else {}
    grid = _options(given, where)
    for key, values in grid.items():
        if not isinstance(values, list):
            raise ConfigError(f"{where}: {key} must be a list of values, got {values!r}")
        if not values:
            raise ConfigError(f"{where}: {key} has no values, so there are no runs")
        texts = [_text(value) for value in values]
        for text in texts:
            if texts.count(text) > 1:
                raise ConfigError(f"{where}: {key} has the value {text} twice")
    return grid | seeds


def _seeds(raw: Any, where: str) -> list[int]:
    if isinstance(raw, dict):
        _check_keys(raw, ("count", "first"), f"{where}: seed")
        count, first = raw.get("count"), raw.get("first", 0)
        if type(count) is not int or type(first) is not int or count < 1 or first < 0:
            raise ConfigError(
                f"{where}: seed needs a count of at least 1 and a first of at least 0, got {raw}"
            )
        return list(range(first, first + count))
    seeds = raw if isinstance(raw, list) else [raw]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"{where}: seed must be different whole numbers from 0, or count and first; got {raw}"
        )
    return seeds


def _arms(raw: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where}: arms must be a list of named sets of options, got {raw!r}")
    arms: dict[str, dict[str, Any]] = {}
    for number, arm in enumerate(raw, 1):
        arm = dict(_mapping(arm, f"{where}: arm {number}"))
        name = arm.pop("name", None)
        if not isinstance(name, str) or not name or name in arms:
            raise ConfigError(f"{where}: arm {number} needs a name of its own, got {name!r}")
        arms[name] = _options(arm, f"{where}: arm {name}")
    return arms


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping, got {value!r}")
    return value


def _check_keys(given: Iterable[str], valid: Sequence[str], where: str) -> None:
    for key in given:
        if key not in valid:
            hint = nearest(key, valid) or f"; valid: {', '.join(valid)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


def _choice(value: Any, valid: Sequence[str], where: str) -> str:
    if value not in valid:
        raise ConfigError(f"{where} must be one of {', '.join(valid)}; got {value!r}")
    return str(value)


# The runs


def _runs_of(
    stage: _Stage, content: Mapping[str, Any], by_stage: Mapping[str, Sequence[PlannedRun]], prefixed: bool
) -> Iterator[PlannedRun]:
    configs: dict[str, Config] = {}
    for cell in _cells(stage, content):
        factors = {key: value for key, value in cell.items() if key != _SEED}
        arm = stage.arms.get(factors.get(_ARM, ""), {})
        options = {**stage.base, **arm, **{key: value for key, value in factors.items() if key != _ARM}}
        parts = [stage.name] if prefixed else []
        parts += [",".join(f"{key}={_safe(value)}" for key, value in factors.items())] if factors else []
        cell_name = "/".join(parts)
        if files := options.get("config"):
            files = files if isinstance(files, list) else [files]
            options["config"] = [os.path.normpath(stage.home / str(file)) for file in files]
        flags = to_flags(options)
        if cell_name not in configs:
            configs[cell_name] = _load(flags, f"{stage.where}, cell {cell_name or 'alone'}", options)
        config = dataclasses.replace(configs[cell_name], seed=cell[_SEED])
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


def _cells(stage: _Stage, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the values of every run by key: the product of all axes less ``exclude``, and ``include``."""
    grids = [stage.axes]
    for entry in _partial_cells(content.get("include", []), stage, f"{stage.where}: include"):
        grids.append(stage.axes | {key: [value] for key, value in entry.items()})
    excluded = _partial_cells(content.get("exclude", []), stage, f"{stage.where}: exclude")
    cells = []
    for number, axes in enumerate(grids):
        for values in itertools.product(*axes.values()):
            cell = dict(zip(axes, values, strict=True))
            out = any(all(_text(cell[key]) == _text(v) for key, v in each.items()) for each in excluded)
            if cell not in cells and (number or not out):
                cells.append(cell)
    return cells


def _partial_cells(raw: Any, stage: _Stage, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where} must be a list of partial cells, got {raw!r}")
    cells = []
    for entry in raw:
        given = dict(_mapping(entry, where))
        seed = {_SEED: given.pop(_SEED)} if _SEED in given else {}
        cell = _options(given, where) | seed
        _check_keys(cell, tuple(stage.axes), where)
        if not cell:
            raise ConfigError(f"{where}: an entry names no key")
        if cell.get(_ARM, next(iter(stage.arms), None)) not in (*stage.arms, None):
            raise ConfigError(f"{where}: unknown arm {cell[_ARM]!r}{nearest(str(cell[_ARM]), stage.arms)}")
        if type(cell.get(_SEED, 0)) is not int:
            raise ConfigError(f"{where}: seed must be a whole number, got {cell[_SEED]!r}")
        cells.append(cell)
    return cells


def _parent(
    stage: _Stage, factors: Mapping[str, Any], config: Config, by_stage: Mapping[str, Sequence[PlannedRun]]
) -> tuple[PlannedRun | None, int | None]:
    """Return the run of the earlier stage with the same seed and the same values, and the step to leave it at."""
    if stage.parent is None:
        return None, None
    fitting = [
        run
        for run in by_stage[stage.parent]
        if run.seed == config.seed
        and all(_text(run.factors[key]) == _text(factors[key]) for key in factors if key in run.factors)
    ]
    if len(fitting) != 1:
        asked = ", ".join(f"{key} {_text(value)}" for key, value in {**factors, _SEED: config.seed}.items())
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
        if valid and name is not None and name not in valid:
            raise ConfigError(
                f"{where}: unknown {kind} {name!r}{nearest(str(name), valid)}; valid: {', '.join(valid)}"
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
        words += [flag_of(key), *([_text(v) for v in value] if isinstance(value, list) else [_text(value)])]
    return words


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _safe(value: Any) -> str:
    return _UNSAFE.sub("_", _text(value)) or "none"
