"""Evaluations that would not end: the cap, and Ctrl-C in the middle of one, which must cost nothing."""

import contextlib
import signal
import time
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import train
from common import checkpoint
from configs import loader
from envs import make_vec
from tests.training.test_train import FAMILIES, SMALL, assert_same, newest, reset_records, run, table
from training import evaluation, loop
from training.evaluation import evaluate


class Corridor(gym.Env):
    """Ends after ``length`` moves to the right (action 1) in a row, never otherwise; each step pays 1."""

    def __init__(self, length=3):
        self.observation_space = spaces.Box(0, 100, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.place = self.place + 1 if action else 0
        return np.float32([self.place]), 1.0, self.place == self.length, False, {}


gym.register("FiveCorridor-v0", entry_point=Corridor, kwargs={"length": 5})


class Alternating:
    """Right for ever in environment 0, left for ever in environment 1."""

    def act_greedy(self, obs):
        return np.array([1, 0])


def test_episodes_without_an_end_are_cut_off_and_others_go_on():
    env = make_vec("FiveCorridor-v0", 2)
    result = evaluate(Alternating(), env, 6, seed=0, max_episode_steps=20, unfinished="count")
    assert result.returns == (5.0, 5.0, 5.0, 20.0, 20.0, 20.0) and result.lengths == (5, 5, 5, 20, 20, 20)
    assert result.cut_off == 3
    dropped = evaluate(Alternating(), env, 6, seed=0, max_episode_steps=20, unfinished="drop")
    assert dropped.returns == (5.0, 5.0, 5.0) and dropped.cut_off == 3

    class Left:
        def act_greedy(self, obs):
            return np.zeros(2, np.int64)

    none_ended = evaluate(Left(), env, 2, seed=0, max_episode_steps=20, unfinished="drop")
    assert none_ended.returns == (20.0, 20.0)


def test_an_environments_own_time_limit_is_not_shortened():
    env = make_vec("CartPole-v1", 1)

    class Balanced:
        def act_greedy(self, obs):
            return (obs[:, 2] + obs[:, 3] > 0).astype(np.int64)

    assert evaluate(Balanced(), env, 3, 0, max_episode_steps=20) == evaluate(Balanced(), env, 3, 0)


def test_an_environment_without_time_limit_trains(tmp_path, capsys):
    argv = [*SMALL["dqn"].replace("CartPole-v1", "CliffWalking-v1").split(), "--eval.max-episode-steps", "50",
            "--run-dir", str(tmp_path / "run")]  # fmt: skip
    assert train.main(argv) == 0
    assert "eval.max_episode_steps" in capsys.readouterr().out
    assert all(float(row[6]) <= 50 for row in table(tmp_path / "run/evaluations.csv")[1:])


@contextlib.contextmanager
def interrupted_in_evaluation(number, after_steps=3):
    """Ctrl-C in the middle of evaluation ``number`` of a program; counts from 1."""
    original, count = evaluation.evaluate, 0

    class Env:
        """The evaluation's environments, of which a step is a Ctrl-C."""

        def __init__(self, env):
            self._env, self._steps = env, 0

        def __getattr__(self, name):
            return getattr(self._env, name)

        def step(self, actions):
            self._steps += 1
            if self._steps == after_steps:
                signal.raise_signal(signal.SIGINT)
            return self._env.step(actions)

    def watched(policy, env, *args, **options):
        nonlocal count
        count += 1
        return original(policy, Env(env) if count == number else env, *args, **options)

    with mock.patch("training.trainer.evaluate", watched):
        yield


# The random policy; before and after the first reset; periodic; the same three again; at the end.
NUMBER_OF_EVALUATIONS = 8


@pytest.fixture(scope="module", params=FAMILIES)
def straight(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    run(folder, request.param, "--checkpoint.every", "30")
    assert len(table(folder / "evaluations.csv")) - 1 == NUMBER_OF_EVALUATIONS
    return request.param, folder


@pytest.mark.parametrize("number", range(1, NUMBER_OF_EVALUATIONS + 1))
def test_ctrl_c_within_an_evaluation_ends_it_and_the_resume_equals_the_uninterrupted_run(
    number, straight, tmp_path
):
    algo, folder = straight
    with interrupted_in_evaluation(number):
        stopped = run(tmp_path, algo, "--checkpoint.every", "30")
    assert not stopped.clock.finished or number == NUMBER_OF_EVALUATIONS
    assert len(table(tmp_path / "evaluations.csv")) - 1 == number - 1
    saved = checkpoint.find(tmp_path / "checkpoints", "step")
    assert bool(saved) == (number > 1)
    if saved:
        assert checkpoint.step_of(saved[-1]) == stopped.clock.env_step
    assert run(tmp_path, algo, "--checkpoint.every", "30").clock.finished
    one, other = newest(tmp_path), newest(folder)
    assert_same(one, other)
    for name in ("evaluations.csv", "scalars.csv"):
        assert table(tmp_path / name) == table(folder / name)
    assert reset_records(tmp_path) == reset_records(folder)
    names = [p.name for p in checkpoint.find(folder / "checkpoints", "best")]
    assert [p.name for p in checkpoint.find(tmp_path / "checkpoints", "best")] == names


def test_ctrl_c_within_every_evaluation_one_after_the_other(straight, tmp_path):
    algo, folder = straight
    for _ in range(NUMBER_OF_EVALUATIONS - 1):
        with interrupted_in_evaluation(2):  # the first of this session goes through
            run(tmp_path, algo, "--checkpoint.every", "30")
    run(tmp_path, algo, "--checkpoint.every", "30")
    assert_same(newest(tmp_path), newest(folder))
    assert table(tmp_path / "evaluations.csv") == table(folder / "evaluations.csv")
    assert table(tmp_path / "scalars.csv") == table(folder / "scalars.csv")


@pytest.mark.parametrize("number", [3, 4, 6])
def test_killed_while_the_resume_makes_up_for_an_evaluation(number, straight, tmp_path):
    """What that session wrote at the step of its checkpoint is not written twice."""
    algo, folder = straight
    with interrupted_in_evaluation(number):
        run(tmp_path, algo, "--checkpoint.every", "30")

    def die(self, transitions):
        raise MemoryError

    with mock.patch("training.due.Clock.advance", die), pytest.raises(MemoryError):
        run(tmp_path, algo, "--checkpoint.every", "30")
    run(tmp_path, algo, "--checkpoint.every", "30")
    assert_same(newest(tmp_path), newest(folder))
    for name in ("evaluations.csv", "scalars.csv"):
        assert table(tmp_path / name) == table(folder / name)
    assert reset_records(tmp_path) == reset_records(folder)


def test_a_trigger_that_asked_for_the_reset_is_remembered(tmp_path):
    options = ("--reset.every", "0", "--log.metrics-every", "30", "--reset.trigger.min-gap", "50",
               "--reset.trigger.metric", "plasticity/q/weight_norm", "--reset.trigger.threshold", "0.1")  # fmt: skip
    run(tmp_path / "straight", "dqn", *options)
    with interrupted_in_evaluation(2):  # before the first reset
        run(tmp_path / "stopped", "dqn", *options)
    run(tmp_path / "stopped", "dqn", *options)
    assert_same(newest(tmp_path / "stopped"), newest(tmp_path / "straight"))
    assert reset_records(tmp_path / "stopped") == reset_records(tmp_path / "straight") != []


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("algo", FAMILIES)
def test_ctrl_c_within_the_evaluations_of_a_branchs_first_reset(number, algo, tmp_path):
    run(tmp_path / "source", algo, "--reset", "none", "--total-steps", "120")
    config = ["--reset.every", "0", "--reset.at", "120", "--branch-from", str(tmp_path / "source")]
    run(tmp_path / "straight", algo, *config)
    with interrupted_in_evaluation(number):
        run(tmp_path / "stopped", algo, *config)
    assert not checkpoint.find(tmp_path / "stopped/checkpoints", "step")
    run(tmp_path / "stopped", algo, *config)
    assert_same(newest(tmp_path / "stopped"), newest(tmp_path / "straight"))
    assert table(tmp_path / "stopped/evaluations.csv") == table(tmp_path / "straight/evaluations.csv")


@pytest.mark.parametrize("number", [1, 2, 4, 5, 9])
def test_ctrl_c_within_an_evaluation_of_runs_together(number, tmp_path):
    from training.folder import run_configs, run_folders

    config, _ = loader.load([*SMALL["dqn"].split(), "--num-agents", "2"])
    configs = run_configs([config])
    folders = {name: run_folders(configs, tmp_path / name) for name in ("straight", "stopped")}
    loop.train_together(configs, folders["straight"])
    with interrupted_in_evaluation(number):
        loop.train_together(configs, folders["stopped"])
    loop.train_together(configs, folders["stopped"])
    for one, other in zip(*folders.values(), strict=True):
        assert_same(newest(one), newest(other))
        assert table(one / "evaluations.csv") == table(other / "evaluations.csv")
        assert table(one / "scalars.csv") == table(other / "scalars.csv")


def test_a_finished_run_is_not_evaluated_again(straight):
    algo, folder = straight
    before = (folder / "evaluations.csv").read_text()
    run(folder, algo, "--checkpoint.every", "30")
    assert (folder / "evaluations.csv").read_text() == before


def test_ctrl_c_in_an_endless_evaluation_ends_at_once(tmp_path):
    """CliffWalking's first evaluation goes on for minutes without a cap."""
    argv = [*SMALL["dqn"].replace("CartPole-v1", "CliffWalking-v1").split(), "--eval.max-episode-steps", "100000000",
            "--run-dir", str(tmp_path / "run")]  # fmt: skip
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 5)
    started = time.monotonic()
    assert train.main(argv) == 130
    assert time.monotonic() - started < 30
