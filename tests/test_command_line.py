"""``train.py`` as a command: wrong input, folders that are not its own, interruption."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import train
from common import checkpoint
from configs import loader
from configs.errors import ConfigError
from tests.training.test_train import SMALL, interrupted_at, newest, run
from training.folder import claim_run_dir

ROOT = Path(__file__).parent.parent


def command(*argv, cwd=ROOT):
    return [sys.executable, str(ROOT / "train.py"), *argv]


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--algo dqn --env Pendulum-v1", "--algo dqn needs Discrete actions, but Pendulum-v1 has Box"),
        (
            "--algo sac --env CartPole-v1",
            "--algo sac needs Box actions, but CartPole-v1 has Discrete",
        ),
        ("--env h1-wlak", "h1-wlak.*h1-walk"),
        ("--env=", "unknown environment ''"),  # an unset variable of a shell script, not the default
        ("--algo=", "--algo : unknown; valid: dqn, sac"),
        ("--env Pendulum-v9", "Pendulum-v9.*Pendulum-v1"),
        ("--env Pendulum-v1 --reset.networks q", "sac has no network 'q'; valid: actor, critic"),
        ("--algo dqn --env CartPole-v1 --reset.temperature reset", "dqn has no temperature; valid: keep"),
        ("--algo dqn --env CartPole-v1 --reset.normalizer reset", "dqn has no normalizer; valid: keep"),
        ("--reset none --reset.source rewind", "reset.source"),
        ("--env Pendulum-v1 --seed -1", "seed must be at least 0"),
        ("--env Pendulum-v1 --replay.n-step 0", "n_step must be at least 1"),
        (
            "--env Pendulum-v1 --replay.n-step 300 --replay.replay-capacity 200",
            r"n_step must lie in \[1, 200\], got 300",
        ),
        ("--env Pendulum-v1 --replay.replay-capacity 1 --env.num-envs 4", "less than one row of 4"),
        (
            "--env Pendulum-v1 --total-steps 500 --replay.learning-starts 500",
            "must exceed replay.learning_starts 500",
        ),
        ("--env Pendulum-v1 --run-dir /proc/run", "cannot write into run folder /proc/run"),
        (
            "--reset.trigger.metric plasticity/q/dfi --log.metrics-every 0",
            "log.metrics_every must be above 0",
        ),
    ],
)
def test_wrong_input_exits_with_2_one_line_and_no_folder(argv, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train.main(argv.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_show_config_prints_yaml_that_config_reads_without_pytorch(tmp_path):
    argv = [*SMALL["dqn"].split(), "--reset.at", "60", "70", "--seed", "010"]
    program = (
        "import sys, train; code = train.main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr); "
        "sys.exit(code)"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, *argv, "--show-config"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "False\n")
    assert not list(tmp_path.iterdir())
    assert re.search(r"^seed: 10 +# --seed$", process.stdout, flags=re.MULTILINE)
    shown = tmp_path / "shown.yaml"
    shown.write_text(process.stdout)
    assert loader.load(["--config", str(shown)])[0] == loader.load(argv)[0]


def test_show_config_of_several_resets_prints_a_document_each(capsys):
    assert train.main([*SMALL["dqn"].split(), "--resets", "fire", "--resets", "full", "--show-config"]) == 0
    documents = yaml.safe_load_all(capsys.readouterr().out)
    assert [document["reset"]["name"] for document in documents] == ["fire", "full"]


def test_show_config_reads_a_file_once(tmp_path):
    """``--config <(...)`` of a shell is a pipe, empty at a second reading."""
    reading, writing = os.pipe()
    os.write(writing, b"seed: 7\n")
    os.close(writing)
    process = subprocess.run(
        command("--config", f"/dev/fd/{reading}", "--show-config"),
        cwd=tmp_path, pass_fds=[reading], capture_output=True, text=True, check=True,
    )  # fmt: skip
    os.close(reading)
    assert re.search(rf"^seed: 7 +# /dev/fd/{reading}$", process.stdout, flags=re.MULTILINE)


def test_show_config_of_a_wrong_command_is_its_error(capsys):
    assert train.main(["--show-config", "--seed", "-1"]) == 2
    assert "seed must be at least 0" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_checkpoint_is_an_error_not_a_fresh_start(tmp_path, capsys):
    run(tmp_path, "dqn")
    (saved,) = checkpoint.find(tmp_path / "checkpoints", "step")
    (saved / "agent.pt").write_bytes(b"garbage")
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path)]) == 2
    assert "agent.pt is damaged" in capsys.readouterr().err


def test_ctrl_c_saves_says_how_to_resume_and_the_same_command_resumes(tmp_path, capsys):
    argv = [*SMALL["sac"].replace("h1-walk", "Pendulum-v1").split(), "--total-steps", "30000", "--reset.every", "0",
            "--eval.every", "0", "--run-dir", str(tmp_path / "run")]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command(*argv), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    for line in process.stdout:
        if line.startswith("step") and " 210/" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "the same command resumes" in out and "Traceback" not in err
    step = newest(tmp_path / "run")["env_step"]
    assert step >= 210
    with interrupted_at(step + 20, signal.SIGTERM):  # a cluster's way to ask
        assert train.main(argv) == 130
    assert f"from env step {step:,} of" in capsys.readouterr().out.splitlines()[0]
    assert newest(tmp_path / "run")["env_step"] == step + 20


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_reader_who_is_gone_does_not_cost_the_run(number, tmp_path):
    """As in ``train.py ... | head``, and in a terminal that was closed."""
    argv = [*SMALL["dqn"].split(), "--total-steps", "60000", "--reset.every", "0", "--eval.every", "0",
            "--run-dir", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(command(*argv), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    process.stderr.close()
    log = tmp_path / "run/scalars.csv"
    while not log.exists() or len(log.read_text().splitlines()) < 40:  # it goes on, with nobody reading
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(timeout=60)
    assert newest(tmp_path / "run")["env_step"] > 30


def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_train", interrupted)
    assert train.main([*SMALL["dqn"].split(), "--run-dir", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.startswith("stopped at once")


def test_two_processes_cannot_share_a_folder(tmp_path):
    config, _ = loader.load(SMALL["dqn"].split())
    lock = claim_run_dir(tmp_path / "run", config)
    with pytest.raises(ConfigError, match="another process"):
        claim_run_dir(tmp_path / "run", config)
    lock.close()
    claim_run_dir(tmp_path / "run", config).close()
