"""One folder per run: its name, and the guard against mixing two runs in it."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO

from configs import loader
from configs.schema import Config

# Where a run is computed is not what it computes: these may change when it is resumed.
RESUMABLE_WITH_OTHER = ("device", "num_threads")


def default_run_dir(config: Config) -> Path:
    """Return ``runs/<algo>-<env>-<reset>-<preset>-seed<seed>``."""
    env = config.env.id.replace("/", "_")
    return Path("runs") / f"{config.algo}-{env}-{config.reset.name}-{config.preset}-seed{config.seed}"


def claim_run_dir(run_dir: Path, config: Config) -> IO[str]:
    """Create ``run_dir`` with ``config.yaml``, or make sure that it holds this very configuration.

    Returns:
        an open lock file; closing it lets another process continue the run.

    Raises:
        ConfigError: the folder holds another run or other files, or another process is training in it.
    """
    path = run_dir / "config.yaml"
    if path.exists():
        saved = loader.flatten_config(loader.read_config(path))
        asked = loader.flatten_config(config)
        other = [
            f"{key} {saved.get(key)} (asked for: {asked.get(key)})"
            for key in {**saved, **asked}
            if saved.get(key) != asked.get(key) and key not in RESUMABLE_WITH_OTHER
        ]
        if other:
            shown = ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")
            raise loader.ConfigError(
                f"run folder {run_dir} holds a run with {shown}; choose another --run-dir, or delete it"
            )
    elif run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise loader.ConfigError(
            f"{run_dir} exists and is no run folder (no config.yaml); choose another --run-dir"
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise loader.ConfigError(f"cannot write into run folder {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise loader.ConfigError(f"another process is training in {run_dir}") from error
    if not path.exists():
        path.write_text(loader.dump(config))
    return lock
