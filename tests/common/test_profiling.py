"""--profile on a short run: it names real operations and leaves the training alone."""

import json

from common.profiling import MEASURED, TRACE
from tests.test_train import assert_same, newest, run


def test_a_profiled_run_writes_a_trace_and_learns_the_same(tmp_path, capsys):
    for name, flags in (("plain", ()), ("profiled", ("--profile",))):
        run(tmp_path / name, "dqn", *flags)
    assert_same(newest(tmp_path / "plain")["agent"], newest(tmp_path / "profiled")["agent"])
    events = json.loads((tmp_path / "profiled" / TRACE).read_text())["traceEvents"]
    assert any("addmm" in event.get("name", "") for event in events)
    assert not (tmp_path / "plain" / TRACE).exists()
    lines = capsys.readouterr().out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(f"profile of {MEASURED} steps"))
    shares = [float(line.split("%")[0]) for line in lines[start + 1 : start + 11]]
    assert len(shares) == 10 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.5


def test_a_run_that_ends_while_it_is_profiled_keeps_what_was_measured(tmp_path):
    run(tmp_path, "dqn", "--profile", "--total-steps", "105")
    assert json.loads((tmp_path / TRACE).read_text())["traceEvents"]
