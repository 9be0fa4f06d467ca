"""Trackers that get the same scalars as TensorBoard: Weights & Biases and Trackio, each an optional package."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs import loader
from configs.errors import ConfigError
from configs.schema import Config

PACKAGES = {"wandb": "wandb==0.31.0", "trackio": "trackio==0.43.0"}  # what requirements-loggers.txt pins
PROJECT = "fire-resets"  # unless WANDB_PROJECT names another


class Mirror:
    """Mirror: one run in a tracker, under the keys of ``scalars.csv`` and over env steps.

    Both trackers' runs have the same two methods. A resumed run goes on there; what a killed session had logged after
    its checkpoint appears twice, as neither tracker can take values back.

    Args:
        run: what the tracker's ``init`` returned.
        takes_step: whether its ``log`` keeps two rows of one step; else the env step is a column.
    """

    def __init__(self, run: Any, takes_step: bool) -> None:
        self._run = run
        self._takes_step = takes_step

    def log(self, values: Mapping[str, float], env_step: int) -> None:
        if self._takes_step:
            self._run.log(dict(values), step=env_step)
        else:
            self._run.log({**values, "env_step": env_step})

    def finish(self) -> None:
        """Wait until everything is written."""
        self._run.finish()


def require_mirror(configs: Sequence[Config]) -> None:
    """Raise ConfigError if ``logger`` cannot follow the runs of a program."""
    name = configs[0].logger
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(f"logger {name}: the package is not installed; pip install {PACKAGES[name]}")
    if name == "trackio" and len(configs) > 1:
        raise ConfigError(
            f"logger trackio follows one run at a time, got {len(configs)} in one program; take wandb, or train them "
            "one by one"
        )


def open_mirror(config: Config, run_dir: Path, begins: bool) -> Mirror | None:
    """Begin a run in the tracker that ``logger`` names, or go on with the folder's own; None without a tracker.

    Args:
        run_dir: the run's folder, which keeps the tracker's name of the run in ``<logger>-run``.
        begins: whether a new run is to be made in any case.

    Raises:
        ConfigError: the tracker refuses.
    """
    if config.logger == "none":
        return None
    note = run_dir / f"{config.logger}-run"
    known = None if begins or not note.is_file() else note.read_text().strip()
    options = {path: str(value) for path, value in loader.flatten_config(config).items()}
    begin = {"wandb": _wandb, "trackio": _trackio}[config.logger]
    try:
        run, identity = begin(run_dir, known, options)
    except Exception as error:  # each package has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"logger {config.logger}: {reason}") from error
    note.write_text(identity + "\n")
    return Mirror(run, takes_step=config.logger == "trackio")


def _wandb(run_dir: Path, known: str | None, options: Mapping[str, str]) -> tuple[Any, str]:
    import wandb  # type: ignore[import-not-found, unused-ignore]

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run_dir.name,
        dir=str(run_dir),
        id=known,
        resume="allow" if known else None,
        config=dict(options),
        reinit="create_new",  # several runs can be trained as one program
        settings=wandb.Settings(console="off"),
    )
    run.define_metric("*", step_metric="env_step")
    return run, run.id


def _trackio(run_dir: Path, known: str | None, options: Mapping[str, str]) -> tuple[Any, str]:
    import trackio  # type: ignore[import-not-found, unused-ignore]

    run = trackio.init(
        project=PROJECT,
        name=known or run_dir.name,
        resume="allow" if known else "never",
        config=dict(options),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    return run, run.name
