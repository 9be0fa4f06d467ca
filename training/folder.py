"""One folder per run: its name, and the guard against mixing two runs in it."""

from __future__ import annotations

import dataclasses
import fcntl
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

from common import checkpoint
from configs import loader
from configs.errors import ConfigError
from configs.schema import Config

# Where a run is computed is not what it computes: these may change when it is resumed.
RESUMABLE_WITH_OTHER = (
    "device",
    "num_threads",
    "num_agents",
    "profile",
    "cuda_graphs",
    "compile",
    "env.atari.num_threads",
)
# What a branch may do otherwise than the run it starts from: when and how to reset, and what is only watched.
BRANCH_WITH_OTHER = (
    *RESUMABLE_WITH_OTHER,
    *("reset", "eval", "log", "checkpoint", "total_steps", "branch_from", "preset"),
)


def default_run_dir(config: Config) -> Path:
    """Return ``runs/<algo>-<env>-<reset>-<preset>-seed<seed>``, a branch with ``-branch`` behind."""
    env = config.env.id.replace("/", "_")
    name = f"{config.algo}-{env}-{config.reset.name}-{config.preset}-seed{config.seed}"
    return Path("runs") / (name + "-branch" if config.branch_from else name)


def starting_points(run_dirs: Sequence[Path], configs: Sequence[Config]) -> list[Path | None]:
    """Return the checkpoint from which each run of a program goes on; None for one that begins from nothing.

    It is the newest step at which all runs have one: a program stopped between the saves of two of its runs has
    older ones of both.

    Raises:
        ConfigError: the runs have no checkpoint of a common step, or ``branch_from`` cannot be followed.
    """
    saved = [
        {_step_of(path): path for path in checkpoint.find(run_dir / "checkpoints", "step")}
        for run_dir in run_dirs
    ]
    if not any(saved):
        return [_branch_source(config) if config.branch_from else None for config in configs]
    common = set.intersection(*map(set, saved))
    if not common:
        newest = [max(steps, default=0) for steps in saved]
        shown = ", ".join(f"{run_dir} at {step:,}" for run_dir, step in zip(run_dirs, newest, strict=True))
        raise ConfigError(
            f"runs trained together must stand at one env step, but there are {shown}; bring those behind to "
            f"{max(newest):,} one by one, or delete them all"
        )
    return [steps[max(common)] for steps in saved]


def _branch_source(config: Config) -> Path:
    """Return the checkpoint that ``branch_from`` names; ConfigError if there is none or its run differs too much."""
    given = Path(config.branch_from or "")
    saved = checkpoint.find(given / "checkpoints", "step")
    source = saved[-1] if saved else given
    if not (source.name.startswith("step_") and (source / "manifest.json").exists()):
        raise ConfigError(
            f"branch_from {given}: no checkpoint; give a run folder, or one of its checkpoints/step_<env step>"
        )
    saved_config = loader.read_config(source.resolve().parents[1] / "config.yaml")
    if other := _differences(saved_config, config, BRANCH_WITH_OTHER):
        raise ConfigError(
            f"branch_from {given}: a branch may differ in reset, eval, log, checkpoint and total_steps alone, "
            f"but that run has {other}"
        )
    if _step_of(source) >= config.total_steps:
        raise ConfigError(
            f"total_steps {config.total_steps} must exceed the {_step_of(source)} env steps at which {source} was saved"
        )
    return source


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _differences(saved: Config, asked: Config, ignored: Collection[str]) -> str:
    """Return the options in which two configurations differ, as words; ``ignored`` names options or sections."""
    old, new = loader.flatten_config(saved), loader.flatten_config(asked)
    other = [
        f"{key} {old.get(key)} (asked for: {new.get(key)})"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not {key, key.partition(".")[0]} & set(ignored)
    ]
    return ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")


def claim_run_dir(run_dir: Path, config: Config) -> IO[str]:
    """Create ``run_dir`` with ``config.yaml``, or make sure that it holds this very configuration.

    Returns:
        an open lock file; closing it lets another process continue the run.

    Raises:
        ConfigError: the folder holds another run or other files, or another process is training in it.
    """
    path = run_dir / "config.yaml"
    if path.exists():
        if other := _differences(loader.read_config(path), config, RESUMABLE_WITH_OTHER):
            raise ConfigError(
                f"run folder {run_dir} holds a run with {other}; choose another --run-dir, or delete it"
            )
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(f"{run_dir} exists and is no run folder (no config.yaml); choose another --run-dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write into run folder {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process is training in {run_dir}") from error
    if not path.exists():
        path.write_text(loader.dump(config))
    return lock


def run_configs(variants: Sequence[Config]) -> list[Config]:
    """Return the configurations of all runs: each variant with its ``num_agents`` seeds seed, seed + 1, ...

    Their ``num_agents`` is the number of runs in all.

    Raises:
        ConfigError: two variants would share a folder, or differ in more than what one program can follow.
    """
    first, number = variants[0], sum(variant.num_agents for variant in variants)
    names = [variant.reset.name for variant in variants]
    if len(set(names)) < len(names):
        raise ConfigError(f"--resets {' '.join(names)}: each name may stand there once")
    for variant in variants[1:]:
        if other := _differences(first, variant, ("reset",)):
            raise ConfigError(
                f"--resets {' '.join(names)}: they must differ in reset options alone, but {first.reset.name} has "
                f"{other.replace('asked for', variant.reset.name)}"
            )
    return [
        dataclasses.replace(variant, seed=variant.seed + index, num_agents=number)
        for variant in variants
        for index in range(variant.num_agents)
    ]


def run_folders(configs: Sequence[Config], run_dir: Path | None) -> list[Path]:
    """Return a folder for each run: ``run_dir`` itself for a single one, else a folder below it, or the defaults."""
    if run_dir is None:
        return [default_run_dir(config) for config in configs]
    return [run_dir] if len(configs) == 1 else [run_dir / default_run_dir(config).name for config in configs]
