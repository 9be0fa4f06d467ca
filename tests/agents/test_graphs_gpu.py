"""CUDA graphs of updates and acting: captured equals eager, through resets, checkpoints and whole runs."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from agents.graphs import capture
from agents.numerics import Numerics
from configs import loader
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, reset_networks
from tests.agents.learning_cases import Case
from tests.training.test_act_lag import ARGS, SHORT
from tests.training.test_train import newest, run_interrupted
from training import loop

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def assert_close(one, other, where=""):
    """The same kernels on the same values; only libraries' choices between kernels may differ."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_close(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, f"{where}/{index}")
    elif isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-5, check_device=False, msg=lambda m: f"{where}: {m}"
        )


def through(one, other, resets=lambda case, step, batches: None, steps=8):
    for step in range(steps):
        for case in (one, other):
            case.actions = case.step()
        assert_close([torch.as_tensor(a) for a in one.actions], [torch.as_tensor(a) for a in other.actions])
        if count := step % 4:
            (batches, losses), (others, logged) = one.learner.learn(count), other.learner.learn(count)
            assert_close(losses, logged, f"step {step}")
            resets(one, step, batches)
            resets(other, step, others)
    for a, b in zip(one.agents, other.agents, strict=True):
        assert a.update_step == b.update_step > 0
        assert_close(a.state_dict(), b.state_dict())


def pair(algo, **options):
    return Case(algo, None, device=CUDA, **options), Case(
        algo, capture, device=CUDA, act_capture=capture, **options
    )


RESETS = {"fire": {}, "full": {"optimizer": "rebuild"}, "plasticity_injection": {}, "redo": {}, "cbp": {}}
QUICK = {("sac", "fire"), ("dqn", "plasticity_injection"), ("dqn", "full"), ("dqn", "redo")}


def slow_unless(quick, *each):
    """A case that is slow on the pretended device, where it is not among the quick ones."""
    return pytest.param(*each, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    ("algo", "reset"),
    [slow_unless((algo, reset) in QUICK, algo, reset) for algo in ("sac", "dqn") for reset in RESETS],
)
def test_captured_updates_equal_eager_ones_through_resets(algo, reset):
    strategy = REGISTRY[reset](OPTIONS[reset](**RESETS[reset]))

    def resets(case, step, batches):
        slots, tracker = case.agents[0].networks(), strategy.tracker()
        if tracker is not None:
            tracker.after_update(slots, batches.run(0), torch.Generator().manual_seed(step))
        elif step == 6:
            reset_networks(slots, strategy, batches.run(0), torch.Generator().manual_seed(step))

    through(*pair(algo), resets)


def test_captured_updates_on_frames_equal_eager_ones():
    through(*pair("pixels"))


@pytest.mark.parametrize("algo", [slow_unless(False, "sac"), "dqn", slow_unless(False, "pixels")])
def test_captured_updates_of_several_agents_equal_eager_ones(algo):
    through(*pair(algo, count=3))


@pytest.mark.parametrize("precision", [slow_unless(False, "tf32"), "bf16"])
def test_captured_updates_equal_eager_ones_in_every_precision(precision):
    through(*pair("sac", numerics=Numerics(precision)))
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"


def test_a_reset_in_place_reaches_the_captured_graph_without_a_new_capture():
    counted = []

    def counting(body, side):
        counted.append(1)
        return capture(body, side)

    case = Case("sac", counting, device=CUDA)
    case.step()
    case.learner.learn(2)
    batch = case.learner.learn(2)[0].run(0)
    weights = case.agents[0].critic.parameters
    before = parameters_to_vector(weights()).detach().clone()
    reset_networks(case.agents[0].networks(), REGISTRY["full"](), batch, torch.Generator().manual_seed(0))
    fresh = parameters_to_vector(weights()).detach().clone()
    case.learner.learn(2)
    now = parameters_to_vector(weights()).detach()
    assert len(counted) == 1
    assert 0 < (now - fresh).norm() < 0.2 * (now - before).norm()


@pytest.mark.parametrize("algo", ["sac", "dqn"])
def test_a_loaded_checkpoint_goes_on_through_graphs(algo, untraced):
    one, other = Case(algo, capture, device=CUDA), Case(algo, capture, device=CUDA)
    for case in (one, other):
        case.step()
        case.learner.learn(2)
    agent = other.agents[0]
    state = copy.deepcopy(agent.state_dict())
    other.learner.learn(2)
    agent.load_state_dict(state)
    # The same draws for both: the replay's generator is no part of the agent.
    other.learner.generators[0].set_state(one.learner.generators[0].get_state())
    for case in (one, other):
        case.learner.learn(2)
    assert_close(one.agents[0].state_dict(), agent.state_dict())


def test_the_gpu_draws_what_the_cpu_draws(untraced):
    cpu, gpu = Case("sac", None), Case("sac", capture, device=CUDA)
    for case in (cpu, gpu):
        for _ in range(5):
            case.step()
    for one, other in zip(cpu.learner.learn(3)[0], gpu.learner.learn(3)[0], strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-4, atol=1e-5)


def test_captured_acting_takes_other_shapes_and_follows_the_weights():
    case = Case("dqn", None, device=CUDA, act_capture=capture)
    agent = case.agents[0]
    rng = np.random.default_rng(0)
    for size in (1, 4, 1, 4):
        with torch.no_grad():
            for parameter in agent.q.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(size)))
        obs = rng.normal(size=(size, 5)).astype(np.float32)
        with torch.inference_mode():
            expected = agent.q(torch.as_tensor(obs, device=CUDA)).argmax(1).cpu().numpy()
        assert np.array_equal(agent.act_greedy(obs), expected)


@pytest.mark.parametrize(
    ("algo", "lag"),
    [slow_unless((algo, lag) == ("dqn", "0"), algo, lag) for algo in ("sac", "dqn") for lag in "01"],
)
def test_a_run_with_graphs_resumes_and_makes_every_update(algo, lag, tmp_path, monkeypatch):
    monkeypatch.setitem(ARGS, algo, ARGS[algo] + " --device cuda")
    monkeypatch.setattr("tests.training.test_train.SMALL", ARGS)
    options = [*SHORT.split(), "--act-lag", lag]
    config, _ = loader.load([*ARGS[algo].split(), *options])
    loop.train(config, tmp_path / "straight")
    run_interrupted(tmp_path / "resumed", algo, 100, *options)
    one, other = newest(tmp_path / "straight"), newest(tmp_path / "resumed")
    assert one["agent"]["update_step"] == other["agent"]["update_step"] > 0
    assert_close(one["agent"], other["agent"])
    eager, _ = loader.load([*ARGS[algo].split(), *options, "--cuda-graphs", "false"])
    loop.train(eager, tmp_path / "eager")
    assert_close(newest(tmp_path / "eager")["replay"]["reward"][:8], one["replay"]["reward"][:8])
    assert newest(tmp_path / "eager")["agent"]["update_step"] == one["agent"]["update_step"]
