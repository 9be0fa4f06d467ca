"""Real processes: Ctrl-C and kills of a sweep, at any moment."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from sweeps.processes import Process
from sweeps.state import Journal
from tests.sweeps.sweep_cases import LONG, PATIENCE, folders, start, steps, until, write
from tests.training.test_train import assert_same, newest
from training.folder import is_claimed


def test_a_program_that_cannot_run_says_why_and_one_that_is_asked_to_stop_does(tmp_path):
    process = Process(["--algo", "dqm"], tmp_path / "log", threads=1)
    assert process.wait() == 2 and "unknown" in process.last_lines()[-1]
    process = Process(["--help"], tmp_path / "log", threads=1)
    process.stop()
    assert process.wait() == -signal.SIGTERM and process.poll() == -signal.SIGTERM


def assert_equal_in_the_end(folder, straight):
    sweep = start(folder)
    out = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 0, out
    for one, other in zip(folders(folder), folders(straight), strict=True):
        assert_same(newest(one), newest(other))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_stop_it_saves_all_runs(number, straight, tmp_path):
    write(tmp_path, LONG)
    sweep = start(tmp_path, "--workers", "2")
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), sweep)
    sweep.send_signal(number)
    out = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 130 and "the same command goes on" in out, out
    assert not any(is_claimed(run_dir) for run_dir in folders(tmp_path))
    # Saved where they stood, not at the last period.
    assert any(max(steps(run_dir)) % 100 for run_dir in folders(tmp_path))
    assert_equal_in_the_end(tmp_path, straight)


@pytest.mark.slow
def test_a_sweep_that_is_killed_leaves_no_run_training(straight, tmp_path):
    write(tmp_path, LONG)
    sweep = start(tmp_path, "--workers", "2")
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), sweep)
    sweep.kill()
    sweep.wait()
    until(lambda: not any(is_claimed(run_dir) for run_dir in folders(tmp_path)))
    assert all(max(steps(run_dir)) < 2_500 for run_dir in folders(tmp_path))
    assert_equal_in_the_end(tmp_path, straight)


@pytest.mark.slow
def test_a_second_start_right_after_a_kill_waits_for_the_runs_that_are_still_saving(straight, tmp_path):
    write(tmp_path, LONG)
    sweep = start(tmp_path, "--workers", "2")
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), sweep)
    sweep.kill()
    assert_equal_in_the_end(tmp_path, straight)
    sweep.wait()


@pytest.mark.slow
def test_killed_at_random_moments_it_goes_on(straight, tmp_path):
    write(tmp_path, LONG)
    moments = random.Random(0)
    for _ in range(6):
        sweep = start(tmp_path, "--workers", "2")
        time.sleep(moments.uniform(3, 15))
        sweep.send_signal(moments.choice([signal.SIGKILL, signal.SIGINT]))
        sweep.wait()
    assert_equal_in_the_end(tmp_path, straight)


@pytest.mark.slow
def test_a_run_that_is_killed_alone_fails_alone(tmp_path):
    write(tmp_path, LONG)
    sweep = start(tmp_path, "--workers", "2")
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), sweep)
    (child,) = (
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdigit() and str(folders(tmp_path)[1]).encode() in _command_of(pid)
    )
    os.kill(child, signal.SIGKILL)
    out = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 1 and "reset=full/seed0 failed" in out and "signal 9" in out, out
    assert set(Journal(tmp_path / "out").failed) == {"reset=full/seed0"}
    assert steps(folders(tmp_path)[0])[-1] == 2_500


def _command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
