"""Runs whose tasks change: what is logged, what the agent does at a change, exact resumption."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from configs import loader
from configs.errors import ConfigError
from tests.training.test_train import (
    assert_same,
    interrupted_at,
    newest,
    reset_records,
    table,
    table_of_everything,
)
from training import loop
from training.folder import run_configs, run_folders
from training.tasks import TASK_COLUMNS, WINDOW, TaskTally

ROOT = Path(__file__).parents[2]
EVERY, STEPS = 120, 300
COMMON = (
    f"--preset quick --total-steps {STEPS} --replay.learning-starts 60 --replay.batch-size 16 --reset none "
    f"--eval.every 90 --eval.episodes 1 --log.every 30 --log.metrics-every 100 --log.probe-size 32 --num-threads 1 "
    f"--env.num-envs 3 --env.change.every {EVERY} --env.change.replay clear --env.change.evaluate-previous true "
    "--env.change.standardize-steps 50 "
)
DQN = (
    COMMON
    + "--algo dqn --env CartPole-v1 --agent.hidden-widths 16 --env.change.kind drift --env.change.dims 5 "
    "--env.change.exploration restart --env.change.exploration-steps 60 --reset fire --reset.every 0 "
    "--reset.on-change true"
)
SAC = (
    COMMON
    + "--algo sac --env Pendulum-v1 --agent.actor-width 8 --agent.critic-width 8 --env.change.kind actions "
)
SAC += "--replay.replay-ratio 0.1 --log.metrics-every 0 --eval.every 150"
RUNS = {"dqn": DQN, "sac": SAC}


def config_of(argv, *extra):
    return loader.load([*argv.split(), *extra])[0]


def rows_of(folder, name="tasks.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder per algorithm with an uninterrupted run."""
    folders = {}
    for algo, argv in RUNS.items():
        folders[algo] = tmp_path_factory.mktemp(algo)
        loop.train(config_of(argv), folders[algo])
    return folders


@pytest.mark.parametrize("algo", RUNS)
def test_every_finished_task_has_a_row_and_scalars_of_the_same_names(algo, finished):
    rows = rows_of(finished[algo])
    assert list(rows[0]) == list(TASK_COLUMNS)
    assert [(int(row["env_step"]), int(row["task"])) for row in rows] == [(120, 0), (240, 1)]
    assert rows[0]["return_on_previous"] == "" and float(rows[1]["return_on_previous"]) != 0
    if algo == "sac":  # no episode of 200 steps ends in a task of 40 of each environment
        assert rows[0]["episodes"] == "0" and rows[0]["return_whole"] == ""
    else:
        assert int(rows[0]["episodes"]) > 1 and float(rows[0]["return_whole"]) > 5
    logged = {}
    for step, key, value in table_of_everything(finished[algo] / "scalars.csv"):
        if key.startswith("tasks/"):
            logged[int(step), key.removeprefix("tasks/")] = float(value)
    written = {
        (int(row["env_step"]), name): float(value)
        for row in rows
        for name, value in row.items()
        if name != "env_step" and value
    }
    assert logged == written


def test_the_keys_of_tasks_are_documented_and_nothing_else():
    documented = re.findall(
        r"^\| `(tasks/[^`]+)` \|", (ROOT / "docs/logged_keys.md").read_text(), re.MULTILINE
    )
    assert set(documented) == {f"tasks/{name}" for name in TASK_COLUMNS[1:]}


@pytest.mark.parametrize(
    "algo, stop_at",
    [
        ("dqn", EVERY),  # on a border
        pytest.param("dqn", 90, marks=pytest.mark.slow),
        pytest.param("dqn", 201, marks=pytest.mark.slow),
        ("sac", 201),  # within the second task
    ],
)
def test_resume_equals_the_uninterrupted_run_bit_for_bit(algo, stop_at, finished, tmp_path):
    with interrupted_at(stop_at):
        loop.train(config_of(RUNS[algo]), tmp_path)
    loop.train(config_of(RUNS[algo]), tmp_path)
    assert_same(newest(tmp_path), newest(finished[algo]))
    for name in ("evaluations.csv", "scalars.csv", "tasks.csv"):
        assert table(tmp_path / name) == table(finished[algo] / name)
    assert reset_records(tmp_path) == reset_records(finished[algo])


@pytest.mark.slow
def test_runs_of_one_program_equal_their_single_runs(finished, tmp_path):
    configs = run_configs([config_of(DQN, "--num-agents", "2")])
    folders = run_folders(configs, tmp_path / "pair")
    loop.train_together(configs, folders)
    for seed, folder in enumerate(folders):
        alone = finished["dqn"] if seed == 0 else tmp_path / "alone"
        if seed:
            loop.train(config_of(DQN, "--seed", "1"), alone)
        one, other = newest(folder), newest(alone)
        assert_same(one["env"]["change"], other["env"]["change"])
        assert one["env"]["steps"] == other["env"]["steps"] == STEPS
        torch.testing.assert_close(one["replay"]["obs"], other["replay"]["obs"], rtol=1e-3, atol=1e-3)
        assert [row["task"] for row in rows_of(folder)] == [row["task"] for row in rows_of(alone)]
        for key, value in other["agent"]["q"].items():
            torch.testing.assert_close(one["agent"]["q"][key], value, rtol=1e-3, atol=1e-4)


KEEP = (
    "--env.change.replay",
    "keep",
    "--env.change.exploration",
    "keep",
    "--reset",
    "full",
    "--reset.at",
    "100",
)


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    """A run of the same seed that keeps its replay, resets otherwise and is not told of changes."""
    folder = tmp_path_factory.mktemp("keeping")
    loop.train(config_of(DQN, *KEEP, "--reset.on-change", "false"), folder)
    return folder


def test_tasks_are_the_same_for_all_resets_of_a_seed_and_others_for_another_seed(finished, keeping):
    def maps(config, saved=None):
        """The maps of observations in the first three tasks, then where a run has ended."""
        env = loop.make_training_env(config)
        found = []
        for task in range(3):
            env.set_task(task)
            found.append(env._changing._matrix.copy())
        if saved is not None:
            env.load_state_dict(newest(saved)["env"])
            found.append(env._changing._matrix.copy())
        return np.stack(found)

    ours = maps(config_of(DQN), finished["dqn"])
    assert [json.loads(line)["reason"] for line in (keeping / "resets.jsonl").open()] == ["at"]
    np.testing.assert_array_equal(ours, maps(config_of(DQN, *KEEP), keeping))
    np.testing.assert_array_equal(ours[2], ours[3])  # both have reached the third
    assert not np.isclose(ours[:3], maps(config_of(DQN, "--seed", "1"))).any()


def test_the_oracle_resets_right_at_every_change_and_evaluates_the_task_that_ends(finished):
    records = [json.loads(line) for line in (finished["dqn"] / "resets.jsonl").read_text().splitlines()]
    assert [(each["env_step"], each["reason"]) for each in records] == [(120, "change"), (240, "change")]
    tasks = {
        int(step): float(value)
        for step, key, value in table_of_everything(finished["dqn"] / "scalars.csv")
        if key == "eval/task"
    }
    assert tasks == {90: 0, 120: 0, 180: 1, 240: 1, 270: 2, 300: 2}


def test_replay_is_cleared_and_exploration_restarts(finished):
    seen = {"rollout/replay_size": {}, "rollout/exploration_rate": {}}
    for step, key, value in table_of_everything(finished["dqn"] / "scalars.csv"):
        if key in seen:
            seen[key][int(step)] = float(value)
    # Logged before the change at 120 and at 240.
    assert seen["rollout/replay_size"] == {
        step: (step - 1) % EVERY + 1 for step in (30, 60, 90, 120, 150, 180, 210, 240, 270, 300)
    }
    rates = seen["rollout/exploration_rate"]
    assert rates[150] == pytest.approx((1 + 0.04) / 2) and rates[180] == pytest.approx(0.04) == rates[210]
    assert rates[120] == rates[240] == 1.0  # of the step to come
    saved = newest(finished["dqn"])["replay"]
    assert saved["rows_filled"] == 60 // 3


def test_what_is_kept_is_kept(keeping):
    seen = {"rollout/replay_size": {}, "rollout/exploration_rate": {}}
    for step, key, value in table_of_everything(keeping / "scalars.csv"):
        if key in seen:
            seen[key][int(step)] = float(value)
    assert seen["rollout/replay_size"] == {step: step for step in range(30, STEPS + 1, 30)}
    assert max(seen["rollout/exploration_rate"][step] for step in range(120, STEPS, 30)) < 0.041
    state = newest(keeping)["replay"]
    ends = (state["terminated"] | state["truncated"]).numpy()
    assert ends[39].all() and ends[79].all()  # rows of three environments


def test_evaluating_the_task_before_does_not_change_the_training(finished, tmp_path):
    loop.train(config_of(DQN, "--env.change.evaluate-previous", "false"), tmp_path)
    assert_same(newest(tmp_path)["agent"], newest(finished["dqn"])["agent"])
    assert_same(newest(tmp_path)["replay"], newest(finished["dqn"])["replay"])
    assert [row["return_on_previous"] for row in rows_of(tmp_path)] == ["", ""]


def test_a_branch_at_a_border_resets_on_what_was_stored_and_goes_on_as_one_run(finished, tmp_path):
    none = ("--reset", "none", "--reset.on-change", "false")
    loop.train(
        config_of(DQN, *none, "--checkpoint.every", "120", "--checkpoint.keep", "9"), tmp_path / "source"
    )
    at = tmp_path / "source" / "checkpoints" / f"step_{EVERY:012d}"
    loop.train(config_of(DQN, "--branch-from", str(at)), tmp_path / "branch")
    assert_same(newest(tmp_path / "branch")["agent"], newest(finished["dqn"])["agent"])
    assert_same(newest(tmp_path / "branch")["env"], newest(finished["dqn"])["env"])
    assert rows_of(tmp_path / "branch") == rows_of(finished["dqn"])


@pytest.mark.slow
def test_the_environments_may_step_beside_the_updates(tmp_path):
    for name in ("one", "two"):
        loop.train(config_of(DQN, "--act-lag", "1"), tmp_path / name)
    assert_same(newest(tmp_path / "one")["agent"], newest(tmp_path / "two")["agent"])
    assert len(rows_of(tmp_path / "one")) == 2


def test_the_tally_against_its_definition():
    generator = np.random.default_rng(0)
    tally, period, means = TaskTally(100), 100, []
    for task in range(4):
        count = 5 if task == 2 else 40
        ends = np.sort(generator.integers(1, period + 1, count))
        returns = generator.normal(task, 1, count)
        for end, value in zip(ends.tolist(), returns.tolist(), strict=True):
            tally.episode(value, task * period + end)
        figures = tally.finish()
        assert figures["episodes"] == count
        assert figures["return_whole"] == pytest.approx(returns.mean())
        assert figures["return_first_half"] == pytest.approx(returns[ends <= 50].mean())
        assert figures["return_second_half"] == pytest.approx(returns[ends > 50].mean())
        own = [returns[i - WINDOW : i].mean() for i in range(WINDOW, count + 1)]
        means += own
        if task == 2:  # too few to say
            assert figures["steps_to_half_best"] is None
            continue
        halfway = (min(means) + max(means)) / 2
        reached = [end for end, mean in zip(ends[WINDOW - 1 :], own, strict=True) if mean >= halfway]
        assert figures["steps_to_half_best"] == (reached[0] if reached else None)
    assert tally.finish()["return_whole"] is None


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--env.change.kind rotate --env.change.every 100 --env.num-envs 3", "multiple of num_envs 3"),
        ("--env.change.kind rotate", "env.change.every must be above 0 with kind rotate"),
        ("--env.change.kind turn", "one of none, rotate, drift, actions, physics, sequence; got 'turn'"),
        ("--env.change.kind physics --env.change.every 9", "give a range to one of physics.gravity"),
        (
            "--env.change.kind physics --env.change.every 9 --env.change.physics.gravity 2 1",
            "env.change.physics.gravity must be two numbers above 0, the lower one first, got [2.0, 1.0]",
        ),
        (
            "--env.change.kind sequence --env.change.every 9 --env.change.ids a",
            "env.change.ids must name two",
        ),
        (
            "--env.change.kind sequence --env.change.every 9 --env.change.ids Pong CartPole-v1",
            "env.change.ids must begin with env.id CartPole-v1, got Pong",
        ),
        ("--reset.on-change true", "reset.on_change true needs tasks that change"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(flags, message):
    with pytest.raises(ConfigError) as caught:
        config_of("--algo dqn --env CartPole-v1 --preset quick " + flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_exploration_that_has_no_schedule_cannot_restart(tmp_path, capsys):
    argv = [*SAC.split(), "--env.change.exploration", "restart", "--run-dir", str(tmp_path / "run")]
    assert train.main(argv) == 2
    assert "sac has no schedule of exploration; valid: keep" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
