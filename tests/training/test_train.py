"""The training loop end to end on small runs: resume, independence of streams, interruption."""

import contextlib
import csv
import json
import math
import re
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch
from scipy.stats import linregress
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from common import checkpoint
from configs import loader
from fire.metrics.costly import DIAGNOSTIC_KEYS
from training import loop
from training.due import Clock

ROOT = Path(__file__).parents[2]
COMMON = (
    "--preset quick --total-steps 200 --replay.learning-starts 60 --replay.batch-size 16 --reset.every 80 "
    "--reset.until 160 --eval.every 90 --eval.episodes 1 --log.every 30 --log.metrics-every 50 --log.probe-size 32 "
    "--num-threads 1 --device cpu "
)
SMALL = {
    "sac": COMMON + "--algo sac --env h1-walk --agent.actor-width 8 --agent.critic-width 8",
    "dqn": COMMON
    + "--algo dqn --env CartPole-v1 --agent.hidden-widths 16 --env.num-envs 3 --eval.episodes 2",
    "xqc": COMMON + "--algo xqc --env Pendulum-v1 --agent.actor-widths 16 --agent.critic-widths 16",
    "td3": COMMON + "--algo td3 --env Pendulum-v1 --agent.hidden-widths 16",
}
# Two of which all that a run does differs: actions, environments, updates. What holds for them is tried with the
# others among the slow tests.
FAMILIES = [algo if algo in ("sac", "dqn") else pytest.param(algo, marks=pytest.mark.slow) for algo in SMALL]
RESETS = [80, 160]


def run(run_dir, algo, *extra):
    config, _ = loader.load([*SMALL[algo].split(), *extra])
    return loop.train(config, run_dir)


def newest(run_dir):
    return checkpoint.load(
        checkpoint.find(run_dir / "checkpoints", "step")[-1], ["agent", "replay", "env", "run"]
    )


def assert_same(one, other, where=""):
    """Equal bit for bit, whatever the nesting; wall-clock seconds aside."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{index}")
    else:
        equal = torch.equal(torch.as_tensor(one), torch.as_tensor(other)) if _is_array(one) else one == other
        assert equal, where


def _is_array(value):
    return isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"


def parameters(run_dir):
    agent = newest(run_dir)["agent"]
    return agent["actor"] if "actor" in agent else agent["q"]


def table(path):
    """Rows of a CSV file without wall-clock scalars."""
    with path.open(newline="") as file:
        return [
            row for row in csv.reader(file) if not row[1].startswith("time/") and row[1] != "reset/seconds"
        ]


def reset_records(run_dir):
    """Rows of ``resets.jsonl`` without wall-clock seconds."""
    records = [json.loads(line) for line in (run_dir / "resets.jsonl").read_text().splitlines()]
    for record in records:
        del record["report"]["reset/seconds"]
    return records


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of each algorithm."""
    folders = {}
    for algo in SMALL:
        folders[algo] = tmp_path_factory.mktemp(algo)
        run(folders[algo], algo)
    return folders


@contextlib.contextmanager
def interrupted_at(env_step, number=signal.SIGINT):
    """Ctrl-C, or signal ``number``, as soon as a program reaches ``env_step``."""
    advance = Clock.advance

    def stop(self, transitions):
        before = self.env_step
        advance(self, transitions)
        if before < env_step <= self.env_step:
            signal.raise_signal(number)

    with mock.patch.object(Clock, "advance", stop):
        yield


def run_interrupted(run_dir, algo, stop_at, *extra):
    """The run, stopped by Ctrl-C at env step ``stop_at`` and resumed from its checkpoint."""
    with interrupted_at(stop_at):
        assert stop_at <= run(run_dir, algo, *extra).clock.env_step < stop_at + 3
    assert run(run_dir, algo, *extra).clock.finished


@pytest.mark.parametrize("algo", FAMILIES)
@pytest.mark.parametrize("stop_at", [40, 120, 160])  # in the warm-up, between resets, on a reset
def test_resume_equals_the_uninterrupted_run_bit_for_bit(algo, stop_at, finished, tmp_path, monkeypatch):
    run_interrupted(tmp_path, algo, stop_at)
    assert_same(newest(tmp_path), newest(finished[algo]))
    assert table(tmp_path / "evaluations.csv") == table(finished[algo] / "evaluations.csv")
    assert table(tmp_path / "scalars.csv") == table(finished[algo] / "scalars.csv")
    assert reset_records(tmp_path) == reset_records(finished[algo])


@pytest.mark.parametrize("algo", SMALL)
def test_learning_happens_resets_happen_and_everything_is_written(algo, finished):
    folder = finished[algo]
    state = newest(folder)
    assert state["agent"]["update_step"] > 0
    config = loader.read_config(folder / "config.yaml")
    agent = loop.make_agent(config, *_spaces(config), torch.device("cpu"))
    first = next(iter(agent.networks().values())).module.state_dict()
    trained = parameters(folder)
    assert any(not torch.equal(first[key], trained[key]) for key in first)
    resets = [json.loads(line) for line in (folder / "resets.jsonl").read_text().splitlines()]
    assert all(r["env_step"] - due in range(3) for r, due in zip(resets, RESETS, strict=True))
    for record in resets:
        for name in agent.networks():
            key = f"plasticity/{name}/dfi_any_scale"
            assert record["after"][key] < 1e-6 * max(record["before"][key], 1.0)
            assert record["report"][f"reset/{name}/sfe"] > 0
        assert "mean_return" in record["before"] and "mean_return" in record["after"]
    when = [row[1] for row in table(folder / "evaluations.csv")[1:]]
    assert when[0] == "random_policy" and when.count("before_reset") == when.count("after_reset") == 2
    assert when[-1] == "periodic"
    # A resumed run rewrites its tables, which must not change their line ends.
    assert not any(b"\r" in path.read_bytes() for path in folder.glob("*.csv"))
    assert list(folder.glob("events.out.tfevents.*"))
    assert checkpoint.find(folder / "checkpoints", "best")


def _spaces(config):
    env = loop.make_evaluation_env(config, 1)
    return env.observation_space, env.action_space, env.max_episode_steps


@pytest.mark.parametrize("algo", SMALL)
def test_every_logged_key_is_documented(algo, finished):
    documented = re.findall(
        r"^\| `([^`]+)` \|", (ROOT / "docs/logged_keys.md").read_text(), flags=re.MULTILINE
    )
    patterns = [re.sub(r"<network>", "[^/]+", re.sub(r"<layer>", ".+", key)) for key in documented]
    logged = {row[1] for row in table_of_everything(finished[algo] / "scalars.csv")}
    assert logged and not [key for key in logged if not any(re.fullmatch(p, key) for p in patterns)]
    everything = {
        row[1] for folder in finished.values() for row in table_of_everything(folder / "scalars.csv")
    }
    # Those of strategies, environments and options that neither run uses are left out.
    others = (
        "recycled_units",
        "human_normalized_score",
        "eval/task",
        *(key.split("/")[-1] for key in DIAGNOSTIC_KEYS),
    )
    own = [
        p for p in patterns if not p.endswith(others) and not p.startswith(("spectrum/", "tasks/", "video/"))
    ]
    assert not [p for p in own if not any(re.fullmatch(p, key) for key in everything)]


@pytest.mark.parametrize("algo", FAMILIES)
def test_the_slope_of_q_values_is_that_of_the_logs_since_the_last_reset(algo, finished):
    logged = {}
    for step, key, value in table_of_everything(finished[algo] / "scalars.csv"):
        logged.setdefault(key, {})[int(step)] = float(value)
    q, slopes = logged["train/q_mean"], logged["train/q_slope"]
    assert slopes
    for step, value in slopes.items():
        since = max((reset for reset in RESETS if reset < step), default=0)
        points = [(s, abs(y)) for s, y in q.items() if since < s <= step]
        assert value == pytest.approx(
            1000 * linregress(*zip(*points, strict=True)).slope, rel=1e-4
        )  # scalars.csv holds float32


@pytest.mark.parametrize("algo", FAMILIES)
def test_expensive_metrics_and_histograms_are_logged_and_do_not_change_the_training(algo, finished, tmp_path):
    run(tmp_path, algo, "--log.expensive-metrics", "true", "--log.histograms", "true")
    assert_same(newest(tmp_path)["agent"], newest(finished[algo])["agent"])
    assert_same(newest(tmp_path)["replay"], newest(finished[algo])["replay"])

    logged: dict[str, list[int]] = {}
    for step, key, value in table_of_everything(tmp_path / "scalars.csv"):
        logged.setdefault(key, []).append(int(step))
        assert math.isfinite(float(value)), key
    networks = ("q",) if algo == "dqn" else ("actor", "critic")
    for key in DIAGNOSTIC_KEYS:
        for network in networks:
            steps = logged.get(key.replace("<network>", network), [])
            missing = key.endswith("coadaptation") and network == "actor"
            if key.endswith("optimization_readiness") and network == "actor":
                assert set(steps) <= set(logged["plasticity/actor/srank"])  # where the loss was positive
                continue
            assert steps == ([] if missing else logged[f"plasticity/{network}/srank"])
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0}).Reload()
    written = events.Tags()["histograms"]
    config = loader.read_config(tmp_path / "config.yaml")
    agent = loop.make_agent(config, *_spaces(config), torch.device("cpu"))
    layers = [
        f"spectrum/{name}/{layer.name}" for name, slot in agent.networks().items() for layer in slot.layers()
    ]
    assert sorted(written) == sorted(layers)
    last = events.Histograms(layers[-1])[-1]
    assert last.histogram_value.num == min(
        agent.networks()[networks[-1]].layers()[-1].matrices().shape[-2:]
    ) * (1 if algo == "dqn" else 2)


def table_of_everything(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


@pytest.mark.parametrize("algo", FAMILIES)
def test_measuring_more_often_does_not_change_the_training(algo, finished, tmp_path):
    run(tmp_path, algo, "--eval.every", "45", "--eval.episodes", "1", "--log.metrics-every", "30", "--log.every", "7",
        "--log.probe-size", "8", "--checkpoint.every", "70")  # fmt: skip
    assert_same(newest(tmp_path)["agent"], newest(finished[algo])["agent"])
    assert_same(newest(tmp_path)["replay"], newest(finished[algo])["replay"])


@pytest.mark.parametrize("algo", FAMILIES)
def test_another_seed_and_no_reset_are_other_runs(algo, finished, tmp_path):
    run(tmp_path / "seed", algo, "--seed", "1")
    run(tmp_path / "none", algo, "--reset", "none")
    for other in ("seed", "none"):
        one, two = parameters(tmp_path / other), parameters(finished[algo])
        assert any(not torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "none" / "resets.jsonl").read_text() == ""
    # Until the first reset the two runs are the same run.
    rows = {
        folder: [row for row in table(folder / "scalars.csv")[1:] if int(row[0]) < RESETS[0]]
        for folder in (tmp_path / "none", finished[algo])
    }
    assert rows[tmp_path / "none"] == rows[finished[algo]]


def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    every = ("--checkpoint.every", "70")
    run(tmp_path / "straight", "dqn", *every)

    def die(self, *args):
        advance(self, *args)
        if self.env_step >= 130:  # after the checkpoint at 72, whose logs have grown since
            raise MemoryError("killed")

    advance = Clock.advance
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "advance", die)
        with pytest.raises(MemoryError):
            run(tmp_path / "killed", "dqn", *every)
    with (tmp_path / "killed/scalars.csv").open("a") as file:
        file.write("129,rollout/ep_rew_")  # a row cut off in mid-write
    run(tmp_path / "killed", "dqn", *every)
    assert_same(newest(tmp_path / "killed"), newest(tmp_path / "straight"))
    for name in ("scalars.csv", "evaluations.csv"):
        assert table(tmp_path / "killed" / name) == table(tmp_path / "straight" / name)


@pytest.mark.parametrize("reset", ["plasticity_injection", "cbp", "snr", "calibrated_partial"])
def test_resume_with_added_modules_and_with_unit_statistics(reset, tmp_path, monkeypatch):
    eager = {
        "cbp": ("--reset.replacement-rate", "0.05", "--reset.maturity", "5"),
        "calibrated_partial": ("--reset.period", "20"),
    }
    options = ("--reset", reset, *eager.get(reset, ()))
    run(tmp_path / "straight", "dqn", *options)
    run_interrupted(tmp_path / "resumed", "dqn", 120, *options)
    assert_same(newest(tmp_path / "resumed"), newest(tmp_path / "straight"))
    recycled = [
        float(r[2]) for r in table(tmp_path / "straight/scalars.csv") if r[1] == "reset/q/recycled_units"
    ]
    resets = (tmp_path / "straight/resets.jsonl").read_text().splitlines()
    if reset == "plasticity_injection":
        assert len(resets) == 2 and any(".start." in key for key in parameters(tmp_path / "straight"))
    else:
        assert not resets and bool(recycled) == (reset != "calibrated_partial")
    if reset == "cbp":
        assert sum(recycled) > 0


def test_trigger_resets_for_the_reason_it_logs_and_keeps_its_gap(tmp_path):
    run(tmp_path, "dqn", "--reset.every", "0", "--log.metrics-every", "30", "--reset.trigger.min-gap", "50",
        "--reset.trigger.metric", "plasticity/q/weight_norm", "--reset.trigger.threshold", "0.1",
        "--reset.warmup", "70", "--env.num-envs", "1")  # fmt: skip
    resets = [json.loads(line) for line in (tmp_path / "resets.jsonl").read_text().splitlines()]
    assert [r["env_step"] for r in resets] == [90, 150]
    assert re.match(r"plasticity/q/weight_norm = [\d.]+ is above 0.1", resets[0]["reason"])


@pytest.mark.parametrize("term", ["l2_init", "parseval"])
@pytest.mark.parametrize("algo", FAMILIES)
def test_regularisers_reach_the_training(algo, term, finished, tmp_path):
    run(tmp_path, algo, f"--agent.{term}", "0.1", "--total-steps", "75", "--reset", "none")
    run(tmp_path / "plain", algo, "--total-steps", "75", "--reset", "none")
    one, two = parameters(tmp_path), parameters(tmp_path / "plain")
    assert any(not torch.equal(one[key], two[key]) for key in one)


def test_a_trigger_on_a_metric_that_is_not_measured_is_an_error(tmp_path, capsys):
    argv = [
        *SMALL["dqn"].split(),
        "--reset.trigger.metric",
        "plasticity/q/srnk",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert train.main(argv) == 2
    assert (
        "plasticity/q/srnk: no such metric is measured; did you mean plasticity/q/srank?"
        in capsys.readouterr().err
    )


def test_a_schedule_beyond_the_end_is_said(tmp_path, capsys):
    run(tmp_path, "dqn", "--reset.every", "0", "--reset.at", "5000", "--total-steps", "70")
    assert "warning: no reset will happen" in capsys.readouterr().out


def test_networks_option_resets_only_those(tmp_path):
    run(tmp_path, "sac", "--reset.networks", "critic", "--total-steps", "90")
    (record,) = [json.loads(line) for line in (tmp_path / "resets.jsonl").read_text().splitlines()]
    key = "plasticity/actor/weight_norm"
    assert record["before"][key] == record["after"][key]
    assert "reset/critic/sfe" in record["report"] and "reset/actor/sfe" not in record["report"]


def test_temperature_is_reset_only_when_asked(tmp_path):
    # An unreachable target entropy makes Adam lower the temperature by its step size at every update.
    falling = (
        "--agent.target-entropy-per-action",
        "-1000",
        "--agent.learning-rate",
        "0.1",
        "--total-steps",
        "82",
    )
    logs = {}
    for choice in ("keep", "reset"):
        run(tmp_path / choice, "sac", "--reset.temperature", choice, *falling)
        logs[choice] = newest(tmp_path / choice)["agent"]["temperature"]["log_alpha"].item() - math.log(0.01)
    assert logs["keep"] < -1.0
    # Two updates have followed the reset; with fresh moments each moves by the step size.
    assert logs["reset"] == pytest.approx(-0.2, abs=0.02)


def test_the_normaliser_is_reset_only_when_asked(tmp_path):
    counts = {}
    for choice in ("keep", "reset"):
        run(tmp_path / choice, "sac", "--reset.normalizer", choice, "--total-steps", "82")
        counts[choice] = newest(tmp_path / choice)["agent"]["actor"]["normalizer.count"].item()
    assert counts["keep"] == pytest.approx(82, abs=0.01)
    assert counts["reset"] == pytest.approx(2, abs=0.01)  # the steps after the reset at 80


@pytest.mark.parametrize("strategy", ["optimizer_only", "dash"])
def test_a_rebuilt_optimizer_counts_its_steps_anew(tmp_path, strategy):
    run(tmp_path, "sac", "--reset", strategy, "--reset.optimizer", "rebuild", "--total-steps", "82")
    agent = newest(tmp_path)["agent"]
    for name in ("actor_optimizer", "critic_optimizer"):
        assert {state["step"].item() for state in agent[name]["state"].values()} == {2.0}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    update = loop.make_agent

    def broken(*args):
        agent = update(*args)
        learn = agent.update

        def poisoned(*args):
            losses = learn(*args)
            return {**losses, "loss": losses["loss"] * float("nan")} if agent.update_step > 30 else losses

        agent.update = poisoned
        return agent

    monkeypatch.setattr(loop, "make_agent", broken)
    argv = [*SMALL["dqn"].split(), "--checkpoint.every", "80", "--run-dir", str(tmp_path / "run")]
    assert train.main(argv) == 1
    assert "train/loss is nan" in capsys.readouterr().err
    assert newest(tmp_path / "run")["agent"]["update_step"] <= 30


@pytest.mark.parametrize("algo", FAMILIES)
def test_weights_that_blow_up_stop_the_run_before_they_are_saved(algo, tmp_path, capsys):
    """A step size of 1e30 makes weights, losses and actions infinite or NaN within a few updates."""
    argv = [*SMALL[algo].split(), "--agent.learning-rate", "1e30", "--checkpoint.every", "30", "--log.every", "0",
            "--run-dir", str(tmp_path / "run")]  # fmt: skip
    assert train.main(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: training diverged: ") and error.count("\n") == 1
    agent = newest(tmp_path / "run")["agent"]
    assert agent["update_step"] <= 1
    assert all(value.isfinite().all() for value in parameters(tmp_path / "run").values())


def test_a_folder_of_another_run_is_refused_and_left_alone(finished, capsys):
    folder = finished["dqn"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert train.main([*SMALL["dqn"].split(), "--agent.gamma", "0.9", "--run-dir", str(folder)]) == 2
    assert "agent.gamma 0.99 (asked for: 0.9)" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
