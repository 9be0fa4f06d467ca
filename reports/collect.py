"""From run folders, or an experiment's folder, to runs with their factors and curves in memory."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.files import RunFileError, reading_run_file
from configs.errors import ConfigError
from configs.yaml_files import read_yaml
from reports.factors import factors_of, show
from training.summary import evaluations, reset_records

PLAN = "plan.json"
RUN_FILES = ("config.yaml", "evaluations.csv", "scalars.csv", "resets.jsonl")
TASK_COLUMNS = (
    "return_second_half",
    "return_whole",
    "return_first_half",
    "return_on_previous",
    "steps_to_half_best",
    "episodes",
)


class Curve(NamedTuple):
    """Env steps, not falling, and values; float64 arrays (points,)."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        name: unique in the study.
        folder: where it is.
        seed: of the run; runs of equal seed are pairs.
        factors: what varies in the study, as text, seed not among it.
        stage: of the experiment; empty without one.
        parent: name of the run it branches from, if any.
        config: its options by dotted path.
        begins: env step at which it left its parent, else 0.
        evaluation: returns of evaluations; two points at a reset, before and after.
        training: mean return of the last training episodes, ``rollout/ep_rew_mean``.
        tasks: columns of ``tasks.csv`` by name, one value for each task; empty without the file.
        metrics: ``plasticity/<network>/<metric>`` by key.
        resets: records of ``resets.jsonl`` of this run itself, not its parent's.
        random_return: of the random policy before training.
    """

    name: str
    folder: Path
    seed: int
    factors: Mapping[str, str]
    stage: str
    parent: str | None
    config: Mapping[str, Any]
    begins: int
    evaluation: Curve
    training: Curve
    tasks: Mapping[str, np.ndarray]
    metrics: Mapping[str, Curve]
    resets: Sequence[Mapping[str, Any]]
    random_return: float | None

    @property
    def total_steps(self) -> int:
        """Env steps it is to take."""
        return int(self.config.get("total_steps", 0))

    @property
    def last_step(self) -> int:
        """Env step of the newest evaluation."""
        return int(self.evaluation.steps[-1]) if len(self.evaluation.steps) else 0

    @property
    def finished(self) -> bool:
        """Whether its last evaluation stands at its end."""
        return self.last_step >= self.total_steps > 0


@dataclass(frozen=True)
class Study:
    """The runs of a report, and where they come from.

    Attributes:
        title: of the report.
        question: that the experiment asks; may be empty.
        folder: of the experiment, or the nearest folder above all runs.
        runs: read.
        provenance: label and text of what made them: commit, versions, hardware, dates.
        commands: which make them again.
        hints: the experiment's ``report`` section.
        notes: what is missing, unfinished or confounded, in sentences.
    """

    title: str
    question: str
    folder: Path
    runs: Sequence[Run]
    provenance: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()
    hints: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def collect(sources: Sequence[Path]) -> Study:
    """Read run folders, folders that hold run folders, or one experiment.

    Args:
        sources: as typed: run folders, folders of them, an experiment's folder (with ``plan.json``), or its YAML file,
            whose folder is then ``runs/<name>``.

    Raises:
        ConfigError: a source is none of these, or there is no readable run in them.
        RunFileError: ``plan.json`` is damaged.
    """
    folders = [_experiment_folder(path) if path.suffix in (".yaml", ".yml") else path for path in sources]
    planned = [path for path in folders if (path / PLAN).is_file()]
    if planned and len(folders) > 1:
        raise ConfigError(f"{planned[0]} is an experiment: give it alone, or the folders of runs")
    return _from_plan(planned[0]) if planned else _from_folders(folders)


def _experiment_folder(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; give an experiment's YAML file or folder, or run folders")
    return Path("runs") / str(read_yaml(path).get("name", path.stem))


def _from_plan(folder: Path) -> Study:
    path = folder / PLAN
    with reading_run_file(path):
        plan = json.loads(path.read_text(encoding="utf-8"))
        rows = [
            (
                str(row["name"]),
                folder / row["folder"],
                {str(key): show(value) for key, value in row["factors"].items()},
                str(row.get("stage") or ""),
                row.get("parent"),
            )
            for row in plan["runs"]
        ]
        command = f"python sweep.py {plan['file']}" if plan.get("file") else ""
        provenance = {
            "experiment": str(plan.get("file") or plan.get("name") or folder),
            "planned": str(plan.get("created") or ""),
            "commit": str(plan.get("commit") or ""),
            "hardware": str(plan.get("hardware") or ""),
            "versions": ", ".join(f"{name} {version}" for name, version in plan.get("versions", {}).items()),
        }
        title, question = plan.get("title") or plan.get("name") or folder.name, plan.get("question") or ""
        hints = plan.get("report") or {}
    runs, notes = [], []
    missing = [name for name, where, *_ in rows if not (where / "evaluations.csv").is_file()]
    for name, where, factors, stage, parent in rows:
        if name in missing:
            continue
        try:
            runs.append(read_run(where, name, factors, stage, parent))
        except (RunFileError, ConfigError) as error:
            notes.append(f"Left out: {error}.")
    if missing:
        notes.insert(0, f"{len(missing)} of {len(rows)} planned runs have not begun: {_some(missing)}.")
    return _study(
        str(hints.get("title") or title), str(question), folder, runs, notes, provenance, [command], hints
    )


def _from_folders(sources: Sequence[Path]) -> Study:
    folders: list[Path] = []
    for source in sources:
        if not source.is_dir():
            raise ConfigError(f"{source}: no such folder; give run folders, or an experiment")
        below = sorted(path.parent for path in source.rglob("config.yaml"))
        found = [source] if (source / "config.yaml").is_file() else below
        if not found:
            raise ConfigError(f"{source} holds no run: no config.yaml in it or below it")
        folders += [path for path in found if path not in folders]
    above = _common_folder(folders)
    runs, notes = [], []
    for folder in folders:
        name = str(folder.relative_to(above)) if folder != above else folder.name
        try:
            runs.append(read_run(folder, name, {}, "", None))
        except (RunFileError, ConfigError) as error:
            notes.append(f"Left out: {error}.")
    factors, confounded = factors_of([run.config for run in runs])
    runs = [replace(run, factors=chosen) for run, chosen in zip(runs, factors, strict=True)]
    notes += [f"{words}: what differs between them is not one thing alone." for words in confounded]
    return _study(above.name or "Runs", "", above, runs, notes, {}, [], {})


def _study(
    title: str,
    question: str,
    folder: Path,
    runs: Sequence[Run],
    notes: list[str],
    provenance: Mapping[str, str],
    commands: Sequence[str],
    hints: Mapping[str, Any],
) -> Study:
    if not runs:
        raise ConfigError(f"{folder} holds no readable run{': ' + ' '.join(notes) if notes else ''}")
    if unfinished := [run.name for run in runs if not run.finished]:
        notes.append(
            f"{len(unfinished)} of {len(runs)} runs are unfinished; they are drawn, but left out of comparisons: "
            f"{_some(unfinished)}."
        )
    known = {label: text for label, text in provenance.items() if text}
    return Study(title, question, folder, runs, known, [c for c in commands if c], hints, notes)


def read_run(folder: Path, name: str, factors: Mapping[str, str], stage: str, parent: str | None) -> Run:
    """Read one run folder; it may still be written to.

    Raises:
        ConfigError, RunFileError: a file is missing or damaged.
    """
    config = read_yaml(folder / "config.yaml")
    branch = re.search(r"step_(\d+)/?$", str(config.get("branch_from") or ""))
    begins = int(branch.group(1)) if branch else 0
    rows = evaluations(folder)
    with reading_run_file(folder / "evaluations.csv"):
        random = [float(row["mean_return"]) for row in rows if row["when"] == "random_policy"]
        points = [
            (float(row["env_step"]), float(row["mean_return"]))
            for row in rows
            if row["when"] != "random_policy"
        ]
    scalars = _read_scalars(folder / "scalars.csv")
    with reading_run_file(folder / "config.yaml"):
        seed = int(config["seed"])
    return Run(
        name=name,
        folder=folder,
        seed=seed,
        factors=factors,
        stage=stage,
        parent=parent,
        config=config,
        begins=begins,
        evaluation=_curve(points),
        training=_curve(scalars.pop("rollout/ep_rew_mean", [])),
        tasks=_read_tasks(folder / "tasks.csv"),
        metrics={key: _curve(points) for key, points in scalars.items()},
        resets=[record for record in reset_records(folder) if record["env_step"] >= begins],
        random_return=random[0] if random else None,
    )


def _read_scalars(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Points of the training return and of the metrics of whole networks."""
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with reading_run_file(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if number == 1 or not line.endswith("\n"):  # the last one may be in mid-write
                continue
            step, key, value = line.rstrip("\n").split(",")
            if key == "rollout/ep_rew_mean" or (key.startswith("plasticity/") and key.count("/") == 2):
                curves[key].append((float(step), float(value)))
    return curves


def _read_tasks(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with reading_run_file(path), path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        steps = np.array([float(row["env_step"]) for row in rows])
        columns = {name: np.array([float(row.get(name) or "nan") for row in rows]) for name in TASK_COLUMNS}
    return {"env_step": steps, **{n: c for n, c in columns.items() if not np.isnan(c).all()}} if rows else {}


def _curve(points: Sequence[tuple[float, float]]) -> Curve:
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    return Curve(array[:, 0], array[:, 1])


def _common_folder(folders: Sequence[Path]) -> Path:
    first, *rest = [path.resolve() for path in folders]
    above = first if rest else first.parent
    while not all(path.is_relative_to(above) for path in rest) or above == first:
        above = above.parent
    for folder in [folders[0], *folders[0].parents]:  # as typed, so that the report shows it so
        if folder.resolve() == above:
            return folder
    return above


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
