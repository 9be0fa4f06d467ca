"""Sweeps through submitit: its local executor, which starts and signals jobs as Slurm does, and sbatch's own words."""

import os
import signal
import sys
from pathlib import Path

import pytest

import sweep
from sweeps.slurm import Slurm, parse_options
from tests.sweeps.sweep_cases import BASE, GRID, LONG, PATIENCE, folders, start, steps, until, write
from tests.training.test_train import assert_same, newest
from training.folder import is_claimed


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--slurm", "60"], "pip install -r requirements-slurm.txt"),
        (["--slurm", "0"], "--slurm must be at least 1, got 0"),
        (
            ["--slurm", "60", "--slurm-options", "partition"],
            "KEY=VALUE, such as partition=gpu, got 'partition'",
        ),
        (["--slurm-options", "partition=gpu"], "--slurm-options need --slurm"),
        (["--slurm", "60", "--dry-run"], "leave --slurm out"),
    ],
)
def test_what_slurm_cannot_do_is_one_line(words, error, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)  # as if it were not installed
    assert sweep.main([str(write(tmp_path, BASE + GRID)), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert error in line


def test_options_are_read_as_what_they_are():
    assert parse_options(["partition=gpu", "cpus_per_task=4", "exclusive=true", "constraint=a=b"]) == {
        "partition": "gpu",
        "cpus_per_task": 4,
        "exclusive": True,
        "constraint": "a=b",
    }


@pytest.fixture
def on_slurm(monkeypatch, tmp_path):
    """An ``sbatch`` that keeps what it is given; returns what that was, array by array."""
    pytest.importorskip("submitit")
    for name, words in (
        ("srun", ""),
        ("sbatch", f'cat "$1" >> {tmp_path}/given; echo Submitted batch job 7'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{words}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return lambda: (tmp_path / "given").read_text().split("#!/bin/bash")[1:]


def test_what_starts_at_one_moment_is_one_array_that_hears_a_signal_before_its_limit(on_slurm, tmp_path):
    machines = Slurm(240, {"partition": "long", "cpus_per_task": 2}, tmp_path / "jobs", "study")
    machines.require_fit("a", 700_000_000)
    machines.require_fit("b", 2_500_000_000)
    machines.require_fit("c", 900_000_000)
    for names in (["a", "b"], ["c"]):
        with machines.batch():
            for name in names:
                machines.start(["--algo", "dqn"], tmp_path / f"{name}.log", [], 0)
    with machines.batch():  # nothing to start
        pass
    pair, single = on_slurm()
    flags = {line.removeprefix("#SBATCH ") for line in pair.splitlines() if line.startswith("#SBATCH ")}
    assert {"--array=0-1%2", "--time=240", "--signal=USR2@180", "--mem=3GB", "--partition=long"} <= flags
    assert {"--cpus-per-task=2", "--job-name=study"} <= flags and machines.threads == 2
    assert "--array" not in single


def test_an_option_that_sbatch_does_not_know_is_one_line(on_slurm, tmp_path):
    with pytest.raises(sweep.ConfigError, match="Unknown argument 'partitoin'"):
        Slurm(60, {"partitoin": "gpu"}, tmp_path / "jobs", "study")
    with pytest.raises(sweep.ConfigError, match="cluster=grid: must be slurm or local"):
        Slurm(60, {"cluster": "grid"}, tmp_path / "jobs", "study")


def start_jobs(folder):
    pytest.importorskip("submitit")
    return start(folder, "--workers", "2", "--slurm", "30", "--slurm-options", "cluster=local")


def parent_of(run_dir):
    """The job whose train.py trains in a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(run_dir).encode() in (entry / "cmdline").read_bytes():
                    return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    raise AssertionError(f"nobody trains in {run_dir}")


@pytest.mark.slow
def test_a_job_that_hears_the_signal_before_its_limit_saves_and_goes_on(straight, tmp_path):
    write(tmp_path, LONG)
    at_work = start_jobs(tmp_path)
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), at_work)
    warned = folders(tmp_path)[1]
    os.kill(parent_of(warned), signal.SIGUSR2)
    out = at_work.communicate(timeout=PATIENCE)[0]
    assert at_work.returncode == 0 and "2 of 2 runs finished" in out, out
    log = (tmp_path / "out/logs/reset=full--seed0.log").read_text()
    begins = [
        line.split("from env step ")[1].split()[0] for line in log.splitlines() if "from env step" in line
    ]
    # It saved where it stood, not at the last period.
    assert len(begins) == 2 and begins[0] == "0" and int(begins[1].replace(",", "")) % 100, log
    for one, other in zip(folders(tmp_path), folders(straight), strict=True):
        assert_same(newest(one), newest(other))


@pytest.mark.slow
def test_ctrl_c_saves_the_runs_of_all_jobs(straight, tmp_path):
    write(tmp_path, LONG)
    at_work = start_jobs(tmp_path)
    until(lambda: all(steps(run_dir) for run_dir in folders(tmp_path)), at_work)
    at_work.send_signal(signal.SIGINT)
    out = at_work.communicate(timeout=PATIENCE)[0]
    assert at_work.returncode == 130 and "the same command goes on" in out, out
    assert not any(is_claimed(run_dir) for run_dir in folders(tmp_path))
    assert any(max(steps(run_dir)) % 100 for run_dir in folders(tmp_path))
    at_work = start_jobs(tmp_path)
    out = at_work.communicate(timeout=PATIENCE)[0]
    assert at_work.returncode == 0, out
    for one, other in zip(folders(tmp_path), folders(straight), strict=True):
        assert_same(newest(one), newest(other))
