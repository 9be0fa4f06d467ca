"""Run folders at their edges: lost checkpoints, interrupted beginnings, dead sessions, locks."""

import errno
import fcntl
import os
import shutil

import pytest

import train
from common import checkpoint
from configs import loader
from configs.errors import ConfigError
from tests.training.test_train import SMALL, assert_same, newest, run
from training import loop
from training.due import Clock
from training.folder import claim_run_dir, run_configs, run_folders
from training.trainer import Trainer


class Killed(BaseException):
    """Stands for SIGKILL: no handler of ours catches it."""


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_at(monkeypatch, owner, name, *, when=lambda *args: True):
    """Let ``owner.name`` kill the program before it does anything, as soon as ``when`` says so."""
    original = getattr(owner, name)

    def deadly(*args, **kwargs):
        if when(*args):
            raise Killed(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, deadly)


def kill_run(run_dir, monkeypatch, owner, name, *extra, when=lambda *args: True):
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, when=when)
        with pytest.raises(Killed):
            run(run_dir, "dqn", *extra)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder, "dqn")
    return folder


@pytest.mark.parametrize("how", ["all of checkpoints", "each checkpoint"])
def test_a_run_whose_checkpoints_were_deleted_is_refused_and_left_alone(how, finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if how == "all of checkpoints":
        shutil.rmtree(folder / "checkpoints")
    else:
        for path in checkpoint.find(folder / "checkpoints", "step"):
            shutil.rmtree(path)
    before = contents(folder)
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "no checkpoint" in error and "delete" in error and error.count("\n") == 1
    assert contents(folder) == before


def test_checkpoints_that_may_not_be_read_are_an_error(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = contents(folder)
    scandir = os.scandir

    def forbidden(path="."):
        if os.fspath(path).endswith("checkpoints"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbidden)
        assert train.main([*SMALL["dqn"].split(), "--run-dir", str(folder)]) == 2
    assert "Permission denied" in capsys.readouterr().err
    assert contents(folder) == before


def test_a_run_killed_before_its_first_checkpoint_starts_anew(finished, tmp_path, monkeypatch):
    kill_run(tmp_path / "run", monkeypatch, Clock, "advance", when=lambda clock, _: clock.env_step >= 150)
    assert len((tmp_path / "run/evaluations.csv").read_text().splitlines()) > 2
    run(tmp_path / "run", "dqn")
    assert_same(newest(tmp_path / "run"), newest(finished))


def test_killed_around_the_first_checkpoint_then_deprived_of_it(tmp_path, monkeypatch, capsys):
    """There is no moment at which a run that has saved looks like one that has not, or the other way round."""
    every = ("--checkpoint.every", "70")
    folder = tmp_path / "run"
    is_final = lambda source, target: os.path.basename(target).startswith("step_")  # noqa: E731
    kill_run(folder, monkeypatch, os, "replace", *every, when=is_final)
    assert not checkpoint.find(folder / "checkpoints", "step")
    kill_run(folder, monkeypatch, checkpoint, "sync", *every, when=lambda path: path.name == "checkpoints"
             and bool(checkpoint.find(path, "step")))  # fmt: skip
    (saved,) = checkpoint.find(folder / "checkpoints", "step")
    shutil.rmtree(saved)
    assert train.main([*SMALL["dqn"].split(), *every, "--run-dir", str(folder)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_runs_killed_between_their_first_saves_start_anew(tmp_path, monkeypatch):
    every = ("--checkpoint.every", "70")
    config, _ = loader.load([*SMALL["dqn"].split(), "--num-agents", "2", *every])
    configs = run_configs([config])
    straight, killed = run_folders(configs, tmp_path / "straight"), run_folders(configs, tmp_path / "killed")
    loop.train_together(configs, straight)
    with monkeypatch.context() as patch:
        kill_at(patch, Trainer, "save", when=lambda trainer: trainer.index == 1)
        with pytest.raises(Killed):
            loop.train_together(configs, killed)
    assert [len(checkpoint.find(f / "checkpoints", "step")) for f in killed] == [1, 0]
    loop.train_together(configs, killed)
    for one, other in zip(straight, killed, strict=True):
        assert_same(newest(one), newest(other))


def test_a_run_that_has_saved_is_not_begun_anew_for_the_sake_of_one_that_has_not(
    tmp_path, monkeypatch, capsys
):
    config, _ = loader.load([*SMALL["dqn"].split(), "--num-agents", "2"])
    configs = run_configs([config])
    folders = run_folders(configs, tmp_path)
    loop.train(configs[0], folders[0])
    with monkeypatch.context() as patch:
        kill_at(patch, Clock, "advance")
        with pytest.raises(Killed):
            loop.train(configs[1], folders[1])
    before = contents(folders[0])
    with pytest.raises(ConfigError, match="must stand at one env step"):
        loop.train_together(configs, folders)
    assert contents(folders[0]) == before


@pytest.mark.parametrize("point", ["mkdir", "open", "replace", "write"])
def test_a_kill_or_a_full_disk_at_the_beginning_leaves_a_folder_that_can_be_used(
    point, finished, tmp_path, monkeypatch
):
    """At every call that touches the disk in turn, until one beginning goes through."""
    folder = tmp_path / "run"
    owner, name = {"mkdir": (os, "mkdir"), "open": (os, "open"), "replace": (os, "replace"),
                   "write": (os, "fsync")}[point]  # fmt: skip
    original = getattr(owner, name)
    config, _ = loader.load(SMALL["dqn"].split())
    for deadly in range(20):
        calls = 0

        def touch(*args, deadly=deadly, **kwargs):
            nonlocal calls
            calls += 1
            if calls == deadly + 1:
                raise Killed
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, touch)
            patch.setattr(Trainer, "start", lambda self: (_ for _ in ()).throw(Killed("begun")))
            with pytest.raises(Killed) as how:
                loop.train(config, folder)
        if str(how.value) == "begun":
            break
    assert deadly and str(how.value) == "begun"
    run(folder, "dqn")
    assert_same(newest(folder), newest(finished))


def test_config_yaml_is_written_in_one_step(tmp_path, monkeypatch):
    """What an interrupted write has left of it is not taken for a configuration."""
    folder = tmp_path / "run"
    kill_run(folder, monkeypatch, os, "replace", when=lambda _, target: str(target).endswith("config.yaml"))
    assert not (folder / "config.yaml").exists() and any(folder.iterdir())
    run(folder, "dqn")


def test_a_fresh_start_drops_the_best_agent_of_a_dead_session(finished, tmp_path, monkeypatch):
    """That one stood at a later step, so it would be taken for the newer one."""
    folder = tmp_path / "run"
    kill_run(folder, monkeypatch, Clock, "advance", when=lambda clock, _: clock.env_step >= 190)
    assert checkpoint.find(folder / "checkpoints", "best")
    kill_run(folder, monkeypatch, Clock, "advance", when=lambda clock, _: clock.env_step >= 30)
    assert not checkpoint.find(folder / "checkpoints", "best")
    run(folder, "dqn")
    names = [path.name for path in checkpoint.find(finished / "checkpoints", "best")]
    assert [path.name for path in checkpoint.find(folder / "checkpoints", "best")] == names


def test_deleting_files_lets_no_second_process_in(tmp_path):
    config, _ = loader.load(SMALL["dqn"].split())
    claim = claim_run_dir(tmp_path / "run", config)
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="another process"):
        claim_run_dir(tmp_path / "run", config)
    claim.close()


def test_a_folder_replaced_while_its_lock_was_waited_for_is_not_claimed_by_the_old_one(tmp_path, monkeypatch):
    config, _ = loader.load(SMALL["dqn"].split())
    lock, locked = fcntl.flock, []

    def replace_first(descriptor, operation):
        lock(descriptor, operation)
        if not locked:
            (tmp_path / "run").rename(tmp_path / "gone")
            (tmp_path / "run").mkdir()
        locked.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    claim = claim_run_dir(tmp_path / "run", config)
    assert locked[-1] == (tmp_path / "run").stat().st_ino != locked[0]
    claim.close()
