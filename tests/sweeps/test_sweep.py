"""An experiment from its first start to its last: real runs of a few hundred steps, trained in this process."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest

from common import checkpoint
from configs import loader
from sweeps.programs import make_programs
from tests.sweeps.sweep_cases import BASE, GRID, plan, sweep_here
from tests.training.test_train import assert_same, interrupted_at, newest, reset_records, table
from training import loop
from training.folder import Claim, differences, is_claimed

SINGLY = "together: none\n"


def steps(folder):
    return [checkpoint.step_of(path) for path in checkpoint.find(folder / "checkpoints", "step")]


def test_all_runs_are_made_once_and_are_those_of_train_py(tmp_path, started, capsys):
    text = BASE + GRID + SINGLY
    assert sweep_here(tmp_path, text) == 0
    runs = plan(tmp_path, text).runs
    saved = json.loads((tmp_path / "out/plan.json").read_text())
    assert [run["name"] for run in saved["runs"]] == [run.name for run in runs]
    assert saved["runs"][2]["factors"] == {"reset": "full"} and saved["runs"][2]["flags"] == list(
        runs[2].flags
    )
    assert len(started) == 4
    for run in (runs[0], runs[3]):
        loop.train(run.config, tmp_path / "alone" / run.name)
        assert_same(newest(tmp_path / "out" / run.folder), newest(tmp_path / "alone" / run.name))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("reset*/**/*")}
    assert sweep_here(tmp_path, text) == 0
    assert len(started) == 4 and before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("reset*/**/*")
    }
    assert "4 runs, 4 finished" in capsys.readouterr().out


def test_seeds_of_a_cell_are_one_program_where_that_is_faster(tmp_path, started):
    assert sweep_here(tmp_path, BASE + GRID) == 0
    assert len(started) == 2 and all("--num-agents" in argv for argv in started)
    for name in ("reset=none/seed0", "reset=none/seed1", "reset=full/seed0", "reset=full/seed1"):
        assert steps(tmp_path / "out" / name) == [200]


def test_stopped_and_started_again_equals_never_stopped(tmp_path, started):
    text = BASE + "grid: {reset: [full], reset.every: [90], seed: {count: 2}}\n" + SINGLY
    assert sweep_here(tmp_path / "straight", text) == 0
    with interrupted_at(120):  # every run that gets there
        assert sweep_here(tmp_path / "stopped", text) == 130
    assert steps(tmp_path / "stopped/out/reset=full,reset.every=90/seed1") == [120]
    assert sweep_here(tmp_path / "stopped", text) == 0
    for run in plan(tmp_path, text).runs:
        one, other = (tmp_path / name / "out" / run.folder for name in ("straight", "stopped"))
        assert_same(newest(one), newest(other))
        assert table(one / "evaluations.csv") == table(other / "evaluations.csv")


def test_a_failed_run_is_reported_with_its_last_lines_and_tried_again_only_if_asked(
    tmp_path, started, capsys
):
    text = BASE + GRID + SINGLY
    foreign = tmp_path / "out/reset=none/seed1"
    foreign.mkdir(parents=True)
    (foreign / "letter.txt").write_text("mine")
    assert sweep_here(tmp_path, text) == 1
    out = capsys.readouterr().out
    assert re.search(r"reset=none/seed1 failed:\n.* error: .*seed1 exists and is no run folder", out)
    assert "3 of 4 runs finished, 0 training, 1 failed" in out
    (foreign / "letter.txt").unlink()
    assert sweep_here(tmp_path, text) == 1 and len(started) == 4
    assert "is no run folder" in capsys.readouterr().out
    assert sweep_here(tmp_path, text, "--retry-failed") == 0 and len(started) == 5


@pytest.mark.parametrize(
    ("text", "flag", "fails", "others"),
    [
        ("grid: {reset: [none], seed: {count: 3}}", "--num-agents", "none/seed1", ("none/seed0", "none/seed2")),
        ("grid: {reset: [none, full, fire]}\ntogether: resets\n", "--resets", "full/seed0",
         ("none/seed0", "fire/seed0")),
    ],
)  # fmt: skip
def test_one_run_that_fails_does_not_take_the_others_with_it(tmp_path, started, text, flag, fails, others):
    foreign = tmp_path / f"out/reset={fails}"
    foreign.mkdir(parents=True)
    (foreign / "letter.txt").write_text("mine")
    assert sweep_here(tmp_path, BASE + text) == 1
    assert [argv.count(flag) for argv in started] == [1, 0, 0, 0]
    assert all(steps(tmp_path / f"out/reset={name}") == [200] for name in others)


def test_resets_together_are_one_program_for_each_set_of_the_other_options(tmp_path, started):
    resets = "[none, weight_decay, full, 'fire:scale=unit,strength=0.5']"
    text = BASE.replace("replay.batch_size: 16, ", "") + "together: resets\n"
    text += f"grid: {{reset: {resets}, replay.batch_size: [8, 9], seed: {{count: 2}}}}\n"
    assert sweep_here(tmp_path, text) == 0
    joined = [argv for argv in started if "--resets" in argv]
    names = [argv[argv.index("--resets") + 1 : argv.index("--num-agents")] for argv in joined]
    assert names == [["none", "full", "fire:scale=unit,strength=0.5"]] * 2
    # Weight decay is an option of the agent, so it cannot stand in a program with the others.
    apart = [argv for argv in started if argv not in joined]
    assert [argv[argv.index("--reset") + 1] for argv in apart] == ["weight_decay"] * 2
    for run in plan(tmp_path, text).runs:
        run_dir = tmp_path / "out" / run.folder
        assert not differences(loader.read_config(run_dir / "config.yaml"), run.config, ("num_agents",))
        assert steps(run_dir) == [200]


BRANCHES = """
grid: {seed: {count: 2}}
stages:
  - {name: first, grid: {reset: [none]}}
  - {name: then, branch_from: first, at: 110, grid: {reset: [full]}, base: {reset.every: 0, reset.at: [110]}}
"""


@pytest.mark.parametrize("together", [SINGLY, "together: seeds\n", "together: resets\n"])
def test_branches_begin_at_their_parents_checkpoint(together, tmp_path, started):
    more = "[full, fire]" if "resets" in together else "[full]"
    text = BASE + BRANCHES.replace("[full]", more) + together
    assert sweep_here(tmp_path, text) == 0
    for seed in range(2):
        parent, branch = (
            tmp_path / f"out/{name}/seed{seed}" for name in ("first/reset=none", "then/reset=full")
        )
        assert steps(parent) == [110, 200] and steps(branch) == [200]
        assert [record["env_step"] for record in reset_records(branch)] == [110]
        shared = [row for row in table(parent / "scalars.csv")[1:] if int(row[0]) <= 110]
        assert shared and shared == [row for row in table(branch / "scalars.csv")[1:] if int(row[0]) < 110 or
                                     (int(row[0]) == 110 and row in shared)]  # fmt: skip
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "out", moved / "out")
    shutil.rmtree(moved / "out/then")
    assert sweep_here(moved, text) == 0
    assert_same(newest(moved / "out/then/reset=full/seed0"), newest(tmp_path / "out/then/reset=full/seed0"))


def test_a_branch_whose_parent_failed_cannot_begin_and_is_said_to(tmp_path, started, capsys):
    foreign = tmp_path / "out/first/reset=none/seed0"
    foreign.mkdir(parents=True)
    (foreign / "letter.txt").write_text("mine")
    assert sweep_here(tmp_path, BASE + BRANCHES + SINGLY) == 1
    assert (
        "then/reset=full/seed0 cannot begin: first/reset=none/seed0 has no checkpoint"
        in capsys.readouterr().out
    )
    assert steps(tmp_path / "out/then/reset=full/seed1") == [200]


def test_a_changed_file_is_compared_and_mixed_only_if_accepted(tmp_path, started, capsys):
    small = BASE + "grid: {reset: [none, full], seed: [0]}\n" + SINGLY
    assert sweep_here(tmp_path, small) == 0
    other = (
        BASE.replace("batch_size: 16", "batch_size: 8") + "grid: {reset: [none, fire], seed: [0]}\n" + SINGLY
    )
    assert sweep_here(tmp_path, other) == 2 and len(started) == 2
    error = capsys.readouterr().err
    for line in (
        "1 new:\n    reset=fire/seed0",
        "1 no longer in the file, stay where they are:\n    reset=full/seed0",
        "1 changed, to be made anew:\n    reset=none/seed0: replay.batch_size 16 (asked for: 8)",
        "error: nothing was started; --accept-changes",
    ):
        assert line in error
    assert sweep_here(tmp_path, other, "--accept-changes") == 0 and len(started) == 4
    (aside,) = (tmp_path / "out/earlier").iterdir()
    assert steps(aside / "reset=none/seed0") == [200]
    assert "batch_size: 8" in (tmp_path / "out/reset=none/seed0/config.yaml").read_text()
    assert sweep_here(tmp_path, other) == 0 and len(started) == 4


def test_the_same_flags_with_other_options_behind_a_name_are_a_change(tmp_path, started, capsys):
    text = BASE + "grid: {reset: [fire], seed: [0]}\n" + SINGLY
    assert sweep_here(tmp_path, text) == 0
    run, plan = tmp_path / "out/reset=fire/seed0/config.yaml", tmp_path / "out/plan.json"
    # As made by an earlier version, in which fire was the published scale and plans had no digest.
    run.write_text(run.read_text().replace("scale: fresh_norm", "scale: paper"))
    plan.write_text(re.sub(r',\s*"digest": "\w+"', "", plan.read_text()))
    assert sweep_here(tmp_path, text) == 2 and len(started) == 1
    assert "reset=fire/seed0: reset.scale paper (asked for: fresh_norm)" in capsys.readouterr().err
    run.write_text(run.read_text().replace("scale: paper", "scale: fresh_norm"))
    assert sweep_here(tmp_path, text) == 0 and len(started) == 1
    assert '"digest"' in plan.read_text()


def test_a_branch_changes_with_its_parent_and_with_where_it_leaves(tmp_path, started, capsys):
    text = BASE + BRANCHES.replace("count: 2", "count: 1") + SINGLY
    assert sweep_here(tmp_path, text) == 0
    assert sweep_here(tmp_path, text.replace("{name: first,", "{name: first, base: {reset.warmup: 9},")) == 2
    error = capsys.readouterr().err
    assert "first/reset=none/seed0: reset.warmup 0 (asked for: 9)" in error
    assert "then/reset=full/seed0: first/reset=none/seed0, from which it branches, is made anew" in error
    assert sweep_here(tmp_path, text.replace("at: 110,", "at: 120,")) == 2
    assert "it branched from first/reset=none/seed0 at 110" in capsys.readouterr().err


def test_a_longer_experiment_continues_its_runs(tmp_path, started, capsys):
    text = BASE.replace("{algo", "{agent.epsilon_fraction: 0, algo") + "grid: {reset: [none], seed: [0]}\n"
    longer = text.replace("total_steps: 200", "total_steps: 300")
    assert sweep_here(tmp_path / "whole", longer) == 0
    assert sweep_here(tmp_path, text) == 0
    assert sweep_here(tmp_path, longer) == 2
    assert "1 longer, to be continued:" in capsys.readouterr().err
    assert sweep_here(tmp_path, longer, "--accept-changes") == 0
    one, other = (newest(folder / "out/reset=none/seed0") for folder in (tmp_path, tmp_path / "whole"))
    for part in ("agent", "replay", "env"):
        assert_same(one[part], other[part])


def test_what_changes_only_how_a_run_is_computed_is_no_change(tmp_path, started):
    text = BASE + "grid: {reset: [none], seed: [0]}\n"
    assert sweep_here(tmp_path, text) == 0
    assert sweep_here(tmp_path, text.replace("num_threads: 1", "num_threads: 2, checkpoint.keep: 3")) == 0
    assert len(started) == 1


def test_two_sweeps_in_one_folder_are_refused(tmp_path, started, capsys):
    claim = Claim(tmp_path / "out", "running a sweep")
    try:
        assert sweep_here(tmp_path, BASE) == 2
        assert "another process is running a sweep in" in capsys.readouterr().err
    finally:
        claim.close()


def test_a_run_that_another_process_trains_is_waited_for(tmp_path, started, monkeypatch, capsys):
    folder = tmp_path / "out/seed0"
    held = [Claim(folder)]

    def let_go(seconds):
        if held:
            assert is_claimed(folder) and not started
            held.pop().close()

    monkeypatch.setattr("sweeps.queue.time.sleep", let_go)
    assert sweep_here(tmp_path, BASE) == 0 and len(started) == 1 and not held
    assert "seed0 waits: another process is still training it" in capsys.readouterr().out


def test_the_output_may_not_be_a_runs_own_folder(tmp_path, started, capsys):
    loop.train(plan(tmp_path, BASE).runs[0].config, tmp_path / "out")
    assert sweep_here(tmp_path, BASE) == 2
    assert "is a run's folder, not an experiment's" in capsys.readouterr().err


def test_seeds_that_stand_apart_are_trained_apart(tmp_path):
    runs = plan(tmp_path, BASE + "grid: {reset: [none, full], seed: [0, 1, 2, 5, 6]}").runs
    everyone = {run.name for run in runs}

    def seeds(alone=()):
        return [
            tuple(run.seed for run in p.runs) for p in make_programs(runs, tmp_path / "out", everyone, alone)
        ]

    assert seeds() == [(0, 1, 2), (5, 6)] * 2
    assert seeds(alone={runs[1].name}) == [(0,), (1,), (2,), (5, 6), (0, 1, 2), (5, 6)]
    short = dataclasses.replace(runs[5].config, total_steps=100)
    loop.train(short, tmp_path / "out" / runs[5].folder)
    assert seeds() == [(0, 1, 2), (5, 6), (0,), (1,), (2,), (5, 6)]


def test_a_dry_run_starts_nothing_and_knows_the_sizes(tmp_path, started, capsys):
    text = BASE + GRID + SINGLY
    with interrupted_at(120):
        assert sweep_here(tmp_path, text) == 130
    capsys.readouterr()
    assert sweep_here(tmp_path, text, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "4 runs, 0 finished, 4 to make" in out and len(started) == 4
    assert re.search(r"speed: dqn on CartPole-v1: [\d,]+ env steps/s, as in earlier runs here", out)
    assert re.search(r"memory: at most 0\.5 GB of .* GB available, 1 program at a time", out)
    assert not Path("out").exists()
