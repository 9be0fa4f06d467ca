"""The training loop on an Atari game: resume, what evaluation may touch, memory that is announced or refused."""

import pytest
import torch

import agents
from configs import loader
from configs.errors import ConfigError
from envs import make_evaluation_env
from tests.training.test_train import assert_same, interrupted_at, newest, reset_records, table
from training import loop

SMALL = (
    "--algo dqn --env Asterix --reset fire --preset quick --total-steps 160 --reset.every 60 --reset.until 130 "
    "--replay.learning-starts 48 --replay.batch-size 4 --replay.replay-ratio 0.25 --replay.n-step 3 "
    "--replay.replay-capacity 100 --agent.target-update-period 5 --env.num-envs 3 --env.atari.max-frames 120 "
    "--eval.every 70 --eval.episodes 1 --eval.steps 0 --eval.num-envs 1 --eval.around-resets false "
    "--log.every 30 --log.metrics-every 50 --log.probe-size 8 --num-threads 1 --env.atari.num-threads 1"
)

pytestmark = pytest.mark.atari


def run(run_dir, *extra):
    config, _ = loader.load([*SMALL.split(), *extra])
    return loop.train(config, run_dir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asterix")
    run(folder)
    return folder


@pytest.mark.parametrize(
    "stop_at", [36, 105]
)  # in the warm-up; wrapped replay, games and lookaheads under way
def test_resume_equals_the_uninterrupted_run_bit_for_bit(stop_at, finished, tmp_path):
    with interrupted_at(stop_at):
        assert run(tmp_path).clock.env_step < 160
    assert run(tmp_path).clock.env_step >= 160
    assert_same(newest(tmp_path), newest(finished))
    for name in ("evaluations.csv", "scalars.csv"):
        assert table(tmp_path / name) == table(finished / name)
    assert reset_records(tmp_path) == reset_records(finished)


def test_updates_are_made_and_both_resets_happen(finished):
    state = newest(finished)
    assert (
        state["agent"]["update_step"] == (162 - 45) // 4
    )  # 54 rows of 3, of which the first 15 were warm-up
    assert [record["env_step"] for record in reset_records(finished)] == [60, 120]
    assert state["replay"]["rows_filled"] <= 33


def test_measuring_more_often_does_not_change_the_training(finished, tmp_path):
    run(
        tmp_path,
        "--eval.every",
        "40",
        "--eval.epsilon",
        "0.5",
        "--eval.steps",
        "90",
        "--log.metrics-every",
        "30",
        "--log.every",
        "7",
    )
    assert_same(newest(tmp_path)["agent"], newest(finished)["agent"])
    assert_same(newest(tmp_path)["replay"], newest(finished)["replay"])
    games = [(row[1], row[-1]) for row in table(tmp_path / "evaluations.csv")[1:]]
    # Games of 30 env steps: the random policy plays eval.episodes, the agent eval.steps.
    assert games[0] == ("random_policy", "1") and set(games[1:]) == {("periodic", "3")}


def paper_replay(*flags, device="cpu", num_runs=1):
    config, _ = loader.load(["--algo", "dqn", "--env", "Asterix", "--preset", "paper", *flags])
    env = make_evaluation_env(config, 1)
    spaces = (env.observation_space, env.action_space)
    env.close()
    return agents.make_replay(config, *spaces, 0.99, torch.device(device), num_runs)


def test_a_million_transitions_are_announced_before_they_take_memory(capsys, monkeypatch):
    monkeypatch.setattr(agents.make, "available_memory", lambda device: 8 * 10**9)
    replay = paper_replay()
    assert replay.nbytes <= 7.2e9
    assert "1,000,000 transitions will take 7.19 GB on cpu; 8.0 GB are available" in capsys.readouterr().out


def test_the_buffers_of_all_runs_of_a_program_are_counted(capsys, monkeypatch):
    monkeypatch.setattr(agents.make, "available_memory", lambda device: 15 * 10**9)
    paper_replay(num_runs=2)
    assert "2 x 1,000,000 transitions will take 14.38 GB on cpu" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"3 x 1,000,000 transitions need 21\.57 GB .* each would fit"):
        paper_replay(num_runs=3)


def test_a_buffer_beyond_the_available_memory_is_refused(monkeypatch):
    monkeypatch.setattr(agents.make, "available_memory", lambda device: 3 * 10**9)
    with pytest.raises(ConfigError, match=r"1,000,000 transitions need 7\.19 GB .* 3\.00 GB are available"):
        paper_replay()
