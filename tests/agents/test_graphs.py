"""How graphs are recorded, and what happens where they do not work: the run goes on and loses nothing but speed."""

import gc
import weakref
from unittest import mock

import pytest
import torch

import train
from agents import graphs
from agents.graphs import Side, capture
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, reset_networks
from tests.agents.learning_cases import Case, recorded
from tests.pretend_cuda import Pretended
from tests.training.test_train import SMALL, assert_same


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(
        graphs, "warn_once", lambda message: said.append(message) if message not in said else None
    )
    return said


def test_no_garbage_is_collected_while_a_graph_is_recorded():
    seen = []
    with Pretended():
        capture(lambda: seen.append(gc.isenabled()), Side())
        assert seen == [True] * graphs.WARM_UP + [False] and gc.isenabled()

        def broken():
            seen.append(gc.isenabled())
            if not seen[-1]:
                raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            capture(broken, Side())
        assert seen[-1] is False and gc.isenabled()


def test_garbage_of_before_is_collected_before_the_recording():
    class Node:
        pass

    gone = mock.Mock()
    gc.disable()
    try:
        with Pretended():
            node = Node()
            node.self = node
            weakref.finalize(node, gone)
            del node
            capture(lambda: None, Side())
        assert gone.called and not gc.isenabled()  # left as it was
    finally:
        gc.enable()


def test_there_are_as_many_streams_as_owners_of_graphs_however_often_blocks_are_recorded_anew():
    sides = []

    def noting(body, side):
        sides.append(side)
        return recorded(body, side)

    strategy = REGISTRY["full"](OPTIONS["full"](optimizer="rebuild"))
    case = Case("dqn", noting, act_capture=noting)
    for number in range(40):
        case.step()
        batch, _ = case.learner.learn(1)
        slots = case.agents[0].networks()
        reset_networks(slots, strategy, batch.run(0), torch.Generator().manual_seed(number))
    assert len(sides) >= 41
    assert len(set(map(id, sides))) == 2  # the learner's and the acting agent's
    with Pretended() as gpu:
        for _ in range(3):
            capture(lambda: None, sides[0])
        assert gpu.streams == 1


def _compare(case, plain):
    for step in range(6):
        actions = [each.step() for each in (case, plain)]
        assert all((a == b).all() for a, b in zip(*actions, strict=True))
        if count := step % 3:
            results = [each.learner.learn(count) for each in (case, plain)]
            assert_same(results[0][1], results[1][1], f"step {step}")
    for a, b in zip(case.agents, plain.agents, strict=True):
        assert a.update_step == b.update_step > 0
        assert_same(a.state_dict(), b.state_dict())


@pytest.mark.parametrize(("algo", "count"), [("sac", 1), ("dqn", 2)])
def test_a_capture_that_fails_costs_speed_and_one_warning_each_for_updates_and_acting(
    algo, count, warnings, untraced
):
    def failing(body, side):
        body()
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        finally:
            raise torch.OutOfMemoryError("capture_end failed")

    _compare(Case(algo, failing, count, act_capture=failing), Case(algo, None, count))
    assert len(warnings) == 2
    assert all("operation not permitted" in each and "--cuda-graphs false" in each for each in warnings)
    assert not any("more" in each or "capture_end" in each for each in warnings)


def _without_the_last_operation(body, side):
    """A graph that lacks its last change in place: here the step of an optimizer, or a target's update."""
    replay = recorded(body)
    operations = replay.operations
    changes = [i for i, (function, *_) in enumerate(operations) if function._schema.name.endswith("_")]
    del operations[changes[-1]]
    return replay


@pytest.mark.parametrize("algo", ["sac", "dqn", "td3"])
def test_a_graph_that_differs_from_the_eager_updates_is_found_at_once_and_left(algo, warnings, untraced):
    _compare(Case(algo, _without_the_last_operation), Case(algo, None))
    assert len(warnings) == 1 and "differ from eager ones" in warnings[0]


def test_recorded_acting_that_differs_is_found_at_once_and_left(warnings, untraced):
    def stale(body, side):
        result = body().clone()
        return lambda: result + 1

    _compare(Case("sac", None, act_capture=stale), Case("sac", None))
    assert len(warnings) == 1 and "acting" in warnings[0]


def test_the_first_block_alone_is_compared(monkeypatch):
    compared = []
    monkeypatch.setattr("agents.learner.agree", lambda *args: compared.append(1) or graphs.agree(*args))
    case = Case("dqn", recorded)
    case.step()
    for count in (1, 2, 3, 1):
        case.learner.learn(count)
    assert len(compared) == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"), "out of memory"),
        (
            torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore"),
            "illegal memory access",
        ),
    ],
)
def test_a_gpu_that_fails_a_run_is_one_line_and_the_run_is_kept(error, words, tmp_path, monkeypatch, capsys):
    from agents.learner import Learner

    learn, calls = Learner.learn, []

    def fails_later(self, count):
        calls.append(count)
        if len(calls) > 20:
            raise error
        return learn(self, count)

    folder = tmp_path / "run"
    argv = [*SMALL["dqn"].split(), "--checkpoint.every", "60", "--run-dir", str(folder)]
    monkeypatch.setattr(Learner, "learn", fails_later)
    assert train.main(argv) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and words in said and str(folder) in said
    monkeypatch.setattr(Learner, "learn", learn)
    assert train.main(argv) == 0  # goes on from its last checkpoint
