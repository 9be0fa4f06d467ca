"""The pretended CUDA device sees what a real one would refuse, and what the host would wait for."""

import os

import pytest
import torch

from tests.pretend_cuda import DeviceMix, NotCapturable, Pretended
from tests.training.test_act_lag import ARGS


def recorded(body):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, body()


def test_tensors_are_where_they_were_put():
    with Pretended() as gpu:
        x = torch.zeros(3, device="cuda")
        derived = [
            x + 1,
            x[:2],
            x.clone(),
            torch.ones_like(x),
            torch.tensor([1.0], device=x.device),
            x.double(),
        ]
        assert all(t.device.type == "cuda" and t.is_cuda and not t.is_cpu for t in derived)
        assert x.cpu().device.type == "cpu" and torch.zeros(3).device.type == "cpu"
        module = torch.nn.Linear(3, 2).to("cuda")
        assert {p.device.type for p in module.parameters()} == {"cuda"}
        assert gpu.waits.total() == 1 and gpu.uploads.total() == 3
    assert torch.zeros(3).device.type == "cpu" and not torch.cuda.is_available()


def test_tensors_of_two_devices_do_not_mix():
    with Pretended():
        x = torch.zeros(3, device="cuda")
        for mixing in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([x, torch.ones(3)]),
            lambda: x[None] @ torch.ones(3),
        ):
            with pytest.raises(DeviceMix):
                mixing()
        assert (x + torch.tensor(2.0)).tolist() == [2.0, 2.0, 2.0]  # CUDA takes numbers from the CPU
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()


@pytest.mark.parametrize(
    "body",
    [
        lambda x: float(x.sum()),
        lambda x: 1 if x.sum() > 0 else 2,
        lambda x: x[x > 0],
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: torch.linalg.svdvals(torch.diag(x)),
    ],
)
def test_a_graph_refuses_what_waits_or_comes_from_memory_that_is_not_pinned(body):
    with Pretended() as gpu:
        x = torch.ones(3, device="cuda")
        before = gpu.waits.total() + gpu.uploads.total()
        body(x)
        assert gpu.waits.total() + gpu.uploads.total() > before
        with pytest.raises(NotCapturable):
            recorded(lambda: body(x))


def test_a_replay_repeats_the_operations_on_the_same_addresses():
    with Pretended() as gpu:
        x, factor = torch.ones(3, device="cuda"), 2.0
        total = torch.zeros(3, device="cuda")
        graph, result = recorded(lambda: total.add_(x * factor) + 1)
        factor = 3.0  # a constant of the recording
        x.fill_(10.0)
        graph.replay()
        assert result.tolist() == [23.0] * 3 and total.tolist() == [22.0] * 3
        assert gpu.graphs == [3] and gpu.kernels["graph"] == 1


def test_a_pinned_copy_is_not_waited_for():
    with Pretended() as gpu:
        pinned, there = torch.empty(3, pin_memory=True), torch.empty(3, device="cuda")
        there.copy_(pinned, non_blocking=True)
        assert not gpu.uploads and not gpu.waits
        there.copy_(pinned)
        assert gpu.uploads.total() == 1


def test_runs_of_the_tests_stay_on_the_cpu_where_there_is_a_gpu():
    from configs import loader

    assert all(loader.load(flags.split())[0].device == "cpu" for flags in ARGS.values())


def test_a_card_is_hidden_from_all_tests_that_do_not_ask_for_it(request):
    if not request.config.option.markexpr.startswith("gpu"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
