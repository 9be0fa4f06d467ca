"""A run folder, or a configuration file, from someone else is safe to look at: nothing in it is run."""

import shutil
import sys

import pytest

import evaluate
import train
from configs import loader
from envs import EnvError, make_vec
from tests.training.test_train import SMALL

MODULE = """
import pathlib

import gymnasium

pathlib.Path(__file__).with_suffix(".ran").touch()
gymnasium.register("{name}-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Name of a module that leaves a file when it is imported; and the file."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"foreign_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE.format(name=name))
    yield name, tmp_path / f"{name}.ran"
    sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign") / "run"
    assert train.main([*SMALL["dqn"].split(), "--total-steps", "90", "--run-dir", str(folder)]) == 0
    return folder


def claiming(trained, tmp_path, env_id):
    """A copy of the run that says it was trained in ``env_id``."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("id: CartPole-v1", f"id: {env_id}"))
    return folder


def test_evaluate_imports_no_module_because_a_run_names_it(module, trained, tmp_path, capsys):
    name, ran = module
    folder = claiming(trained, tmp_path, f"{name}:{name}-v0")
    assert evaluate.main([str(folder), "--episodes", "1"]) == 2
    error = capsys.readouterr().err
    assert name in error and "--allow-import" in error and error.count("\n") == 1
    assert not ran.exists()
    assert evaluate.main([str(folder), "--episodes", "1", "--allow-import"]) == 0
    assert ran.exists()


@pytest.mark.parametrize("spelling", ["{0}:X/{0}-v0", "X/{0}:{0}-v0", "{0}:{0}:{0}-v0", "{0}:CartPole-v1"])
def test_no_spelling_leads_to_gymnasiums_own_import(spelling, module, trained, tmp_path):
    name, ran = module
    folder = claiming(trained, tmp_path, spelling.format(name))
    assert evaluate.main([str(folder), "--episodes", "1"]) == 2
    assert not ran.exists()


def test_the_command_line_may_name_a_module_and_a_file_may_not(module, trained, tmp_path, capsys):
    name, ran = module
    env_id = f"{name}:{name}-v0"
    file = tmp_path / "theirs.yaml"
    file.write_text(f"algo: dqn\nenv:\n  id: {env_id}\n")
    argv = ["--total-steps", "90", "--run-dir", str(tmp_path / "out")]
    small = [word for word in SMALL["dqn"].replace("--env CartPole-v1", "").split()]
    assert train.main([*small, "--config", str(file), *argv]) == 2
    error = capsys.readouterr().err
    assert f"--env {env_id}" in error and error.count("\n") == 1 and not ran.exists()
    assert not (tmp_path / "out").exists()
    assert train.main([*small, "--env", env_id, *argv]) == 0
    assert ran.exists()


def test_a_branch_imports_nothing_that_its_source_names(module, trained, tmp_path, capsys):
    name, ran = module
    folder = claiming(trained, tmp_path, f"{name}:{name}-v0")
    argv = [*SMALL["dqn"].split(), "--branch-from", str(folder), "--run-dir", str(tmp_path / "out")]
    assert train.main(argv) == 2
    assert "a branch may differ" in capsys.readouterr().err and not ran.exists()


def test_python_that_has_imported_the_module_may_use_it(module):
    name, _ = module
    with pytest.raises(EnvError, match="not imported"):
        make_vec(f"{name}:{name}-v0")
    __import__(name)
    make_vec(f"{name}:{name}-v0").close()


def test_every_preset_of_ours_names_environments_without_a_module():
    for path in loader.CONFIG_DIR.rglob("*.yaml"):
        assert ":" not in str(loader.read_yaml(path).get("env.id", ""))
