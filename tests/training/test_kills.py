"""Runs killed with SIGKILL, at random moments and before exact calls, and on full disks: resumed, they are the same.

A short sample; ``-m slow`` runs 100 random and 60 exact kills, and fills disks at 60 calls and at 40 sizes.
"""

import contextlib
import csv
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from common import checkpoint, files, segments
from configs import loader
from tests.training.test_train import SMALL, assert_same, newest, reset_records, run, table
from training import loop
from training.failures import one_line
from training.folder import run_configs, run_folders

EVERY = 30
SHORT = ("--checkpoint.every", str(EVERY), "--total-steps", "125", "--reset.until", "80")
ARGV = {
    "alone": [*SMALL["dqn"].split(), *SHORT],
    "together": [*SMALL["dqn"].split(), *SHORT, "--num-agents", "2"],
}
# Whatever changes something on the disk, or says who may.
CALLS = (
    (fcntl, "flock"),
    (os, "mkdir"),
    (os, "replace"),
    (files, "sync"),
    (checkpoint, "sync"),
    (segments, "sync"),
    (os, "link"),
    (os, "unlink"),
    (os, "rmdir"),
    (shutil, "rmtree"),
    (torch, "save"),
    (Path, "write_text"),
    (Path, "write_bytes"),
)
# Which of them a full disk refuses.
GROWING = ("mkdir", "sync", "save", "write_text", "write_bytes")
TOLD = 2  # exit status of a run that ended with an error of one line


def folders(run_dir, company):
    configs = run_configs([loader.load(ARGV[company])[0]])
    return configs, run_folders(configs, run_dir)


def start(run_dir, company, kill_before=None, full_from=None, log=None):
    """Train in a process of its own; return its id.

    It kills itself before call number ``kill_before``; from call number ``full_from`` on its disk is full. With
    ``log``, the names of all calls are written there, one a line.
    """
    if process := os.fork():
        return process
    status = 1
    try:
        segments.SEGMENT_BYTES = segments.SMALLEST_BYTES = 1_000  # of so small a replay there would be none
        seen = []

        def counted(name, call):
            def counting(*args, **kwargs):
                paths = " ".join(str(arg) for arg in args if isinstance(arg, str | Path))
                inside = str(run_dir) in paths or (seen and paths.endswith((".pt", "manifest.json")))
                if inside or name == "flock":
                    if len(seen) == kill_before:
                        os.kill(os.getpid(), signal.SIGKILL)
                    seen.append(" ".join(f"{name} {paths}".split()))
                    if full_from is not None and len(seen) > full_from and name in GROWING:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *args[-1:])
                return call(*args, **kwargs)

            return counting

        for owner, name in CALLS:
            setattr(owner, name, counted(name, getattr(owner, name)))
        output = os.open(os.devnull, os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            loop.train_together(*folders(run_dir, company))
            status = 0
        except Exception as error:
            status = TOLD if one_line(error) else 1
        if log is not None:
            with open(log, "w") as file:
                file.write("\n".join(seen))
    finally:
        os._exit(status)


def end(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture(scope="module", params=list(ARGV))
def straight(request, tmp_path_factory):
    """How many runs, the folders of the uninterrupted ones, the calls they made, and their seconds."""
    folder = tmp_path_factory.mktemp(request.param)
    run(
        folder / "imports", "dqn", "--total-steps", "62"
    )  # whatever is imported late; processes start from here
    started = time.monotonic()
    assert end(start(folder / "run", request.param, log=folder / "calls")) == 0
    calls = (folder / "calls").read_text().splitlines()
    return request.param, folders(folder / "run", request.param)[1], calls, time.monotonic() - started


def require_equal(ours, straight):
    for one, other in zip(ours, straight, strict=True):
        assert_same(newest(one), newest(other))
        for name in ("evaluations.csv", "scalars.csv"):
            assert table(one / name) == table(other / name)
        assert reset_records(one) == reset_records(other)
        for kind in ("best", "step"):
            names = [[p.name for p in checkpoint.find(f / "checkpoints", kind)] for f in (one, other)]
            assert names[0] == names[1]
        assert not [path for path in one.rglob("*") if path.name.endswith((".partial", ".replaced", ".tmp"))]


def require_little_lost(run_dirs):
    """What a killed run has logged lies at most an interval beyond its newest checkpoint, and a step."""
    for run_dir in run_dirs:
        saved = checkpoint.find(run_dir / "checkpoints", "step")
        newest_step = checkpoint.step_of(saved[-1]) if saved else 0
        log = run_dir / "evaluations.csv"
        if log.exists():
            with log.open(newline="") as file:
                logged = [int(row[0]) for row in list(csv.reader(file))[1:] if row[0].isdigit()]
            assert max(logged, default=0) <= newest_step + EVERY + 3


def kill_and_resume(tmp_path, straight, how):
    """``how`` starts a run in a folder and sees to it that it is killed."""
    company, uninterrupted, _, _ = straight
    run_dir = tmp_path / "run"
    how(run_dir)
    ours = folders(run_dir, company)[1]
    require_little_lost(ours)
    assert end(start(run_dir, company)) == 0
    require_equal(ours, uninterrupted)


def exact_points(calls, spread):
    """Where it matters most (see the names), and ``spread`` calls evenly over the run."""
    config = next(i for i, call in enumerate(calls) if "config.yaml" in call)
    renames = [i for i, call in enumerate(calls) if call.startswith("replace") and "/step_" in call]
    parts = [i for i, call in enumerate(calls) if call.startswith("save")]
    before_the_config, between_parts, first_rename = config, parts[1], renames[0]
    between_rename_and_prune, in_the_prune = renames[1] + 2, renames[1] + 4
    special = {before_the_config, between_parts, first_rename, between_rename_and_prune, in_the_prune}
    return sorted(special | {len(calls) * i // spread for i in range(spread)})


def kills_at_exact_points(straight, tmp_path, points):
    company = straight[0]
    for point in points:
        folder = tmp_path / str(point)

        def killed(run_dir, point=point):
            assert end(start(run_dir, company, kill_before=point)) == -signal.SIGKILL

        kill_and_resume(folder, straight, killed)
        shutil.rmtree(folder)


def full_disks_at_exact_points(straight, tmp_path, spread):
    company, uninterrupted, calls, _ = straight
    for point in exact_points(calls, spread):
        run_dir = tmp_path / str(point) / "run"
        status = end(start(run_dir, company, full_from=point))
        late = not any(call.startswith(GROWING) for call in calls[point:])
        assert status == (0 if late else TOLD), point
        require_little_lost(folders(run_dir, company)[1])
        assert end(start(run_dir, company)) == 0
        require_equal(folders(run_dir, company)[1], uninterrupted)
        shutil.rmtree(run_dir.parent)


@contextlib.contextmanager
def disk(place, kilobytes):
    """A file system of its own in the folder ``place``; yields a function that changes its size."""

    def mount(*options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True
        )
        if done.returncode:
            pytest.skip("needs the right to mount a file system")

    place.mkdir()
    mount(f"size={kilobytes}k")
    try:
        yield lambda size: mount("remount", f"size={size}k")
    finally:
        subprocess.run(["umount", place], check=True)


def full_disks_of_every_size(straight, tmp_path, count):
    company, uninterrupted, _, _ = straight
    used = sum(path.stat().st_size for run in uninterrupted for path in run.rglob("*")) // 1000
    for index in range(count):
        place = tmp_path / str(index)
        with disk(place, 4 + 2 * used * index // count) as resize:
            run_dir = place / "run"
            assert end(start(run_dir, company)) in (0, TOLD), index
            require_little_lost(folders(run_dir, company)[1])
            resize(100_000)
            assert end(start(run_dir, company)) == 0, index
            require_equal(folders(run_dir, company)[1], uninterrupted)


def kills_at_random_moments(straight, tmp_path, count):
    company, _, _, seconds = straight
    moments = random.Random(0)
    for index in range(count):
        folder = tmp_path / str(index)

        def killed(run_dir):
            for _ in range(2):  # the second session is killed too
                process = start(run_dir, company)
                time.sleep(moments.uniform(0.02, seconds))
                os.kill(process, signal.SIGKILL)
                assert end(process) in (0, -signal.SIGKILL)

        kill_and_resume(folder, straight, killed)
        shutil.rmtree(folder)


def test_killed_at_exact_points(straight, tmp_path):
    """Before the configuration and between a rename and the deletion of what it replaces; together the latter alone."""
    points = exact_points(straight[2], 0)
    kills_at_exact_points(
        straight, tmp_path, [points[0], points[-2]] if straight[0] == "alone" else [points[-2]]
    )


def test_killed_at_random_moments(straight, tmp_path):
    if straight[0] == "alone":
        kills_at_random_moments(straight, tmp_path, 1)


@pytest.mark.slow
def test_killed_at_60_exact_points(straight, tmp_path):
    kills_at_exact_points(straight, tmp_path, exact_points(straight[2], 26))


@pytest.mark.slow
def test_killed_at_100_random_moments(straight, tmp_path):
    kills_at_random_moments(straight, tmp_path, 50)


@pytest.mark.slow
def test_disks_full_at_60_exact_points(straight, tmp_path):
    full_disks_at_exact_points(straight, tmp_path, 26)


@pytest.mark.slow
def test_disks_of_40_sizes(straight, tmp_path):
    full_disks_of_every_size(straight, tmp_path, 20)
