"""--compile: compiled losses against eager ones, and what makes the compiler start again."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from agents.learner import run_losses
from agents.numerics import Numerics, missing_compiler
from configs.errors import ConfigError
from fire.options import FireOptions
from fire.resets.registry import REGISTRY, reset_networks
from tests.agents.learning_cases import CPU, Case

COMPILED = Numerics(compile=True)
# Traced and differentiated as by the real compiler, but run operation by operation: seconds instead of minutes.
TRACED = partial(torch.compile, backend="aot_eager")


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def check(algo):
    """Five updates of a compiled and an eager agent with resets in between, and how often graphs were compiled."""
    one, other = Case(algo, None, numerics=COMPILED), Case(algo, None)
    compiled = []
    for step in range(5):
        for case in (one, other):
            case.step()
            batch, losses = case.learner.learn(1)
            case.losses = run_losses(losses, 0)
            strategy = REGISTRY["fire"](FireOptions(optimizer="rebuild")) if step == 2 else REGISTRY["full"]()
            if step:
                g = torch.Generator().manual_seed(step)
                reset_networks(case.agents[0].networks(), strategy, batch.run(0), g)
        for name, value in other.losses.items():
            torch.testing.assert_close(one.losses[name], value, rtol=1e-4, atol=1e-5)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled[0] > 0 and set(compiled) == {compiled[0]}
    for name, slot in one.agents[0].networks().items():
        for a, b in zip(
            slot.module.parameters(), other.agents[0].networks()[name].module.parameters(), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algo", ["dqn", pytest.param("sac", marks=pytest.mark.slow)])
def test_traced_losses_equal_eager_ones_and_a_reset_compiles_nothing_anew(algo, monkeypatch):
    monkeypatch.setattr(torch, "compile", TRACED)
    check(algo)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["sac", "dqn"])
def test_compiled_losses_equal_eager_ones_and_a_reset_compiles_nothing_anew(algo):
    check(algo)


def test_a_missing_compiler_is_named(monkeypatch):
    assert missing_compiler(CPU) is None or "needs" not in missing_compiler(CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs the C\+\+ compiler no-such-compiler"):
        COMPILED.check(CPU)
