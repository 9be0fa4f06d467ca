"""Scalars mirrored to trackers: one line where the package is missing, equal to ``scalars.csv`` where not."""

import contextlib
import csv
import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from tests.training.test_train import SMALL, run
from training import mirrors, record

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", mirrors.PACKAGES)
def test_a_missing_package_is_one_line_with_the_command(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    argv = [*SMALL["dqn"].split(), "--logger", name, "--run-dir", str(tmp_path / "run")]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert f"logger {name}: " in error and f"pip install {mirrors.PACKAGES[name]}" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_versions_named_are_those_pinned():
    lines = (ROOT / "requirements-loggers.txt").read_text().splitlines()
    pinned = {line.split()[0] for line in lines if line and not line.startswith(("#", "-r"))}
    assert pinned == set(mirrors.PACKAGES.values())


def test_an_unknown_tracker_is_refused_with_the_known_ones(capsys):
    assert train.main([*SMALL["dqn"].split(), "--logger", "neptune"]) == 2
    error = capsys.readouterr().err
    assert "neptune" in error and "wandb" in error and "trackio" in error


def test_trackio_does_not_follow_several_runs_of_one_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    argv = [
        *SMALL["dqn"].split(),
        "--logger",
        "trackio",
        "--num-agents",
        "2",
        "--run-dir",
        str(tmp_path / "runs"),
    ]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert "one run at a time, got 2" in error and error.count("\n") == 1


def scalars(run_dir):
    with (run_dir / "scalars.csv").open(newline="") as file:
        return sorted((int(step), key, float(value)) for step, key, value in list(csv.reader(file))[1:])


@pytest.mark.parametrize("takes_step", [False, True])
def test_a_mirror_gets_the_keys_and_values_of_the_file_and_of_tensorboard(takes_step, tmp_path, monkeypatch):
    """Neither tracker need be installed: what stands for one writes down what it is given."""
    rows, finished = [], []

    def log(values, step=None):
        rows.extend((values.get("env_step", step), *item) for item in values.items() if item[0] != "env_step")

    tracker = SimpleNamespace(log=log, finish=lambda: finished.append(True))
    monkeypatch.setattr(record, "open_mirror", lambda *_: mirrors.Mirror(tracker, takes_step))
    run(tmp_path, "dqn")
    assert sorted(rows) == scalars(tmp_path) and finished == [True]
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    shown = [(e.step, key, e.value) for key in events.Tags()["scalars"] for e in events.Scalars(key)]
    expected = {(step, key, float(np.float32(value))) for step, key, value in rows}
    moved = set(shown) - expected  # the earlier of two points at one step, see Logger
    assert expected <= set(shown) and {(step + 1, key, value) for step, key, value in moved} <= expected


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_holds_the_same_scalars_also_of_a_resumed_run(tmp_path):
    run_dir, store = tmp_path / "run", tmp_path / "trackio"
    environment = {**os.environ, "TRACKIO_DIR": str(store), "HF_HUB_OFFLINE": "1"}
    argv = [
        sys.executable,
        "train.py",
        *SMALL["dqn"].split(),
        "--logger",
        "trackio",
        "--run-dir",
        str(run_dir),
    ]
    for steps in ("120", "150"):
        command = [*argv, "--total-steps", steps]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    with contextlib.closing(sqlite3.connect(store / f"{mirrors.PROJECT}.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    found = [(step, key, value) for _, step, text in rows for key, value in json.loads(text).items()]
    assert sorted(found) == scalars(run_dir)
    assert {name for name, _, _ in rows} == {(run_dir / "trackio-run").read_text().strip()}
