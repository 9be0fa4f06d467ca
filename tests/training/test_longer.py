"""A finished run that is made longer, and checkpoints that are kept for good."""

import pytest

import train
from common import checkpoint
from configs import loader
from configs.errors import ConfigError
from tests.training.test_train import SMALL, assert_same, interrupted_at, newest, reset_records, run
from training import loop
from training.folder import run_folders

# No schedule of these depends on the length.
STEADY = {**SMALL, "dqn": SMALL["dqn"] + " --agent.epsilon-fraction 0 --env.num-envs 1"}
STEADY = {algo: words.replace("h1-walk", "Pendulum-v1") for algo, words in STEADY.items()}


def steady(folder, algo, total_steps):
    config, _ = loader.load([*STEADY[algo].split(), "--total-steps", str(total_steps)])
    loop.train(config, folder)
    return folder


@pytest.fixture(scope="module", params=["dqn", pytest.param("sac", marks=pytest.mark.slow)])
def whole(request, tmp_path_factory):
    return steady(tmp_path_factory.mktemp("whole"), request.param, 170), request.param


# in the first period, on a reset, at an odd step
@pytest.mark.parametrize(
    "length", [pytest.param(70, marks=pytest.mark.slow), 80, pytest.param(131, marks=pytest.mark.slow)]
)
def test_a_run_made_longer_equals_one_of_that_length(length, whole, tmp_path):
    folder, algo = whole
    steady(tmp_path, algo, length)
    steady(tmp_path, algo, 170)
    one, other = newest(tmp_path), newest(folder)
    for part in ("agent", "replay", "env"):
        assert_same(one[part], other[part])
    assert one["run"]["clock"] == other["run"]["clock"]
    assert reset_records(tmp_path) == reset_records(folder)
    assert [record["env_step"] for record in reset_records(tmp_path)] == [80, 160]


def test_twice_longer_by_a_little(tmp_path):
    for length in (80, 82, 170):
        steady(tmp_path / "often", "td3", length)
    steady(tmp_path / "once", "td3", 170)
    for part in ("agent", "replay", "env"):
        assert_same(newest(tmp_path / "often")[part], newest(tmp_path / "once")[part])


def test_a_finished_run_is_left_as_it_is(tmp_path):
    """The reset that waits at its end is not made by the same command."""
    steady(tmp_path, "td3", 160)
    before = reset_records(tmp_path)
    assert [record["env_step"] for record in before] == [80]
    steady(tmp_path, "td3", 160)
    assert reset_records(tmp_path) == before


def test_a_schedule_that_depends_on_the_length_is_named(tmp_path, capsys):
    run(tmp_path, "dqn", "--total-steps", "90")
    capsys.readouterr()
    run(tmp_path, "dqn", "--total-steps", "120")
    line = next(
        line for line in capsys.readouterr().out.splitlines() if "120 env steps instead of 90" in line
    )
    assert (
        "agent.epsilon_fraction 0.16" in line and "over 19 env steps from here on, over 14 until now" in line
    )
    with pytest.raises(ConfigError, match=r"holds a run with total_steps 120 \(asked for: 100\)"):
        run(tmp_path, "dqn", "--total-steps", "100")


@pytest.mark.parametrize(
    "stop_at", [pytest.param(90, marks=pytest.mark.slow), 100, pytest.param(None, marks=pytest.mark.slow)]
)
def test_a_checkpoint_kept_for_good_stays_and_changes_nothing(stop_at, tmp_path):
    """Also where the run was stopped at that very step, and where other steps are asked for when it is resumed."""
    every = ("--checkpoint.every", "30", "--checkpoint.at")
    if stop_at:
        with interrupted_at(stop_at):
            run(tmp_path / "kept", "dqn", *every, "100", "40")
    run(tmp_path / "kept", "dqn", *every, "100", "150", "40")
    run(tmp_path / "plain", "dqn")
    kept = checkpoint.find(tmp_path / "kept/checkpoints", "step")
    assert [checkpoint.step_of(path) for path in kept] == [42, 102, 150, 201]
    for part in ("agent", "replay", "env"):
        assert_same(newest(tmp_path / "kept")[part], newest(tmp_path / "plain")[part])
    run(tmp_path / "branch", "dqn", "--branch-from", str(kept[1]))
    for part in ("agent", "replay", "env"):
        assert_same(newest(tmp_path / "branch")[part], newest(tmp_path / "plain")[part])


def test_a_folder_for_each_seed(tmp_path, monkeypatch):
    words = [*SMALL["dqn"].split(), "--num-agents", "2", "--seed", "3"]
    monkeypatch.setattr(train, "_draw", lambda trainer: None)
    assert train.main([*words, "--run-dir", str(tmp_path / "a/seed{seed}")]) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["seed3", "seed4"]
    branch = [*words, "--total-steps", "260", "--branch-from", str(tmp_path / "a/seed{seed}")]
    assert train.main([*branch, "--run-dir", str(tmp_path / "b/{seed}")]) == 0
    assert "a/seed4" in (tmp_path / "b/4/config.yaml").read_text()
    config, _ = loader.load(words)
    with pytest.raises(ConfigError, match="several runs would share the folder"):
        run_folders([config, config], tmp_path / "{seed}")
