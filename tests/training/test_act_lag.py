"""--act-lag 1: environments step in a thread of their own while the updates of the step before are made."""

import os
import signal
import threading

import pytest
import torch

from agents.learner import Agents
from configs import loader
from tests.training.test_train import (
    SMALL,
    assert_same,
    newest,
    parameters,
    reset_records,
    run_interrupted,
    table,
)
from training import loop
from training.due import Clock
from training.folder import run_configs, run_folders

# An H1 takes seconds to build; the thread's test on it is marked slow.
ARGS = {**SMALL, "sac": SMALL["sac"].replace("h1-walk", "Pendulum-v1"), "h1": SMALL["sac"]}
ALGOS = ("sac", "dqn")
# Short runs: one reset, nothing measured on the way.
SHORT = "--act-lag 1 --total-steps 120 --reset.until 90 --log.metrics-every 0 --eval.around-resets false"


def run(folder, algo, *extra):
    config, _ = loader.load([*ARGS[algo].split(), *SHORT.split(), *extra])
    return loop.train(config, folder)


@pytest.fixture(scope="module")
def lagged(tmp_path_factory):
    """One uninterrupted run of each algorithm."""
    folders = {algo: tmp_path_factory.mktemp(algo) for algo in ALGOS}
    for algo, folder in folders.items():
        run(folder, algo)
    return folders


class _Sequential:
    """An executor without a thread: it works when a task is handed in (``early``), or when its result is asked for."""

    def __init__(self, early):
        self._early = early

    def submit(self, task, *args):
        done = [task(*args)] if self._early else []
        result = (lambda: done[0]) if self._early else (lambda: task(*args))
        return type("Future", (), {"result": staticmethod(result)})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize(
    ("algo", "early"), [("sac", False), ("dqn", True), pytest.param("h1", False, marks=pytest.mark.slow)]
)
def test_the_thread_shares_no_state_with_the_updates(algo, early, tmp_path, monkeypatch):
    """The same run bit for bit, whether environments step before the updates, after them, or meanwhile."""
    run(tmp_path / "threaded", algo)
    monkeypatch.setattr(loop, "ThreadPoolExecutor", lambda workers: _Sequential(early))
    run(tmp_path / "sequential", algo)
    assert_same(newest(tmp_path / "sequential"), newest(tmp_path / "threaded"))
    assert reset_records(tmp_path / "sequential") == reset_records(tmp_path / "threaded")


@pytest.mark.parametrize("lag", [0, 1])
def test_actions_are_chosen_one_block_of_updates_earlier_and_no_update_is_lost(lag, tmp_path, monkeypatch):
    seen, threads = {}, set()
    act, step = Agents.act, loop.make_training_env

    def note(self, obs, env_step):
        seen[env_step] = self.agents[0].update_step
        return act(self, obs, env_step)

    def watched_env(*args):
        env = step(*args)
        take = env.step
        env.step = lambda actions: (threads.add(threading.current_thread().name), take(actions))[1]
        return env

    monkeypatch.setattr(Agents, "act", note)
    monkeypatch.setattr(loop, "make_training_env", watched_env)
    argv = [*SMALL["dqn"].split(), "--total-steps", "90", "--act-lag", str(lag), "--reset", "none",
            "--replay.replay-ratio", "2", "--eval.every", "0"]  # fmt: skip
    loop.train(loader.load(argv)[0], tmp_path)
    # 60 warm-up steps, the last of which brings the first block due; 3 environments, 6 updates a step.
    for env_step, updates in seen.items():
        assert updates == max(0, 2 * (env_step - 60 + 3) - 6 * lag)
    assert len(seen) == 10
    assert (
        newest(tmp_path)["agent"]["update_step"] == 2 * 33
        and newest(tmp_path)["run"]["clock"]["updates"] == 66
    )
    assert ("MainThread" in threads) == (lag == 0)


@pytest.mark.parametrize("algo", ALGOS)
def test_resume_makes_the_updates_still_owed(algo, lagged, tmp_path, monkeypatch):
    saved = []
    load = Clock.load_state_dict

    def note(self, state):
        load(self, state)
        saved.append(self.owed)

    monkeypatch.setattr(Clock, "load_state_dict", note)
    monkeypatch.setitem(SMALL, algo, ARGS[algo])
    run_interrupted(tmp_path, algo, 80, *SHORT.split())
    assert len(saved) == 1 and saved[0] > 0
    assert_same(newest(tmp_path), newest(lagged[algo]))
    for name in ("evaluations.csv", "scalars.csv"):
        assert table(tmp_path / name) == table(lagged[algo] / name)
    assert reset_records(tmp_path) == reset_records(lagged[algo])


def test_a_branch_makes_the_updates_that_its_source_owed(tmp_path):
    reset_at = ("--reset.every", "0", "--reset.at", "102")
    run(tmp_path / "straight", "dqn", *reset_at)
    run(tmp_path / "source", "dqn", "--reset", "none", "--checkpoint.every", "100", "--checkpoint.keep", "9")
    source = tmp_path / "source/checkpoints/step_000000000102"
    run(tmp_path / "branch", "dqn", *reset_at, "--branch-from", str(source))
    for part in ("agent", "replay"):
        assert_same(newest(tmp_path / "branch")[part], newest(tmp_path / "straight")[part])


def test_an_error_in_the_thread_is_raised_in_the_loop(tmp_path, monkeypatch):
    build = loop.make_training_env

    def broken(*args):
        env = build(*args)
        take = env.step
        steps = iter(range(30))
        env.step = lambda actions: take(actions) if next(steps, None) is not None else 1 / 0
        return env

    monkeypatch.setattr(loop, "make_training_env", broken)
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "dqn")


def test_ctrl_c_during_the_overlap_saves_and_the_run_resumes(lagged, tmp_path, monkeypatch):
    build = loop.make_training_env

    def interrupting(*args):
        env = build(*args)
        take, steps = env.step, iter(range(30))

        def step(actions):
            if next(steps, None) == 29:
                os.kill(os.getpid(), signal.SIGINT)
            return take(actions)

        env.step = step
        return env

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_training_env", interrupting)
        assert run(tmp_path, "dqn").clock.env_step == 30 * 3
    run(tmp_path, "dqn")
    assert_same(newest(tmp_path), newest(lagged["dqn"]))


def test_several_agents_lag_like_one(lagged, tmp_path):
    config, _ = loader.load([*SMALL["dqn"].split(), *SHORT.split(), "--num-agents", "2"])
    configs = run_configs([config])
    folders = run_folders(configs, tmp_path)
    loop.train_together(configs, folders)
    one, other = newest(lagged["dqn"]), newest(folders[0])
    assert one["agent"]["update_step"] == other["agent"]["update_step"] > 0
    for key, value in parameters(lagged["dqn"]).items():
        torch.testing.assert_close(parameters(folders[0])[key], value, rtol=1e-3, atol=1e-4)
