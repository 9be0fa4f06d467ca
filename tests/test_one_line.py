"""What loading, allocating and writing may raise ends in one line with file and reason, never in a traceback."""

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import evaluate
import train
from common import checkpoint, files
from common.files import to_json
from tests.training.test_train import SMALL, assert_same, newest, run, table
from training import trainer

ROOT = Path(__file__).parent.parent


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def one_line(capsys, *words):
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert str(word) in error
    return error


def test_json_has_no_nan_or_infinity(finished, tmp_path):
    path = tmp_path / "figures.json"
    assert evaluate.main([str(finished), "--episodes", "1", "--json", str(path)]) == 0
    figures = json.loads(path.read_text(), parse_constant=refuse_constant)
    assert figures["standard_error"] is None and figures["episodes"] == 1
    text = to_json({"a": [math.nan, 1.5, -math.inf], "b": (2, None, "x"), "c": {"d": math.inf}})
    assert json.loads(text, parse_constant=refuse_constant) == {
        "a": [None, 1.5, None],
        "b": [2, None, "x"],
        "c": {"d": None},
    }


def test_resets_jsonl_has_no_nan_or_infinity(tmp_path, monkeypatch):
    measure = trainer.measure
    monkeypatch.setattr(
        "training.trainer.measure", lambda *a, **k: {**measure(*a, **k), "plasticity/q/x": math.inf}
    )
    run(tmp_path, "dqn")
    lines = (tmp_path / "resets.jsonl").read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert json.loads(line, parse_constant=refuse_constant)["before"]["plasticity/q/x"] is None


@pytest.mark.parametrize("flag", ["--json", "--video"])
def test_an_output_that_cannot_be_written_is_one_line(flag, finished, tmp_path, capsys):
    path = tmp_path / "folder.mp4"
    path.mkdir()
    assert evaluate.main([str(finished), "--episodes", "1", flag, str(path)]) == 2
    one_line(capsys, path)


@pytest.mark.parametrize("name", ["json", "video"])
def test_an_output_in_a_folder_that_cannot_be_made_is_one_line(name, finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file/x.mp4"
    assert evaluate.main([str(finished), "--episodes", "1", f"--{name}", str(path)]) == 2
    one_line(capsys, tmp_path / "file")


def test_a_checkpoint_of_another_architecture_is_one_line(copy, capsys):
    path = copy / "config.yaml"
    path.write_text(re.sub(r"hidden_widths: .*", "hidden_widths: [24]", path.read_text()))
    assert evaluate.main([str(copy), "--episodes", "1"]) == 2
    one_line(capsys, copy / "checkpoints", "does not fit")
    (copy / "checkpoints" / "x").mkdir()
    argv = [*SMALL["dqn"].replace("--agent.hidden-widths 16", "--agent.hidden-widths 24").split()]
    assert train.main([*argv, "--run-dir", str(copy)]) == 2
    one_line(capsys, copy / "checkpoints", "does not fit")


@pytest.mark.parametrize("part", ["agent", "replay", "env", "run"])
@pytest.mark.parametrize("content", [{}, [], 3, {"q": {}, "clock": 3, "env_id": "x"}])
def test_a_part_that_is_not_what_the_run_wrote_is_one_line(part, content, copy, capsys):
    (saved,) = checkpoint.find(copy / "checkpoints", "step")
    checkpoint_parts = {n: checkpoint.load(saved, [n])[n] for n in ("agent", "replay", "env", "run")}
    step = checkpoint.step_of(saved)
    checkpoint.save(copy / "checkpoints", "step", step, {**checkpoint_parts, part: content})
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(copy)]) == 2
    one_line(capsys, "checkpoints")


@pytest.mark.parametrize("name", ["evaluations.csv", "scalars.csv", "resets.jsonl"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"\xff\xfe\x00\n\x00\n", b"\x9a,key,value\n30,x,1\n", b"env_step\nx,y\n", b"{}\n[]\n", None],
)
def test_damaged_history_is_one_line_or_does_no_harm(name, content, copy, capsys):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    code = train.main([*SMALL["dqn"].split(), "--run-dir", str(copy)])
    error = capsys.readouterr().err
    assert code in (0, 2) and error.count("\n") == (code == 2) and (not code or name in error), error


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff", b"algo: 3\n", b"algo: dqn\n", b"a: [1\n", b"algo: dqn\nreset: 3\n"]
)
def test_a_damaged_config_is_one_line(content, copy, capsys):
    (copy / "config.yaml").write_bytes(content)
    assert evaluate.main([str(copy), "--episodes", "1"]) == 2
    one_line(capsys)
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(copy)]) == 2
    one_line(capsys)


def test_a_config_that_is_a_folder_is_one_line(copy, capsys):
    (copy / "config.yaml").unlink()
    (copy / "config.yaml").mkdir()
    assert evaluate.main([str(copy), "--episodes", "1"]) == 2
    one_line(capsys, "config.yaml")
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(copy)]) == 2
    one_line(capsys, "config.yaml")


@pytest.mark.parametrize("width", ["100000000000", "1000000000000000000", "9" * 30])
def test_widths_that_nobody_can_allocate_are_one_line(width, tmp_path, capsys):
    argv = [*SMALL["dqn"].split(), "--agent.hidden-widths", width, "--run-dir", str(tmp_path / "run")]
    assert train.main(argv) == 2
    one_line(capsys)


def test_as_many_threads_as_no_machine_has_are_one_line(tmp_path, capsys):
    assert (
        train.main([*SMALL["dqn"].split(), "--num-threads", "1000000", "--run-dir", str(tmp_path / "run")])
        == 2
    )
    one_line(capsys, "num_threads")


def test_a_disk_that_is_full_for_the_history_is_one_line(tmp_path, monkeypatch, capsys):
    write = Path.write_text

    def full(self, *args, **kwargs):
        if self.name == "evaluations.csv":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return write(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")]) == 2
    one_line(capsys, "evaluations.csv", "No space left")
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    "backend",
    [
        "module://no_such_package.backend_inline",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("inline", "no such backend")),
    ],
)
def test_a_notebooks_backend_for_pictures_is_left_alone_and_draws(backend, tmp_path):
    environment = {**os.environ, "MPLBACKEND": backend}
    process = subprocess.run(
        [sys.executable, "train.py", *SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Done: " in process.stdout and (tmp_path / "run/learning_curve.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "error", [ValueError("no\nglyphs"), OSError(errno.ENOSPC, "No space left"), ImportError("x")]
)
def test_no_error_while_drawing_costs_a_finished_run_its_exit_code(error, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("training.plots.plot_learning_curve", fail)
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "Done: " in shown.out and shown.err.count("\n") == 1 and "learning_curve.png" in shown.err


def test_a_picture_that_cannot_be_written_costs_a_finished_run_nothing(copy, capsys):
    (copy / "learning_curve.png").unlink()
    (copy / "learning_curve.png").mkdir()
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(copy)]) == 0
    shown = capsys.readouterr()
    assert "Done: " in shown.out and shown.err.count("\n") == 1


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks_trains_with_one_warning(number, finished, tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    files.warn_once.cache_clear()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    run(tmp_path / "run", "dqn")
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
    assert_same(newest(tmp_path / "run"), newest(finished))


@pytest.mark.slow  # Python compiles every module of PyTorch once more; test_architecture looks at ours
def test_evaluate_works_without_docstrings(finished):
    process = subprocess.run(
        [sys.executable, "-OO", "evaluate.py", str(finished), "--episodes", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0 and "mean_return" in process.stdout, process.stderr
    shown = subprocess.run(
        [sys.executable, "-OO", "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert shown.returncode == 0


@pytest.mark.parametrize(
    "script, delay",
    [
        *(("train.py", 0.4), ("evaluate.py", 1.0)),
        *(
            pytest.param(script, delay, marks=pytest.mark.slow)
            for script in ("train.py", "evaluate.py")
            for delay in (0.15, 0.7, 1.5, 2.0)
        ),
    ],
)
def test_ctrl_c_at_any_time_of_the_start_is_no_traceback(script, delay, finished, tmp_path):
    argv = {"train.py": [*SMALL["dqn"].split(), "--total-steps", "100000", "--run-dir", str(tmp_path / "run")],
            "evaluate.py": [str(finished), "--episodes", "100000"]}[script]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, script, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(delay)
    for _ in range(30):  # Python drops an interrupt that comes inside a destructor; a person presses again
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
            break
    _, error = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and b"Traceback" not in error, error


def test_a_bug_keeps_its_traceback(tmp_path, monkeypatch):
    def bug(*_):
        raise AttributeError("a bug of ours")

    monkeypatch.setattr("training.loop.make_agent", bug)
    with pytest.raises(AttributeError):
        train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")])


def test_memory_of_a_gpu_that_runs_out_is_one_line(tmp_path, monkeypatch, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("training.loop.make_agent", out_of_memory)
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")]) == 1
    one_line(capsys, "out of memory")


def test_tables_are_unchanged_by_a_second_call(finished):
    before = table(finished / "evaluations.csv")
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(finished)]) == 0
    assert table(finished / "evaluations.csv") == before
