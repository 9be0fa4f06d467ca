"""A run that begins at another run's checkpoint, as the published comparison of resets does at its midpoint."""

import json

import pytest

from common import checkpoint
from configs.errors import ConfigError
from tests.training.test_train import assert_same, newest, table
from tests.training.test_train import run as run_in

BRANCH_AT = 120
NO_RESET = ("--reset", "none", "--reset.every", "0")
FIRE = ("--reset", "fire", "--reset.every", "0", "--reset.at", str(BRANCH_AT))


def run(run_dir, algo, *extra):
    """SAC without the H1, whose state is tested elsewhere, and with few updates, which take the time."""
    lighter = ("--env", "Pendulum-v1", "--replay.replay-ratio", "0.25") if algo == "sac" else ()
    return run_in(run_dir, algo, *lighter, *extra)


@pytest.fixture(scope="module", params=["sac", "dqn"])
def source(request, tmp_path_factory):
    """A run without resets that keeps a checkpoint on its way, its algorithm, and that checkpoint."""
    folder = tmp_path_factory.mktemp("source")
    run(folder, request.param, *NO_RESET, "--checkpoint.every", "40", "--checkpoint.keep", "9")
    (on_the_way,) = (
        p for p in checkpoint.find(folder / "checkpoints", "step") if int(p.name[5:]) == BRANCH_AT
    )
    return folder, request.param, on_the_way


def test_a_branch_without_reset_equals_the_run_it_left(source, tmp_path):
    folder, algo, on_the_way = source
    run(tmp_path, algo, *NO_RESET, "--branch-from", str(on_the_way))
    assert_same(newest(tmp_path)["agent"], newest(folder)["agent"])
    assert_same(newest(tmp_path)["replay"], newest(folder)["replay"])
    assert_same(newest(tmp_path)["env"], newest(folder)["env"])
    assert table(tmp_path / "evaluations.csv") == table(folder / "evaluations.csv")
    assert table(tmp_path / "scalars.csv") == table(folder / "scalars.csv")


def test_a_reset_at_the_branching_point_equals_the_same_reset_in_one_run(source, tmp_path):
    _, algo, on_the_way = source
    run(tmp_path / "branch", algo, *FIRE, "--branch-from", str(on_the_way))
    run(tmp_path / "whole", algo, *FIRE)
    assert_same(newest(tmp_path / "branch")["agent"], newest(tmp_path / "whole")["agent"])
    (record,) = map(json.loads, (tmp_path / "branch" / "resets.jsonl").read_text().splitlines())
    assert record["env_step"] == BRANCH_AT


def test_a_branch_may_not_change_what_its_beginning_depends_on(source, tmp_path):
    folder, algo, _ = source
    with pytest.raises(ConfigError, match=r"replay.batch_size 16 \(asked for: 8\)"):
        run(tmp_path, algo, *FIRE, "--branch-from", str(folder), "--replay.batch-size", "8")


def test_a_branch_from_nowhere_or_beyond_its_end_is_refused(source, tmp_path):
    folder, algo, _ = source
    with pytest.raises(ConfigError, match="no checkpoint; give a run folder"):
        run(tmp_path / "a", algo, *FIRE, "--branch-from", str(tmp_path / "missing"))
    (best,) = checkpoint.find(folder / "checkpoints", "best")
    with pytest.raises(ConfigError, match="no checkpoint; give a run folder"):  # it holds the policy alone
        run(tmp_path / "a", algo, *FIRE, "--branch-from", str(best))
    with pytest.raises(ConfigError, match="total_steps 200 must exceed"):
        run(tmp_path / "b", algo, *FIRE, "--branch-from", str(folder))
    assert not any(tmp_path.iterdir())
