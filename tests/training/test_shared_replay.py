"""A branch and the run it left share what both have stored, and neither can harm the other."""

import hashlib
import itertools
import os
import shutil

import pytest

from common import checkpoint, segments
from tests.training.test_branch import BRANCH_AT, FIRE, NO_RESET
from tests.training.test_train import assert_same, newest, run

END = 141  # three environments
ON = ("--checkpoint.every", "20", "--checkpoint.keep", "9")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 64)
    monkeypatch.setattr(segments, "SMALLEST_BYTES", 64)


def step(run_dir, number):
    return run_dir / "checkpoints" / f"step_{number:012d}"


def inodes(path):
    return {each.stat().st_ino for each in path.glob("*.segment")}


def contents(run_dir):
    """Every file of a run's checkpoints and what is in it."""
    found = sorted((run_dir / "checkpoints").rglob("*"))
    return {str(each): hashlib.sha256(each.read_bytes()).hexdigest() for each in found if each.is_file()}


def test_a_branch_shares_its_parents_replay_and_both_stay_what_they_are(tmp_path, monkeypatch):
    source, branch, copied = (tmp_path / name for name in ("source", "branch", "copied"))
    run(source, "dqn", *NO_RESET, *ON, "--total-steps", "160")
    before = contents(source)
    run(branch, "dqn", *FIRE, *ON, "--total-steps", str(END), "--branch-from", str(step(source, BRANCH_AT)))
    parents, own = step(source, BRANCH_AT), step(branch, END)
    # Only the last segment of each array was not full.
    assert len(inodes(parents) - inodes(own)) <= 6 < len(inodes(parents) & inodes(own))
    assert all(each.stat().st_nlink == 1 for each in own.glob("*.pt"))
    assert contents(source) == before
    # The source goes on, loses checkpoints, and is deleted: the branch does not notice.
    before = contents(branch)
    run(
        source, "dqn", *NO_RESET, "--checkpoint.every", "20", "--checkpoint.keep", "1", "--total-steps", "200"
    )
    assert not parents.exists() and contents(branch) == before
    run(copied, "dqn", *NO_RESET, *ON, "--total-steps", "160")
    words = (*FIRE, *ON, "--branch-from", str(step(copied, BRANCH_AT)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        for longer in (("--total-steps", str(END)), ()):
            run(tmp_path / "unlinked", "dqn", *words, *longer)
    assert not inodes(step(copied, BRANCH_AT)) & inodes(step(tmp_path / "unlinked", END))
    shutil.rmtree(source)
    assert contents(branch) == before
    shutil.copytree(copied, source)  # a branch names its parent; of what it holds nothing is needed any more
    run(branch, "dqn", *FIRE, *ON, "--branch-from", str(step(source, BRANCH_AT)))
    assert_same(newest(branch), newest(tmp_path / "unlinked"))


def refuse(*_):
    raise PermissionError("no hard links here")


def test_a_run_shares_with_its_own_earlier_checkpoints(tmp_path):
    run(tmp_path, "dqn", *NO_RESET, *ON, "--total-steps", "160")
    paths = checkpoint.find(tmp_path / "checkpoints", "step")
    for one, other in itertools.pairwise(paths):
        assert len(inodes(one) - inodes(other)) <= 6, (one, other)
