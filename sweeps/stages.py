"""What stands in an experiment's file: its stages with their options, grids and arms, and the cells of a grid."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import UNSAFE, safe_name
from configs.command_line import SELECTORS
from configs.errors import ConfigError
from configs.yaml_files import flatten

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
REPORT_KEYS = ("metric", "baseline", "title", "compare")
TOGETHER = ("resets", "seeds", "none", "auto")
# Options that decide where a run goes or what stands beside it, which is the sweep's affair, and what to write instead.
RESERVED = {
    "num_agents": "give grid.seed several values, and together: seeds",
    "branch_from": "use stages",
    "run_dir": "the sweep names the folders",
    "resets": "give grid.reset a list, and together: resets",
    "show_config": "use --dry-run",
}
_SELECTED = {path: flag for flag, (path, _) in SELECTORS.items()}  # "env.id" is written as "env"
ARM, SEED = "arm", "seed"


@dataclass(frozen=True)
class Stage:
    """Stage: a stage as the file has it, with what it takes over from the top of the file."""

    name: str
    where: str
    home: Path  # folder of the experiment's file, to which the files of ``config`` are relative
    base: dict[str, Any]
    axes: dict[str, list[Any]]  # grid, then arm, then seed
    own: frozenset[str]  # axes that it does not share with other stages
    arms: dict[str, dict[str, Any]]
    parent: str | None
    at: int | None  # None: the parent's end


def read_stages(content: Mapping[str, Any], path: Path) -> list[Stage]:
    """Return the stages of a file's content, one of all of it where it names none; ConfigError if they do not fit."""
    given = content.get("stages", [{"name": "main"}])
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{path}: stages must be a list of at least one stage, got {given!r}")
    stages: list[Stage] = []
    for index, raw in enumerate(given):
        where = f"{path}: stage {index + 1}"
        raw = mapping(raw, where)
        check_keys(raw, STAGE_KEYS, where)
        name = str(raw.get("name", f"stage{index + 1}"))
        if UNSAFE.search(name) or any(name == stage.name for stage in stages):
            raise ConfigError(f"{where}: name {name!r} must be a word of its own")
        stages.append(_stage(content, raw, name, [stage.name for stage in stages], path))
    return stages


def _stage(
    content: Mapping[str, Any], raw: Mapping[str, Any], name: str, earlier: Sequence[str], path: Path
) -> Stage:
    where = f"{path}: stage {name}" if "stages" in content else str(path)
    base = _options(content.get("base"), f"{path}: base") | _options(raw.get("base"), f"{where}: base")
    if "total_steps" in raw:
        base["total_steps"] = raw["total_steps"]
    grid = _grid(content.get("grid"), f"{path}: grid") | _grid(raw.get("grid"), f"{where}: grid")
    seeds = grid.pop(SEED, [base.pop(SEED, 0)])
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
    own = frozenset(_grid(raw.get("grid"), where)) | ({ARM} if "arms" in raw else frozenset())
    axes = {**grid, **({ARM: list(arms)} if arms else {}), SEED: seeds}
    return Stage(name, where, path.parent, base, axes, own, arms, parent, at if type(at) is int else None)


def _options(raw: Any, where: str) -> dict[str, Any]:
    """Return options by the spelling of ``train.py``'s flags, without dashes: env, reset.every."""
    options: dict[str, Any] = {}
    for key, value in flatten(mapping(raw, where), where).items():
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
    given = dict(mapping(raw, where))
    seeds = {SEED: _seeds(given.pop(SEED), where)} if SEED in given else {}
    grid = _options(given, where)
    for key, values in grid.items():
        if not isinstance(values, list):
            raise ConfigError(f"{where}: {key} must be a list of values, got {values!r}")
        if not values:
            raise ConfigError(f"{where}: {key} has no values, so there are no runs")
        texts = [text_of(value) for value in values]
        for text in texts:
            if texts.count(text) > 1:
                raise ConfigError(f"{where}: {key} has the value {text} twice")
    return grid | seeds


def _seeds(raw: Any, where: str) -> list[int]:
    if isinstance(raw, dict):
        check_keys(raw, ("count", "first"), f"{where}: seed")
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
        arm = dict(mapping(arm, f"{where}: arm {number}"))
        name = arm.pop("name", None)
        if not isinstance(name, str) or not name or name in arms:
            raise ConfigError(f"{where}: arm {number} needs a name of its own, got {name!r}")
        arms[name] = _options(arm, f"{where}: arm {name}")
    return arms


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return what must be a mapping, nothing as an empty one; ConfigError if it is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a mapping, got {value!r}")
    return value


def check_keys(given: Iterable[str], valid: Sequence[str], where: str) -> None:
    """Raise ConfigError for a key that is not valid, with the nearest that is."""
    for key in given:
        if key not in valid:
            hint = nearest(key, valid) or f"; valid: {', '.join(valid)}"
            raise ConfigError(f"{where}: unknown key {key!r}{hint}")


def choice(value: Any, valid: Sequence[str], where: str) -> str:
    """Return a value that is one of a few; ConfigError if it is not."""
    if value not in valid:
        raise ConfigError(f"{where} must be one of {', '.join(valid)}; got {value!r}")
    return str(value)


def cells_of(stage: Stage, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the values of every run by key: the product of all axes less ``exclude``, and ``include``."""
    grids = [stage.axes]
    for entry in _partial_cells_of(content.get("include", []), stage, f"{stage.where}: include"):
        grids.append(stage.axes | {key: [value] for key, value in entry.items()})
    excluded = _partial_cells_of(content.get("exclude", []), stage, f"{stage.where}: exclude")
    cells = []
    for number, axes in enumerate(grids):
        for values in itertools.product(*axes.values()):
            cell = dict(zip(axes, values, strict=True))
            out = any(all(text_of(cell[key]) == text_of(v) for key, v in each.items()) for each in excluded)
            if cell not in cells and (number or not out):
                cells.append(cell)
    return cells


def _partial_cells_of(raw: Any, stage: Stage, where: str) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise ConfigError(f"{where} must be a list of partial cells, got {raw!r}")
    cells = []
    for entry in raw:
        given = dict(mapping(entry, where))
        seed = {SEED: given.pop(SEED)} if SEED in given else {}
        cell = _options(given, where) | seed
        check_keys(cell, tuple(stage.axes), where)
        if not cell:
            raise ConfigError(f"{where}: an entry names no key")
        if cell.get(ARM, next(iter(stage.arms), None)) not in (*stage.arms, None):
            raise ConfigError(f"{where}: unknown arm {cell[ARM]!r}{nearest(str(cell[ARM]), stage.arms)}")
        if type(cell.get(SEED, 0)) is not int:
            raise ConfigError(f"{where}: seed must be a whole number, got {cell[SEED]!r}")
        cells.append(cell)
    return cells


def text_of(value: Any) -> str:
    """Return a value as it stands on a command line and in names, a list with ``+`` between."""
    if isinstance(value, list):
        return "+".join(map(text_of, value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def safe(value: Any) -> str:
    """Return a value as part of a folder's name."""
    return safe_name(text_of(value)) or "none"


def nearest(word: str, valid: Iterable[str]) -> str:
    """Return a hint at the valid name nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
