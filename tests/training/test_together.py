"""--num-agents: several runs in one program, against the same runs one by one."""

import json

import pytest
import torch

import train
from common import checkpoint
from configs import loader
from tests.training.test_train import FAMILIES, SMALL, assert_same, interrupted_at, newest, table
from training import loop
from training.folder import run_configs, run_folders
from training.trainer import Trainer

# The H1's contacts turn a difference in the last digit into another episode; a pendulum does not.
SMALL = {**SMALL, "sac": SMALL["sac"].replace("h1-walk", "Pendulum-v1")}


def together(folder, algo, *extra):
    config, _ = loader.load([*SMALL[algo].split(), "--num-agents", "2", *extra])
    configs = run_configs([config])
    folders = run_folders(configs, folder)
    loop.train_together(configs, folders)
    return folders


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """Two runs trained together with their folders, and the algorithm."""
    return together(tmp_path_factory.mktemp("pair"), request.param), request.param


def test_each_run_equals_its_single_run(pair, tmp_path):
    folders, algo = pair
    for seed, folder in enumerate(folders):
        config, _ = loader.load([*SMALL[algo].split(), "--seed", str(seed)])
        loop.train(config, tmp_path / str(seed))
        one, other = newest(folder), newest(tmp_path / str(seed))
        assert one["agent"]["update_step"] == other["agent"]["update_step"] > 0
        for name in ("actor", "critic", "q"):
            for key, value in other["agent"].get(name, {}).items():
                assert (one["agent"][name][key] - value).norm() <= 1e-3 * value.norm() + 1e-6, f"{name} {key}"
        torch.testing.assert_close(one["replay"]["reward"], other["replay"]["reward"], rtol=1e-3, atol=1e-4)
        rows = [[r[:2] for r in table(f / "evaluations.csv")] for f in (folder, tmp_path / str(seed))]
        assert rows[0] == rows[1]
        resets = [json.loads(line) for line in (folder / "resets.jsonl").read_text().splitlines()]
        assert [r["env_step"] for r in resets] == [81, 162] if algo == "dqn" else [80, 160]
    first, second = (newest(folder)["agent"] for folder in folders)
    name = "q" if algo == "dqn" else "actor"
    assert any(not torch.equal(first[name][key], value) for key, value in second[name].items())


def test_checkpoints_hold_one_run_alone(pair):
    folders, _ = pair
    for folder in folders:
        saved = checkpoint.find(folder / "checkpoints", "step")[-1]
        state = torch.load(saved / "agent.pt", weights_only=True)
        tensors = [v for part in state.values() if isinstance(part, dict) for v in part.values()]
        tensors = [v for v in tensors if isinstance(v, torch.Tensor)]
        assert tensors and all(v.untyped_storage().nbytes() == v.nbytes for v in tensors)


def test_interrupted_and_resumed_equals_uninterrupted(pair, tmp_path):
    folders, algo = pair
    with interrupted_at(120):
        resumed = together(tmp_path, algo)
    assert newest(resumed[0])["env_step"] < newest(folders[0])["env_step"]
    together(tmp_path, algo)
    for folder, again in zip(folders, resumed, strict=True):
        for part in ("agent", "replay", "env"):
            assert_same(newest(folder)[part], newest(again)[part])


def test_a_program_killed_between_the_saves_of_its_runs_goes_on_from_their_common_step(
    pair, tmp_path, monkeypatch
):
    folders, algo = pair
    every = ("--checkpoint.every", "70")
    save = Trainer.save

    def die_before_the_second_run_saves(self):
        if self.index == 1 and self.clock.env_step >= 140:
            raise MemoryError("killed")
        save(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", die_before_the_second_run_saves)
        with pytest.raises(MemoryError):
            together(tmp_path, algo, *every)
    resumed = [folder for folder in sorted(tmp_path.iterdir())]
    steps = [{path.name for path in checkpoint.find(f / "checkpoints", "step")} for f in resumed]
    assert len(steps[0]) == 2 and len(steps[1]) == 1 and steps[1] < steps[0]
    together(tmp_path, algo, *every)
    for folder, again in zip(folders, resumed, strict=True):
        for part in ("agent", "replay", "env"):
            assert_same(newest(folder)[part], newest(again)[part])


def test_runs_at_different_steps_are_not_joined(tmp_path, capsys):
    config, _ = loader.load([*SMALL["dqn"].split(), "--num-agents", "2"])
    configs = run_configs([config])
    folders = run_folders(configs, tmp_path)
    loop.train(configs[1], folders[1])
    argv = [*SMALL["dqn"].split(), "--num-agents", "2", "--run-dir", str(tmp_path)]
    assert train.main(argv) == 2
    assert "must stand at one env step" in capsys.readouterr().err


def test_several_resets_branch_from_one_checkpoint(pair, tmp_path):
    _, algo = pair
    loop.train(
        loader.load([*SMALL[algo].split(), "--reset", "none", "--total-steps", "120"])[0], tmp_path / "source"
    )
    branch = [*SMALL[algo].split(), "--reset.at", "130", "--branch-from", str(tmp_path / "source")]
    argv = [*branch, "--resets", "none", "full", "--run-dir", str(tmp_path / "pair")]
    assert train.main(argv) == 0
    for name in ("none", "full"):
        loop.train(loader.load([*branch, "--reset", name])[0], tmp_path / name)
        (folder,) = (tmp_path / "pair").glob(f"*-{name}-*")
        one, other = newest(folder), newest(tmp_path / name)
        for key, value in other["agent"]["q" if algo == "dqn" else "critic"].items():
            network = one["agent"]["q" if algo == "dqn" else "critic"]
            torch.testing.assert_close(network[key], value, rtol=1e-3, atol=1e-4)
        count = len((folder / "resets.jsonl").read_text().splitlines())
        assert count == len((tmp_path / name / "resets.jsonl").read_text().splitlines())
        assert bool(count) == (name == "full")


def test_resets_that_change_the_agent_are_refused(capsys):
    assert train.main([*SMALL["dqn"].split(), "--resets", "fire", "l2_init"]) == 2
    assert "must differ in reset options alone" in capsys.readouterr().err
    assert train.main([*SMALL["dqn"].split(), "--resets", "fire", "fire"]) == 2
    assert "once" in capsys.readouterr().err


def test_a_reset_that_adds_parameters_may_run_beside_one_that_does_not(tmp_path):
    argv = [*SMALL["dqn"].split(), "--resets", "none", "plasticity_injection"]
    assert train.main([*argv, "--run-dir", str(tmp_path / "pair")]) == 0
    for name in ("none", "plasticity_injection"):
        loop.train(loader.load([*SMALL["dqn"].split(), "--reset", name])[0], tmp_path / name)
        (folder,) = (tmp_path / "pair").glob(f"*-{name}-*")
        one, other = newest(folder)["agent"]["q"], newest(tmp_path / name)["agent"]["q"]
        assert one.keys() == other.keys()
        for key, value in other.items():
            torch.testing.assert_close(one[key], value, rtol=1e-3, atol=1e-4)
    assert any(".start." in key for key in one)
