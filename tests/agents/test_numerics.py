"""--precision: bfloat16 losses against float32 ones, what stays float32, and TensorFloat-32's flags."""

import numpy as np
import pytest
import torch

import train
from agents.dqn import DQN
from agents.learner import Agents
from agents.numerics import Numerics, set_products
from agents.replay import Batch
from agents.sac import SAC
from configs.errors import ConfigError
from configs.schema import DQNConfig, SACConfig

CPU = torch.device("cpu")
OBS, ACTION, BATCH = 5, 3, 64
BF16 = Numerics("bf16")
# bfloat16 rounds to 8 significant bits, that is to within 2^-9.
ROUNDING = 2.0**-9


def agent(algo, numerics, seed=0):
    if algo == "sac":
        config = SACConfig(actor_width=16, critic_width=32, critic_blocks=1)
        return SAC(config, OBS, ACTION, 500, seed, CPU, numerics)
    if algo == "pixels":
        return DQN(DQNConfig(), (4, 84, 84), ACTION, 0, 100, seed, CPU, numerics)
    return DQN(DQNConfig(hidden_widths=(32, 32)), (OBS,), ACTION, 0, 100, seed, CPU, numerics)


def batch(algo, seed=0):
    g = torch.Generator().manual_seed(seed)
    size = 4 if algo == "pixels" else BATCH
    if algo == "pixels":
        obs, next_obs = torch.randint(256, (2, size, 4, 84, 84), generator=g, dtype=torch.uint8)
    else:
        obs, next_obs = torch.randn(2, size, OBS, generator=g)
    discrete = torch.randint(ACTION, (size,), generator=g)
    action = torch.rand(size, ACTION, generator=g) * 2 - 1 if algo == "sac" else discrete
    return Batch(obs, action, torch.randn(size, generator=g), torch.full((size,), 0.99), next_obs)


def gradients(made):
    """Losses and gradients of one update, by network."""
    losses = made.learn(batch("sac" if isinstance(made, SAC) else "pixels" if made._is_pixels else "dqn"))
    modules = [getattr(made, name) for name in made.optimizers.values()]
    grads = [torch.cat([p.grad.flatten() for p in module.parameters()]) for module in modules]
    assert all(grad.dtype == torch.float32 for grad in grads)
    return losses, grads


@pytest.mark.parametrize("algo", ["sac", "dqn", "pixels"])
def test_bf16_losses_and_gradients_are_float32_ones_but_for_rounding(algo):
    """Errors are those of float32 arithmetic on weights rounded to bfloat16, or about as large."""
    (exact, grads), (lowered, rounded) = gradients(agent(algo, Numerics())), gradients(agent(algo, BF16))
    coarse = agent(algo, Numerics())
    with torch.no_grad():
        for name in coarse.optimizers.values():
            for parameter in getattr(coarse, name).parameters():
                parameter.copy_(parameter.bfloat16())
    _, unavoidable = gradients(coarse)
    for name, value in exact.items():
        assert lowered[name].dtype == torch.float32
        torch.testing.assert_close(lowered[name], value, rtol=8 * ROUNDING, atol=8 * ROUNDING)
    for one, other, reference in zip(grads, rounded, unavoidable, strict=True):
        assert (one - other).norm() < 1.5 * (one - reference).norm()
    assert any(not torch.equal(one, other) for one, other in zip(grads, rounded, strict=True))


@pytest.mark.parametrize("algo", ["sac", "dqn"])
def test_bf16_leaves_parameters_optimizers_and_acting_in_float32(algo):
    one, other = agent(algo, BF16), agent(algo, Numerics())
    for seed in range(3):
        one.learn(batch(algo, seed))
    other.load_state_dict(one.state_dict())
    modules = [getattr(one, name) for name in one.modules]
    learned = [p for module in modules for p in module.parameters()]
    states = [s for name in one.optimizers for s in getattr(one, name).state.values()]
    assert {t.dtype for t in learned} | {t.dtype for state in states for t in state.values()} == {
        torch.float32
    }
    obs = np.random.default_rng(0).normal(size=(4, OBS)).astype(np.float32)
    assert np.array_equal(one.act(obs, 0), other.act(obs, 0))
    # Metrics and resets look at the loss through the slots.
    for name, slot in one.networks().items():
        assert torch.equal(slot.loss(batch(algo)), other.networks()[name].loss(batch(algo)))


@pytest.mark.parametrize("algo", ["sac", "dqn"])
def test_bf16_agents_trained_together_equal_single_ones(algo):
    alone, stacked = ([agent(algo, BF16, seed) for seed in range(2)] for _ in range(2))
    stack = Agents(stacked)
    batches = [batch(algo, seed) for seed in range(2)]
    losses = stack.update(
        Batch(*map(torch.stack, zip(*batches, strict=True))), stack.draw(len(batches[0].reward))
    )
    for k, one in enumerate(alone):
        for name, value in one.learn(batches[k]).items():
            torch.testing.assert_close(losses[name][k], value, rtol=8 * ROUNDING, atol=8 * ROUNDING)


def test_output_layers_are_computed_in_float32():
    q = agent("dqn", BF16).q
    hidden = []
    q.output.register_forward_pre_hook(lambda module, args: hidden.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        values = q(batch("dqn").obs)
    assert hidden[0].dtype == torch.bfloat16 and values.dtype == torch.float32
    assert torch.equal(values, torch.nn.functional.linear(hidden[0].float(), q.output.weight, q.output.bias))


def test_tf32_is_refused_where_there_is_no_cuda(capsys):
    with pytest.raises(ConfigError, match=r"--precision tf32.*valid here: float32, bf16"):
        Numerics("tf32").check(CPU)
    argv = "--algo dqn --env CartPole-v1 --preset quick --precision tf32 --device cpu"
    assert train.main(argv.split()) == 2
    assert "--precision tf32" in capsys.readouterr().err


def test_tf32_holds_for_the_updates_alone_and_convolutions_are_ieee_otherwise():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)

    def readers():
        """What the older flags say, which PyTorch's compiler reads; they raise where only the newer were set."""
        assert torch.get_float32_matmul_precision() in ("highest", "high")
        is_tf32 = torch.get_float32_matmul_precision() == "high"
        return {is_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32}

    before = [backend.fp32_precision for backend in backends]
    try:
        set_products("ieee")
        for precision, inside in (("float32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
            with Numerics(precision).products():
                assert {backend.fp32_precision for backend in backends} == {inside}
                assert readers() == {inside == "tf32"}
            assert {backend.fp32_precision for backend in backends} == {"ieee"} and readers() == {False}
        with torch.backends.cudnn.flags(enabled=True):  # reads them all
            pass
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
