"""Sweeps on Ray: a real cluster on the loopback address, one of whose nodes loses power in mid-run."""

import contextlib
import fcntl
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import sweep
from sweeps import cluster, nodes
from sweeps.cluster import Share
from sweeps.processes import Process
from tests.sweeps.sweep_cases import BASE, GRID, PATIENCE, folders, plan, start, steps, until, write
from tests.training.test_train import assert_same, newest
from training import loop
from training.folder import Claim, is_claimed

STEPS = 1_200
LONG = (
    BASE.replace("total_steps: 200", f"total_steps: {STEPS}")
    + "grid: {reset: [none, full]}\ntogether: none\n"
)
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER: on Linux too, 127.0.0.1 is not replaced by the machine's address, on which nobody
# listens here. RAY_worker_niceness: by default 15, with which a busy machine leaves them nothing.
ON_LOOPBACK = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_worker_niceness": "0",
}


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "programs"),
    [
        (1, 0, {"CPU": 8.0, "GPU": 1.0}, 8),
        (3, 0, {"CPU": 8.0}, 2),
        (1, 0.25, {"CPU": 8.0, "GPU": 1.0}, 4),
        # A program's share lies on one card: each of the two holds three.
        (1, 0.3, {"CPU": 8.0, "GPU": 2.0}, 6),
        (1, 0.1, {"CPU": 16.0, "GPU": 1.0}, 10),
        (1, 2, {"CPU": 8.0, "GPU": 5.0}, 2),
        (1, 0.5, {"CPU": 8.0}, 0),
        (1, 0, {"memory": 1e9}, 0),
    ],
)
def test_a_node_holds_as_many_programs_as_cores_and_whole_cards_allow(cpus, gpus, node, programs):
    assert Share(cpus, gpus).fit_into(node) == programs


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--ray", "auto"], "pip install -r requirements-ray.txt"),
        (["--ray-cpus", "0"], "--ray-cpus must be at least 1, got 0"),
        (["--ray-gpus", "1.5"], "a part of one or a whole number, got 1.5"),
        (["--ray-gpus", "nan"], "a part of one or a whole number, got nan"),
        (["--ray-gpus", "0.5"], "need --ray"),
        (["--ray", "local", "--dry-run"], "leave --ray out"),
        (["--ray", "local", "--slurm", "60"], "exclude each other"),
    ],
)
def test_what_ray_cannot_do_is_one_line(words, error, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    assert sweep.main([str(write(tmp_path, BASE + GRID)), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


def descendants(pid):
    """Of a process, from below."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(entry / "stat")):
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = []
    for child in children.get(pid, []):
        found += [*descendants(child), child]
    return found


def _read(path):
    try:
        return path.read_text()
    except OSError:
        return ""


def cut_power(node):
    """Everything of a node is gone at once, train.py too, and nothing is saved; returns the commands it ran."""
    raylet = node.all_processes["raylet"][0].process.pid
    processes = [*descendants(raylet), raylet]
    commands = [_read(Path(f"/proc/{pid}/cmdline")) for pid in processes]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    return commands


@pytest.fixture
def two_nodes(monkeypatch):
    pytest.importorskip("ray")
    for name, value in ON_LOOPBACK.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    small: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80_000_000}
    small["node_ip_address"] = "127.0.0.1"
    nodes = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    second = nodes.add_node(**small)
    yield nodes.address, second
    nodes.shutdown()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The same runs, each alone and never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    for run in plan(folder, LONG).runs:
        loop.train(run.config, folder / "out" / run.folder)
    return folder


def assert_equal(folder, straight):
    for one, other in zip(folders(folder), folders(straight), strict=True):
        assert_same(newest(one), newest(other))


@pytest.mark.slow
def test_a_node_that_loses_power_takes_no_run_with_it(two_nodes, straight, tmp_path):
    address, second = two_nodes
    write(tmp_path, LONG)
    at_work = start(tmp_path, "--ray", address, **ON_LOOPBACK)
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), at_work)
    commands = cut_power(second)
    (lost,) = [d for d in folders(tmp_path) if any(str(d) in words for words in commands)]
    assert max(steps(lost)) < STEPS
    out = at_work.communicate(timeout=PATIENCE)[0]
    assert at_work.returncode == 0 and "2 of 2 runs finished" in out, out
    log = (tmp_path / "out/logs" / f"{lost.relative_to(tmp_path / 'out')}".replace("/", "--")).with_suffix(
        ".log"
    )
    begins = [
        int(step.replace(",", "")) for step in re.findall("from env step ([0-9,]+) of", log.read_text())
    ]
    assert len(begins) == 2 and begins[0] == 0 < begins[1], begins  # its second attempt resumed
    assert_equal(tmp_path, straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_on_ray_that_ends_early_saves_its_runs_and_goes_on_without_ray(number, straight, tmp_path):
    pytest.importorskip("ray")
    write(tmp_path, LONG)
    at_work = start(tmp_path, "--ray", "local", **ON_LOOPBACK)
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), at_work)
    at_work.send_signal(number)
    out = at_work.communicate(timeout=PATIENCE)[0]
    assert at_work.returncode == (130 if number == signal.SIGINT else -number), out
    until(lambda: not any(is_claimed(run_dir) for run_dir in folders(tmp_path)))
    # Saved where they stood, not at the last period.
    assert any(max(steps(run_dir)) % 100 for run_dir in folders(tmp_path))
    goes_on = start(tmp_path)
    out = goes_on.communicate(timeout=PATIENCE)[0]
    assert goes_on.returncode == 0, out
    assert_equal(tmp_path, straight)


@pytest.mark.slow
def test_a_task_waits_for_the_claim_of_an_attempt_that_is_still_alive(monkeypatch, tmp_path):
    (run,) = plan(tmp_path, BASE + "grid: {reset: [none]}\n").runs
    folder, log, lock = tmp_path / "run", tmp_path / "log", tmp_path / "lock"
    claim = Claim(folder)
    earlier = lock.open("w")
    fcntl.flock(earlier, fcntl.LOCK_EX)
    waits = []

    def sleep(seconds, over):
        waits.append(log.exists())
        claim.close() if earlier.closed else earlier.close()

    monkeypatch.setattr(nodes, "_sleep", sleep)
    argv = [*run.flags, "--run-dir", str(folder)]
    assert cluster._train(argv, str(log), [str(lock)], 1, os.getcwd())[0] == 0
    assert waits == [False, True] and steps(folder)[-1] == 200
    assert "another process is training" in log.read_text()


def test_a_lock_stays_as_long_as_the_program_lives_and_no_longer(tmp_path):
    lock = tmp_path / "lock"
    (run,) = plan(tmp_path, BASE + "grid: {reset: [none]}\n").runs
    with lock.open("w") as file, lock.open("w") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        words = [*run.flags, "--run-dir", str(tmp_path / "run")]
        process = Process(words, tmp_path / "log", 1, [file.fileno()])
        file.close()  # as if the worker of Ray had died
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
        process.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
