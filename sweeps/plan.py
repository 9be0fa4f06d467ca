"""``plan.json``: what an experiment's folder holds, and how it differs from what its file asks for now."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import reading_run_file, replace_bytes, to_json
from configs import loader
from configs.errors import ConfigError
from configs.schema import Config
from sweeps.experiment import Experiment, PlannedRun
from training.folder import RESUMABLE_WITH_OTHER, differences

PACKAGES = ("torch", "gymnasium", "numpy", "mujoco", "ale-py")
ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes: how a file differs from what has run.

    Attributes:
        new: names of runs that the plan had not.
        gone: names of runs with a folder that the file no longer asks for.
        changed: by name, what is otherwise in runs with a folder; what was made does not count any more.
        longer: by name, the same of runs that only go on further.
    """

    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    changed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    longer: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed or self.longer)

    def lines(self) -> list[str]:
        """Return them for a person, at most five of a kind."""
        kinds = {
            "new": dict.fromkeys(self.new, ""),
            "no longer in the file, stay where they are": dict.fromkeys(self.gone, ""),
            "changed, to be made anew": self.changed,
            "longer, to be continued": self.longer,
        }
        lines = []
        for kind, runs in kinds.items():
            if not runs:
                continue
            lines.append(f"  {len(runs)} {kind}:")
            lines += [f"    {name}{': ' if words else ''}{words}" for name, words in list(runs.items())[:5]]
            lines += [f"    and {len(runs) - 5} more"] if len(runs) > 5 else []
        return lines


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Return what ``plan.json`` says; None where there is none; RunFileError if it is damaged."""
    path = folder / "plan.json"
    if not path.exists():
        return None
    with reading_run_file(path):
        plan = json.loads(path.read_text(encoding="utf-8"))
        for run in plan["runs"]:
            run["name"], run["folder"], run["flags"], run["parent"], run["branch_step"]  # what is read of it
        return dict(plan)


def write_plan(folder: Path, experiment: Experiment) -> None:
    """Write ``plan.json`` in one step."""
    plan = {
        "name": experiment.name,
        "title": experiment.title,
        "question": experiment.question,
        "file": experiment.file,
        "report": experiment.report,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "versions": _versions(),
        "hardware": hardware(),
        "runs": [_record(run) for run in experiment.runs],
    }
    try:
        replace_bytes(folder / "plan.json", (to_json(plan, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror}") from error


def compare(folder: Path, plan: Mapping[str, Any], runs: Sequence[PlannedRun]) -> Changes:
    """Return how ``runs`` differ from those of ``plan`` that have begun in ``folder``."""
    before = {run["name"]: run for run in plan["runs"]}
    begun = {name for name, run in before.items() if (folder / run["folder"] / "config.yaml").exists()}
    if not begun:
        return Changes()
    now = {run.name: run for run in runs}
    changed: dict[str, str] = {}
    longer: dict[str, str] = {}
    for name in (name for name in now if name in begun):  # parents before their branches
        run, earlier = now[name], before[name]
        if run.parent in changed:
            changed[name] = f"{run.parent}, from which it branches, is made anew"
            continue
        if (run.parent, run.branch_step) != (earlier["parent"], earlier["branch_step"]):
            changed[name] = (
                f"it branched from {earlier['parent']} at {earlier['branch_step']} (asked for: {run.parent} at "
                f"{run.branch_step})"
            )
            continue
        # The same flags are other options once a file in configs/ has changed.
        if tuple(earlier["flags"]) == run.flags and earlier.get("digest") == _digest(run.config):
            continue
        saved = _config_in(folder / earlier["folder"])
        ignored = ("branch_from", *RESUMABLE_WITH_OTHER)
        if saved is None:
            changed[name] = "its config.yaml is not valid any more"
        elif words := differences(saved, run.config, ignored):
            only_longer = saved.total_steps < run.config.total_steps and not differences(
                saved, run.config, (*ignored, "total_steps")
            )
            (longer if only_longer else changed)[name] = words
    return Changes(
        new=tuple(name for name in now if name not in before),
        gone=tuple(name for name in before if name in begun and name not in now),
        changed=changed,
        longer=longer,
    )


def set_aside(folder: Path, names: Sequence[str]) -> Path | None:
    """Move the folders of changed runs below ``earlier/<time>/``; return that folder, None if there was nothing."""
    if not names:
        return None
    aside = folder / "earlier" / time.strftime("%Y%m%d-%H%M%S")
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, aside / name)
    return aside


def hardware() -> str:
    """Return processor, cores and graphics cards in words."""
    words = [f"{_processor()}, {cores()} core{'s' if cores() > 1 else ''}"]
    try:
        import torch

        words += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except (ImportError, RuntimeError):
        pass
    return ", ".join(words)


def cores() -> int:
    """Return the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _record(run: PlannedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": run.folder,
        "stage": run.stage,
        "factors": run.factors,
        "seed": run.seed,
        "parent": run.parent,
        "branch_step": run.branch_step,
        "flags": list(run.flags),
        "digest": _digest(run.config),
    }


def _digest(config: Config) -> str:
    return hashlib.sha256(repr(sorted(loader.flatten_config(config).items())).encode()).hexdigest()


def _config_in(run_dir: Path) -> Config | None:
    try:
        return loader.read_config(run_dir / "config.yaml")
    except ConfigError:
        return None


def _commit() -> str | None:
    """Return the commit of this code, with ``+`` behind where files differ from it; None outside of a repository."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed.strip() else "")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.machine()
