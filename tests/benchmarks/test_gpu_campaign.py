"""The campaign on a GPU: figures survive errors and the end of the time; every part runs on the CPU at tiny sizes."""

import json
import signal
import time

import pytest
import torch

from benchmarks.gpu import __main__ as campaign
from benchmarks.gpu import atari, check, h1, speed
from benchmarks.gpu.record import Record, TimeUp
from benchmarks.gpu.study import area, at_columns, summary, verdict


def record(folder, seconds=60.0, rehearsal=True):
    return Record(folder, "speed", seconds, "cpu", rehearsal, "speed --output x")


def saved(folder):
    return json.loads((folder / "speed.json").read_text())


def test_what_was_measured_before_an_error_is_on_disk_and_is_not_measured_again(tmp_path):
    first = record(tmp_path)
    assert first.measure("a", lambda: {"x": 1.5, "nan": float("nan")}) == {"x": 1.5, "nan": None}
    assert first.measure("b", lambda: 1 / 0) is None
    state = saved(tmp_path)
    assert state["figures"] == {"a": {"x": 1.5, "nan": None}}
    assert state["errors"] == {"b": "ZeroDivisionError: division by zero"}
    second = record(tmp_path)
    assert second.measure("a", lambda: pytest.fail("measured again")) == {"x": 1.5, "nan": None}
    assert second.measure("b", lambda: 2) == 2
    state = saved(tmp_path)
    assert state["figures"]["b"] == 2 and not state["errors"] and len(state["calls"]) == 2
    page = (tmp_path / "speed.md").read_text()
    assert "| a: x | 1.5 |" in page and torch.__version__ in page


def test_a_part_ends_with_its_time_wherever_it_is_and_keeps_what_it_has(tmp_path):
    begun = time.monotonic()
    one = record(tmp_path, seconds=0.3)
    handler = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeUp), one:
        one.measure("quick", lambda: 1)
        assert one.measure("long", lambda: 2, needs=10) is None
        one.measure("endless", lambda: time.sleep(30))
    assert time.monotonic() - begun < 10 and signal.getsignal(signal.SIGALRM) is handler
    assert saved(tmp_path)["figures"] == {"quick": 1}
    assert saved(tmp_path)["errors"]["endless"] == "the time was over"
    assert saved(tmp_path)["errors"]["long"].startswith("not begun")


def test_a_device_that_fails_ends_the_part(tmp_path):
    def fail():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    with pytest.raises(TimeUp):
        record(tmp_path).measure("a", fail)
    assert saved(tmp_path)["errors"] == {
        "a": "AcceleratorError: CUDA error: an illegal memory access was encountered"
    }


def test_rehearsals_and_measurements_never_share_a_folder(tmp_path):
    record(tmp_path)
    with pytest.raises(SystemExit, match="another --output"):
        record(tmp_path, rehearsal=False)


def test_without_a_card_only_rehearsals_run(tmp_path, capsys):
    assert campaign.main(["speed", "--output", str(tmp_path / "x")]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_a_run_on_games_is_as_long_as_the_time_allows():
    # Half of it once and half of it for each of two resets, 1.5 times its length in all.
    assert atari.steps_in(600, 1000) == 300_000
    assert atari.steps_in(1e6, 1000) == atari.PROTOCOL


def test_columns_are_the_nearest_evaluations_with_intervals_over_seeds():
    curve = {270_000: [100.0, 200.0], 300_000: [10.0, 10.0]}
    row = at_columns(curve, (0.54, 0.6, 1.0), frames_per_step=2)
    assert row["0.54M"]["mean"] == 150 and (row["0.54M"]["low"], row["0.54M"]["high"]) == (100, 200)
    assert row["0.6M"] == {"mean": 10, "low": 10, "high": 10, "seeds": 2} and row["1M"] is None


def test_a_summary_has_a_row_for_each_reset_and_one_for_each_other_figure():
    table = {"fire": at_columns({300_000: [10.0, 12.0]}, (0.6, 1.0), 2)}
    lines = summary(table, {"paper": {"0.6M": 272, "1M": None}}, ["so it is"]).splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["mean", "[95", "%]", "0.6M", "1M"],
        ["fire", "11", "[10,", "12]", "-"],
    ]
    assert lines[2].split() == ["paper", "272", "-"] and lines[3] == "so it is"


def test_a_verdict_needs_seeds_that_agree_and_enough_of_them():
    def curves(*returns):
        return {"none": {1: [0.0] * len(returns)}, "fire": {1: list(returns)}}

    assert "no difference can be told" in verdict(curves(5.0, -1.0, 3.0))[0]
    assert (
        "all seeds agree" in verdict(curves(5.0, 4.0, 3.0))[0] and "0.25" in verdict(curves(5.0, 4.0, 3.0))[0]
    )
    assert verdict(curves(5.0, 4.0, 3.0, 6.0, 5.0))[0].endswith(": a difference")
    assert verdict({"none": {1: [1.0]}, "full": {}}) == []


def test_seeds_that_have_come_less_far_are_compared_where_all_have_come():
    assert area({1: [1.0, 3.0], 2: [3.0, 5.0], 3: [100.0]}) == [2.0, 4.0]


TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_good(): pass
@pytest.mark.parametrize("x", ["a b"])
def test_bad(x): assert x == "c", "boom"
"""


def test_failing_tests_on_the_card_are_named_with_the_reason(tmp_path):
    (tmp_path / "test_card.py").write_text(TESTS)
    found = check.gpu_tests([str(tmp_path)], 600.0, tmp_path / "report.txt")
    failures = found.pop("failures")
    assert found == {"passed": 1, "failed": 1, "finished": True, "right": False}
    assert len(failures) == 1 and "test_bad[a b]" in failures[0] and "boom" in failures[0]
    assert "AssertionError: boom" in (tmp_path / "report.txt").read_text()


def test_tests_that_do_not_end_count_as_far_as_they_came(tmp_path, monkeypatch):
    def stopped(command, stdout, **options):
        stdout.write(
            "tests/a.py::test_x PASSED [ 10%]\ntests/a.py::test_y[a b] PASSED [ 20%]\ntests/b.py::test_z "
        )
        raise check.subprocess.TimeoutExpired(command, 1.0)

    monkeypatch.setattr(check.subprocess, "run", stopped)
    found = check.gpu_tests(["tests"], 1.0, tmp_path / "report.txt")
    assert found == {"passed": 2, "finished": False, "failures": [], "right": None}


def test_what_was_wrong_is_checked_again_and_the_result_says_how_many_are_right(tmp_path):
    one = Record(tmp_path, "check", 60.0, "cpu", True, "check")
    for name, right in {"a": True, "b": False, "c": None}.items():
        one.measure(name, lambda right=right: {"right": right})
    one.measure("d", lambda: 1 / 0)
    check.conclude(one, None)
    assert one.figures["result"] == "1 of 3 right, 2 not finished; WRONG: b"
    check.forget_what_is_wrong(one)
    assert set(one.figures) == {"a", "result"}


def checked(device):
    flags = f"--algo dqn --env CartPole-v1 --preset quick --device {device} --replay.batch-size 8"
    found = check.graphs_against_eager(flags, 2)
    assert found["right"] and not found["fell back to eager"]
    assert check.twice(flags, 1)["right"] and check.together(flags, 1, 2)["right"]


def test_updates_are_checked_alone_and_together():
    checked("cpu")


@pytest.mark.gpu
@pytest.mark.slow
def test_updates_are_checked_with_graphs():
    checked("cuda")


@pytest.mark.gpu
@pytest.mark.slow
def test_what_speed_measures_on_a_card_runs_there(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "busy_share", lambda call, count: 0.5)  # of a profiler that needs a card
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    one = Record(tmp_path, "speed", 600.0, "cuda", True, "speed")
    assert speed.machine("cuda", 16)["tf32 TFLOP per second"] > 0
    for runs, precision in ((1, "tf32"), (2, "bf16")):
        found = speed.sac(one, runs, precision, False, 1, "cuda", True)
        assert found["agent updates per second"] > 0 and found["share of time in kernels"] == 0.5
    assert "q_mean, tf32" in speed.same_learning("cuda", True)
    assert speed.dqn(1, 1, "cuda")["joint updates per second"] > 0
    assert speed.lean(1, "cuda")["joint updates per second"] > 0
    assert speed.network_reset("nature_cnn", "cuda", 1)["ours, with report, ms"] > 0
    assert speed.agent_reset("cuda", True, "fire")["reset, ms"] > 0


def test_how_far_results_lie_apart_is_a_share_of_the_way():
    start, one, other = ([torch.tensor(values)] for values in ([1.0, 0.0], [1.0, 4.0], [1.0, 5.0]))
    assert check.furthest(one, other, start) == pytest.approx(1 / 5)
    assert check.furthest(start, other, start) == pytest.approx(1) and check.furthest(one, one, start) == 0


def test_env_steps_are_counted_for_all_environments():
    found = speed.env_steps("CartPole-v1", 0.06)
    assert set(found) == {"1 environments", "4 environments", "16 environments"}
    assert all(rate > 0 for rate in found.values())


def test_targets_say_what_was_met_and_what_was_missed():
    figures = {
        "SAC reset": {"reset, ms": 3.0},
        "DQN updates on frames, 1 run": {"joint updates per second": 10.0},
    }
    assert speed.held_against_targets(figures) == {
        "SAC reset: reset, ms": "3, at most 4 wanted: met",
        "DQN updates on frames, 1 run: joint updates per second": "10, at least 3000 wanted: MISSED",
    }


def rehearse(part, folder, *flags):
    assert campaign.main([part, "--rehearse", "--output", str(folder), "--minutes", "9", *flags]) == 0
    return json.loads((folder / f"{part}.json").read_text())


@pytest.mark.slow
@pytest.mark.atari
def test_check_is_rehearsed(tmp_path):
    state = rehearse("check", tmp_path)
    assert not state["errors"], state["errors"]
    wrong = [
        name for name, value in state["figures"].items() if isinstance(value, dict) and not value["right"]
    ]
    assert not wrong and state["figures"]["result"].endswith(" right")


@pytest.mark.slow
@pytest.mark.atari
def test_speed_is_rehearsed(tmp_path):
    state = rehearse("speed", tmp_path)
    assert not state["errors"], state["errors"]
    assert state["figures"]["SAC updates, 4 runs, float32"]["agent updates per second"] > 0
    assert len(state["figures"]["top ten of a SAC update"]) == 11 and (tmp_path / "speed.png").exists()


@pytest.mark.slow
def test_h1_is_rehearsed_interrupted_and_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.study.SAVING", 0.0)
    with monkeypatch.context() as stopped:  # the first call ends after the beginnings
        stopped.setattr(h1.Study, "branches", lambda self: 1 / 0)
        state = rehearse("h1", tmp_path, "--seeds", "2")
        assert (
            state["figures"]["beginnings"]["finished"] and "ZeroDivisionError" in state["errors"]["branches"]
        )
    state = rehearse("h1", tmp_path, "--seeds", "2")
    assert not state["errors"] and state["figures"]["branches"]["finished"]
    assert state["figures"]["branches"]["runs"] == 4  # two resets, two seeds
    curves = state["figures"]["curves"]
    assert set(curves) == {"beginnings", "none", "fire"}
    assert all(len(returns) == 2 for curve in curves.values() for returns in curve.values())
    assert max(map(int, curves["fire"])) == 120 and min(map(int, curves["fire"])) > 60
    policy = torch.load(tmp_path / "policies/fire-seed1.pt", weights_only=True)
    assert policy["env_step"] == 120 and any("normalizer" in name for name in policy["actor"])
    resets = [
        json.loads(line) for line in (tmp_path / "runs/fire/seed0/resets.jsonl").read_text().splitlines()
    ]
    assert [(each["env_step"], each["reset"]) for each in resets] == [(60, "fire")]
    assert (tmp_path / "h1.png").exists()


@pytest.mark.slow
@pytest.mark.atari
def test_atari_is_rehearsed(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.study.SAVING", 0.0)
    state = rehearse("atari", tmp_path)
    assert not state["errors"] and state["figures"]["branches"]["env step"] == 160
    assert set(state["figures"]["curves"]) == {"beginnings", "none", "fire"}
