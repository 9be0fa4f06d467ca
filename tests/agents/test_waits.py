"""What the host waits for on a GPU, counted on a pretended one, never more than the numbers here."""

import numpy as np
import pytest
import torch

from agents.graphs import capture
from fire.metrics.cheap import measure
from fire.options import OPTIONS, FireOptions
from fire.resets.registry import REGISTRY, make_reset, reset_networks
from tests.agents.learning_cases import Case
from tests.pretend_cuda import Pretended
from training.trainer import Trainer

CUDA = torch.device("cuda")
# Waits of a reset, its report included: one question for all that decides. Those that must know which units there are
# (redo) ask more; random isometries are drawn on the host, and singular values clipped there.
RESET_WAITS = {
    "sac": {"redo": 38, "random_orthogonal": 10, "singular_clip": 10},
    "dqn": {"redo": 14, "random_orthogonal": 4, "singular_clip": 4},
}
TRACKER_WAITS = 4  # of a strategy that acts after every update


def learning(algo, **options):
    case = Case(algo, capture, device=CUDA, act_capture=capture, **options)
    for _ in range(6):  # all places of a target's copy among two updates
        case.step()
        case.learner.learn(2)
    return case


@pytest.mark.parametrize(
    ("algo", "count", "observe_kernels"),
    [("sac", 1, 24), ("dqn", 2, 0), pytest.param("sac", 2, 24, marks=pytest.mark.slow)],
)
def test_a_step_waits_for_the_action_alone(algo, count, observe_kernels):
    with Pretended() as gpu:
        case = learning(algo, count=count)
        gpu.forget()
        case.learner.learn(2)
        assert not gpu.waits and not gpu.uploads and gpu.kernels.total() <= 2  # inputs and the graph
        gpu.forget()
        case.stack.observe(np.stack([case._obs] * count))
        assert not gpu.waits and not gpu.uploads and gpu.kernels.total() <= observe_kernels
        gpu.forget()
        case.stack.act(np.stack([case._obs] * count), 50)
        assert gpu.waits.total() == 1 and not gpu.uploads
        gpu.forget()
        case.step()
        assert gpu.waits.total() == 1 and not gpu.uploads


def test_a_step_on_frames_waits_for_the_actions_alone_and_all_agents_act_before_the_first_is_read(
    monkeypatch,
):
    with Pretended() as gpu:
        case = Case("pixels", None, count=2, device=CUDA, act_capture=capture)
        case.step()  # records
        gpu.forget()
        waits_at_launch = []
        for agent in case.agents:
            monkeypatch.setattr(agent, "start_act", _noting(agent.start_act, gpu, waits_at_launch))
        case.step()
        assert waits_at_launch == [0, 0] and gpu.waits.total() == 2 and not gpu.uploads


def _noting(function, gpu, noted):
    def call(*args):
        noted.append(gpu.waits.total())
        return function(*args)

    return call


# To prove what each unit feeds takes most of the time on SAC's deep networks.
UNITS = {"redo", "cbp", "snr", "calibrated_partial"}


@pytest.mark.parametrize(
    ("algo", "left_out"), [("sac", UNITS), ("dqn", set()), pytest.param("sac", set(), marks=pytest.mark.slow)]
)
def test_a_reset_waits_a_few_times_however_many_layers_it_has(algo, left_out):
    with Pretended() as gpu:
        case = Case(algo, None, device=CUDA)
        for _ in range(6):
            case.step()
        case.learner.learn(1)
        # Those that add parameters come last: not every other one can follow them.
        order = sorted(set(REGISTRY) - left_out, key=lambda name: REGISTRY[name].structural)
        strategies = [(name, make_reset(name, OPTIONS[name]())) for name in order]
        fresh = make_reset("fire", FireOptions(scale="fresh_norm", biases="rescale"))
        for name, strategy in [("fire at fresh norms", fresh), *strategies]:
            batch = case.replay.run(0).sample(16 * strategy.num_minibatches, torch.Generator())
            slots = case.agents[0].networks()
            gpu.forget()
            if (tracker := strategy.tracker()) is not None:
                tracker.after_update(slots, batch, torch.Generator())  # finds the units, once in a run
                gpu.forget()
                tracker.after_update(slots, batch, torch.Generator())
                assert gpu.waits.total() <= TRACKER_WAITS, (name, gpu.waits)
                continue
            reset_networks(slots, strategy, batch, torch.Generator(), batch).scalars()
            # One more for what was kept, which cannot be known before the weights are written.
            assert gpu.waits.total() <= RESET_WAITS[algo].get(name, 1) + 1, (name, gpu.waits)
            if name == "fire":
                assert not gpu.uploads
            case.learner.learn(1)


@pytest.mark.parametrize("algo", ["sac", "dqn", "pixels"])
def test_metrics_and_the_look_for_nan_wait_once_each_and_once_for_every_networks_features(algo):
    with Pretended() as gpu:
        case = Case(algo, None, device=CUDA)
        case.step()
        batch, losses = case.learner.learn(1)
        slots = case.agents[0].networks()
        gpu.forget()
        measure(slots, batch.run(0))
        assert gpu.waits.total() <= 1 + len(slots), gpu.waits
        trainer = Trainer.__new__(Trainer)
        trainer.agent, trainer.index, trainer.losses = case.agents[0], 0, losses
        trainer.clock = type("Clock", (), {"env_step": 0})
        gpu.forget()
        trainer.check_finite()
        assert gpu.waits.total() <= 2, gpu.waits
