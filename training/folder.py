"""One folder per run: its name, and the guard against mixing two runs in it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import secrets
from collections.abc import Collection, Sequence
from pathlib import Path

from common import checkpoint
from common.files import UNSUPPORTED, replace_bytes, safe_name, sync, warn_once
from configs import loader
from configs.errors import ConfigError
from configs.schema import Config, DQNConfig

SEED, RESET = "{seed}", "{reset}"  # in --run-dir; the seed in branch_from too
# What a run writes as it goes on.
HISTORY = ("scalars.csv", "evaluations.csv", "resets.jsonl")
# The same where tasks change.
HISTORY_OF_TASKS = (*HISTORY, "tasks.csv")
# What an interrupted beginning may leave.
BEGUN = (".lock", "config.yaml.tmp", "checkpoints")
# Where a run is computed is not what it computes: these may change when it is resumed.
RESUMABLE_WITH_OTHER = (
    "device",
    "num_threads",
    "num_agents",
    "profile",
    "logger",
    "log.histograms",
    "log.video",
    "cuda_graphs",
    "compile",
    "env.atari.num_threads",
    "checkpoint.keep",
    "checkpoint.at",
)
# What a branch may do otherwise than the run it starts from: when and how to reset, and what is only watched.
BRANCH_WITH_OTHER = (
    *RESUMABLE_WITH_OTHER,
    *("reset", "eval", "log", "checkpoint", "total_steps", "branch_from", "preset"),
)


def default_run_dir(config: Config) -> Path:
    """Return ``runs/<algo>-<env>-<reset>-<preset>-seed<seed>``, a branch with ``-branch`` behind."""
    env = config.env.id.replace("/", "_")
    name = f"{config.algo}-{env}-{safe_name(config.reset.name)}-{config.preset}-seed{config.seed}"
    return Path("runs") / (name + "-branch" if config.branch_from else name)


def open_runs(
    run_dirs: Sequence[Path], configs: Sequence[Config], cleanup: contextlib.ExitStack
) -> Sequence[Path | None]:
    """Claim the folders of a program's runs until ``cleanup``; return what each goes on from, as ``starting_points``.

    Runs that begin are marked as ones that have saved nothing.
    """
    for config, run_dir in zip(configs, run_dirs, strict=True):
        cleanup.enter_context(contextlib.closing(claim_run_dir(run_dir, config)))
    for config, run_dir in zip(configs, run_dirs, strict=True):
        _make_longer(run_dir, config)
    sources, begins = starting_points(run_dirs, configs)
    if begins:
        session = secrets.token_hex(8)
        for config, run_dir in zip(configs, run_dirs, strict=True):
            begin_run(run_dir, config, session)
    return sources


def starting_points(
    run_dirs: Sequence[Path], configs: Sequence[Config]
) -> tuple[Sequence[Path | None], bool]:
    """Return the checkpoint from which each run of a program goes on, and whether they begin.

    Runs that begin have that of ``branch_from``, or None. Others go on from the newest step at which all have one: a
    program stopped between the saves of two of its runs has older ones of both. Those stopped between their first
    saves begin again.

    Raises:
        CheckpointError: a run has lost its checkpoints, or they may not be read.
        ConfigError: the runs have no checkpoint of a common step, or ``branch_from`` cannot be followed.
    """
    if saved := _saved_points(run_dirs):
        return saved, False
    return [_branch_source(config) for config in configs], True


def _saved_points(run_dirs: Sequence[Path]) -> list[Path] | None:
    """Return the checkpoint of each run at their newest common step; None: all begin, and nothing is lost by it."""
    folders = [run_dir / "checkpoints" for run_dir in run_dirs]
    saved = [{checkpoint.step_of(path): path for path in checkpoint.find(f, "step")} for f in folders]
    marks = [checkpoint.session_of(folder) for folder in folders]
    for run_dir, steps, mark in zip(run_dirs, saved, marks, strict=True):
        if not steps and mark is None and any((run_dir / name).exists() for name in HISTORY):
            raise checkpoint.CheckpointError(
                f"run folder {run_dir} holds a run's history, but no checkpoint from which it could go on; put its "
                "checkpoints/ back, choose another --run-dir, or delete the folder to begin anew"
            )
    # With a mark, checkpoints are what a beginning has not deleted yet.
    kept = [steps if mark is None else {} for steps, mark in zip(saved, marks, strict=True)]
    if not any(kept):
        return None
    common = set.intersection(*map(set, kept))
    if common:
        return [steps[max(common)] for steps in kept]
    firsts = {checkpoint.session_of(path) for steps in kept for path in steps.values()}
    if firsts <= {mark for mark in marks if mark}:
        return None
    newest = [max(steps, default=0) for steps in kept]
    shown = ", ".join(f"{run_dir} at {step:,}" for run_dir, step in zip(run_dirs, newest, strict=True))
    raise ConfigError(
        f"runs trained together must stand at one env step, but there are {shown}; bring those behind to "
        f"{max(newest):,} one by one, or delete them all"
    )


def _branch_source(config: Config) -> Path | None:
    """Return the checkpoint that ``branch_from`` names; None without one.

    Raises:
        ConfigError: there is none, or its run differs too much.
    """
    if not config.branch_from:
        return None
    given = Path(config.branch_from)
    saved = checkpoint.find(given / "checkpoints", "step")
    source = saved[-1] if saved else given
    if not (source.name.startswith("step_") and (source / "manifest.json").exists()):
        raise ConfigError(
            f"branch_from {given}: no checkpoint; give a run folder, or one of its checkpoints/step_<env step>"
        )
    saved_config = loader.read_config(source.resolve().parents[1] / "config.yaml")
    if other := differences(saved_config, config, BRANCH_WITH_OTHER):
        raise ConfigError(
            f"branch_from {given}: a branch may differ in reset, eval, log, checkpoint and total_steps alone, "
            f"but that run has {other}"
        )
    if (step := checkpoint.step_of(source)) >= config.total_steps:
        raise ConfigError(
            f"total_steps {config.total_steps} must exceed the {step} env steps at which {source} was saved"
        )
    return source


def differences(saved: Config, asked: Config, ignored: Collection[str]) -> str:
    """Return the options in which two configurations differ, as words; ``ignored`` names options or sections."""
    old, new = loader.flatten_config(saved), loader.flatten_config(asked)
    other = [
        f"{key} {old.get(key)} (asked for: {new.get(key)})"
        for key in {**old, **new}
        if old.get(key) != new.get(key) and not {key, key.partition(".")[0]} & set(ignored)
    ]
    return ", ".join(other[:5]) + (f" and {len(other) - 5} more" if len(other) > 5 else "")


class Claim:
    """Claim: the right to write into a run folder, until ``close`` or the end of the process.

    It is a lock on the folder itself, not on a file in it that someone might delete.

    Args:
        run_dir: made if missing.
        doing: what the one who has it is doing there, for the message to others.

    Raises:
        ConfigError: another process has it, or the folder cannot be made.
    """

    def __init__(self, run_dir: Path, doing: str = "training") -> None:
        self._doing = doing
        while True:
            try:
                made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
                run_dir.mkdir(parents=True, exist_ok=True)
                for folder in made:
                    with contextlib.suppress(PermissionError):  # one may write where one may not read
                        sync(folder.parent)
                self._descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
            except FileExistsError as error:
                raise ConfigError(
                    f"{run_dir} exists and is no run folder; choose another --run-dir"
                ) from error
            except OSError as error:
                raise ConfigError(f"cannot write into run folder {run_dir}: {error.strerror}") from error
            try:
                self._lock(run_dir)
                ours, there = os.fstat(self._descriptor), run_dir.stat()
            except FileNotFoundError:
                self.close()
                continue
            except BaseException:
                self.close()
                raise
            if os.path.samestat(ours, there):
                return
            self.close()  # someone has put another folder there since

    def _lock(self, run_dir: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another process is {self._doing} in {run_dir}") from error
        except OSError as error:
            # NFS locks only what is open for writing, which a folder cannot be.
            if error.errno not in (*UNSUPPORTED, errno.EBADF):
                raise ConfigError(f"cannot lock run folder {run_dir}: {error.strerror}") from error
            warn_once(f"the file system of {run_dir} cannot lock folders: nothing keeps a second process out")

    def close(self) -> None:
        """Let another process continue the run."""
        os.close(self._descriptor)


def is_claimed(run_dir: Path) -> bool:
    """Return whether another process trains in ``run_dir`` at this moment; changes nothing there."""
    try:
        descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def claim_run_dir(run_dir: Path, config: Config) -> Claim:
    """Claim ``run_dir``, made if missing, for a run of this very configuration, or for a longer one.

    Raises:
        ConfigError: the folder holds another run or other files, or another process is training in it.
    """
    claim = Claim(run_dir)
    try:
        path = run_dir / "config.yaml"
        if path.exists():
            saved = loader.read_config(path)
            longer = ("total_steps",) if config.total_steps > saved.total_steps else ()
            if other := differences(saved, config, (*RESUMABLE_WITH_OTHER, *longer)):
                raise ConfigError(
                    f"run folder {run_dir} holds a run with {other}; choose another --run-dir, or delete it"
                )
        elif any(entry.name not in BEGUN for entry in run_dir.iterdir()):
            raise ConfigError(
                f"{run_dir} exists and is no run folder (no config.yaml); choose another --run-dir"
            )
    except BaseException:
        claim.close()
        raise
    return claim


def _make_longer(run_dir: Path, config: Config) -> None:
    """Give a claimed run that was shorter its new length, and say what of it depends on the length."""
    path = run_dir / "config.yaml"
    if not path.exists() or (saved := loader.read_config(path)).total_steps == config.total_steps:
        return
    try:
        replace_bytes(path, loader.dump(dataclasses.replace(saved, total_steps=config.total_steps)).encode())
    except OSError as error:
        raise ConfigError(f"cannot write into run folder {run_dir}: {error.strerror}") from error
    words = [f"{run_dir}: {config.total_steps:,} env steps instead of {saved.total_steps:,}"]
    agent = config.agent
    if isinstance(agent, DQNConfig) and agent.epsilon_fraction:
        before, now = (round(agent.epsilon_fraction * each.total_steps) for each in (saved, config))
        words.append(
            f"agent.epsilon_fraction {agent.epsilon_fraction} counts in the length: epsilon falls over {now:,} env "
            f"steps from here on, over {before:,} until now"
        )
    if config.act_lag:
        words.append("with act_lag the updates after the old end come one action too early")
    print("; ".join(words), flush=True)


def begin_run(run_dir: Path, config: Config, session: str) -> None:
    """Make a claimed folder that of a run which has saved nothing; whatever a dead session has saved goes.

    Args:
        run_dir: claimed.
        config: of the run.
        session: the same for all runs of a program, and for no other program.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        checkpoint.begin(run_dir / "checkpoints", session)
        if not (run_dir / "config.yaml").exists():
            replace_bytes(run_dir / "config.yaml", loader.dump(config).encode())
    except OSError as error:
        raise ConfigError(f"cannot write into run folder {run_dir}: {error.strerror}") from error


def run_configs(variants: Sequence[Config]) -> list[Config]:
    """Return the configurations of all runs: each variant with its ``num_agents`` seeds seed, seed + 1, ...

    Their ``num_agents`` is the number of runs in all; ``{seed}`` in their ``branch_from`` is their seed.

    Raises:
        ConfigError: two variants would share a folder, or differ in more than what one program can follow.
    """
    first, number = variants[0], sum(variant.num_agents for variant in variants)
    names = [variant.reset.name for variant in variants]
    if len(set(names)) < len(names):
        raise ConfigError(f"--resets {' '.join(names)}: each name may stand there once")
    for variant in variants[1:]:
        if other := differences(first, variant, ("reset",)):
            raise ConfigError(
                f"--resets {' '.join(names)}: they must differ in reset options alone, but {first.reset.name} has "
                f"{other.replace('asked for', variant.reset.name)}"
            )
    configs = []
    for variant in variants:
        for seed in range(variant.seed, variant.seed + variant.num_agents):
            source = variant.branch_from and variant.branch_from.replace(SEED, str(seed))
            configs.append(dataclasses.replace(variant, seed=seed, num_agents=number, branch_from=source))
    return configs


def run_folders(configs: Sequence[Config], run_dir: Path | None) -> list[Path]:
    """Return a folder for each run: the defaults, or those that ``run_dir`` names.

    That is ``run_dir`` itself for a single run, else a folder below it; with ``{seed}`` or ``{reset}`` in it, that of
    each seed and reset.
    """
    if run_dir is None:
        return [default_run_dir(config) for config in configs]
    if SEED in str(run_dir) or RESET in str(run_dir):
        folders = [
            Path(str(run_dir).replace(SEED, str(config.seed)).replace(RESET, safe_name(config.reset.name)))
            for config in configs
        ]
        if len(set(folders)) < len(folders):
            raise ConfigError(f"--run-dir {run_dir}: several runs would share the folder {folders[0]}")
        return folders
    return [run_dir] if len(configs) == 1 else [run_dir / default_run_dir(config).name for config in configs]
