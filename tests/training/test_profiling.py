"""--profile on a short run: it names real operations and leaves the training alone."""

import json

from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from tests.training.test_train import assert_same, newest, run
from training.profiling import MEASURED, TRACE, on_device


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


def test_the_time_of_a_kernel_counts_once():
    """Not again for the operation that launched it, nor for the annotated region around both."""

    def event(number, name, device, **options):
        return FunctionEvent(
            number, name, 0, 0, 7, stack=[], device_type=device, use_device="cuda", **options
        )

    operation = event(1, "aten::mm", DeviceType.CPU)
    operation.append_kernel("gemm", 0, 7)
    kernel = event(2, "gemm", DeviceType.CUDA)
    region = event(3, "Optimizer.step", DeviceType.CUDA, is_user_annotation=True)
    events = EventList([operation, kernel, region], use_device="cuda")
    events._build_tree()
    averages = events.key_averages()
    assert sum(e.self_device_time_total for e in averages) == 21
    assert [(e.key, e.self_device_time_total) for e in on_device(averages)] == [("gemm", 7)]
