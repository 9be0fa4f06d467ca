"""Agents trained as one batched program against the same agents trained one by one."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from agents import fused
from agents.dqn import DQN
from agents.learner import Agents, run_losses
from agents.make import AGENTS
from agents.replay import Batch
from agents.tracing import trace
from configs.schema import DQNConfig, SACConfig, TD3Config, XQCConfig
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, reset_networks
from tests.training.test_train import assert_same

OBS, ACTION, BATCH = 5, 3, 16
CPU = torch.device("cpu")
SAC_CONFIG = SACConfig(actor_width=8, critic_width=12, critic_blocks=1, learning_rate=3e-3)
DQN_CONFIG = DQNConfig(hidden_widths=(16, 8), learning_rate=1e-3, target_update_period=3)
TD3_CONFIG = TD3Config(hidden_widths=(16, 8))
XQC_CONFIG = XQCConfig(actor_widths=(16, 8), critic_widths=(16, 8), num_atoms=11)
CONFIGS = {"sac": SAC_CONFIG, "dqn": DQN_CONFIG, "td3": TD3_CONFIG, "xqc": XQC_CONFIG}
SIZES = {
    "sac": (OBS, ACTION, 500),
    "dqn": ((OBS,), ACTION, 0, 100),
    "td3": (OBS, ACTION),
    "xqc": (OBS, ACTION, 500, 7),
}
ALGOS = tuple(AGENTS)


def agent(algo, seed, **options):
    config = dataclasses.replace(CONFIGS[algo], **options)
    made = AGENTS[algo].agent(config, *SIZES[algo], seed, CPU)
    made.observe(np.random.default_rng(seed).normal(size=(40, OBS)).astype(np.float32))
    return made


def batch(algo, seed):
    g = torch.Generator().manual_seed(seed)
    discrete = torch.randint(ACTION, (BATCH,), generator=g)
    action = discrete if algo == "dqn" else torch.rand(BATCH, ACTION, generator=g) * 2 - 1
    obs, next_obs = torch.randn(2, BATCH, OBS, generator=g)
    return Batch(obs, action, torch.randn(BATCH, generator=g), torch.full((BATCH,), 0.99), next_obs)


def update(stack, batches):
    """One update of every agent; returns each one's losses."""
    losses = stack.update(
        Batch(*map(torch.stack, zip(*batches, strict=True))), stack.draw(len(batches[0].reward))
    )
    return [run_losses(losses, k) for k in range(len(batches))]


def assert_close(one, other, where=""):
    """Nested states equal within the rounding of another summation order."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_close(a, b, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=lambda m: f"{where}: {m}")
    else:
        assert one == other, where


RESETS = [(name, {}) for name in REGISTRY]
RESETS += [("full", {"optimizer": "rebuild"}), ("fire", {"optimizer": "keep", "target": "keep"})]
OF_EVERY_KIND = ("fire", "plasticity_injection")  # the other resets of all algorithms but one are slow
CASES = [
    pytest.param(
        *(algo, {}, name, options),
        marks=[pytest.mark.slow] if algo != "dqn" and (name not in OF_EVERY_KIND or options) else [],
    )
    for algo in ALGOS
    for name, options in RESETS
]
CASES += [("dqn", {"layer_norm": True}, name, {}) for name in ("fire", "full", "redo", "cbp")]


@pytest.mark.parametrize(("algo", "changes", "reset", "options"), CASES)
def test_each_agent_equals_its_single_run_across_a_reset(algo, changes, reset, options):
    singles, stacked = ([agent(algo, seed, **changes) for seed in range(3)] for _ in range(2))
    stack = Agents(stacked)
    strategy = REGISTRY[reset](OPTIONS[reset](**options))
    trackers = [[strategy.tracker() for _ in range(3)] for _ in range(2)]
    for step in range(8):
        batches = [batch(algo, 10 * step + index) for index in range(3)]
        expected = [one.learn(data) for one, data in zip(singles, batches, strict=True)]
        logged = update(stack, batches)
        for index in range(3):
            assert_close(logged[index], expected[index], f"step {step} losses")
            for group, tracker in zip((singles, stacked), trackers, strict=True):
                slots, g = group[index].networks(), torch.Generator().manual_seed(step)
                if tracker[index] is not None:
                    tracker[index].after_update(slots, batches[index], g)
                elif step == 4 and index != 1:  # one agent is left out: resets are each agent's own affair
                    reset_networks(slots, strategy, batches[index], g)
    for single, other in zip(singles, stacked, strict=True):
        assert_close(other.state_dict(), single.state_dict())


@pytest.mark.parametrize("algo", ALGOS)
def test_agents_learn_differently_and_their_parameters_keep_one_storage(algo):
    stacked = [agent(algo, seed) for seed in range(2)]
    stack = Agents(stacked)
    *_, name = stacked[0].networks()  # TD3 leaves its actor as it is in the first update
    parameters = [next(iter(m.networks()[name].module.parameters())) for m in stacked]
    storage = {p.untyped_storage().data_ptr() for p in parameters}
    assert len(storage) == 1
    before = [p.detach().clone() for p in parameters]
    update(stack, [batch(algo, 0), batch(algo, 1)])
    assert {p.untyped_storage().data_ptr() for p in parameters} == storage
    moved = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
    assert all(m.any() for m in moved) and not torch.equal(*moved)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_saved_agent_goes_on_alone(algo):
    stacked = [agent(algo, seed) for seed in range(2)]
    stack = Agents(stacked)
    for step in range(3):
        update(stack, [batch(algo, step), batch(algo, step + 10)])
    alone = agent(algo, 5)
    alone.load_state_dict(copy.deepcopy(stacked[1].state_dict()))
    logged = update(stack, [batch(algo, 20), batch(algo, 21)])
    assert_close(alone.learn(batch(algo, 21)), logged[1])
    assert_close(alone.state_dict(), stacked[1].state_dict())


@pytest.mark.parametrize("algo", ALGOS)
def test_agents_may_have_learned_before_they_are_stacked(algo):
    singles, stacked = ([agent(algo, seed) for seed in range(2)] for _ in range(2))
    for step in range(2):
        for one in (*singles, *stacked):
            one.learn(batch(algo, step))
    stack = Agents(stacked)
    data = [batch(algo, 7), batch(algo, 8)]
    for one, each in zip(singles, data, strict=True):
        one.learn(each)
    update(stack, data)
    for single, other in zip(singles, stacked, strict=True):
        assert_close(other.state_dict(), single.state_dict())


@pytest.mark.parametrize("option", ["l2_init", "parseval"])
@pytest.mark.parametrize("algo", ALGOS)
def test_regularizers_pull_each_agent_by_its_own_weights(algo, option):
    singles, stacked = ([agent(algo, seed, **{option: 0.1}) for seed in range(2)] for _ in range(2))
    stack = Agents(stacked)
    for step in range(4):
        data = [batch(algo, step), batch(algo, step + 10)]
        expected = [one.learn(each) for one, each in zip(singles, data, strict=True)]
        for one, other in zip(update(stack, data), expected, strict=True):
            assert_close(one, other)
    for single, other in zip(singles, stacked, strict=True):
        assert_close(other.state_dict(), single.state_dict())


@pytest.mark.parametrize("algo", ALGOS)
def test_agents_are_stacked_again_after_their_structure_changed(algo):
    stacked = [agent(algo, seed) for seed in range(3)]
    stack = Agents(stacked)

    def storages():
        first = [next(iter(m.networks().values())).module for m in stacked]
        return [{p.untyped_storage().data_ptr() for p in module.parameters()} for module in first]

    def inject(index):
        generator = torch.Generator().manual_seed(index)
        reset_networks(
            stacked[index].networks(), REGISTRY["plasticity_injection"](), batch(algo, 0), generator
        )
        update(stack, [batch(algo, seed) for seed in range(3)])

    inject(0)
    assert not storages()[0] & storages()[1] and storages()[1] == storages()[2]
    inject(2)
    assert storages()[0] == storages()[2] and not storages()[0] & storages()[1]
    inject(1)
    assert storages()[0] == storages()[1] == storages()[2]


@pytest.mark.parametrize("algo", ALGOS)
def test_acting_and_observing_at_once_equal_each_agents_own(algo):
    singles, stacked = ([agent(algo, seed) for seed in range(3)] for _ in range(2))
    stack, rng = Agents(stacked), np.random.default_rng(0)
    for step in range(4):
        obs = rng.normal(size=(3, 7, OBS)).astype(np.float32)
        reward, ended = obs[..., 0], obs[..., 1] > 0
        stack.observe(obs)
        stack.observe_rewards(reward, ended)
        actions = stack.act(obs, 5 * step)
        for k, one in enumerate(singles):
            one.observe(obs[k])
            one.observe_rewards(reward[k], ended[k])
            if one.reward_normalizer is not None:
                assert_close(one.reward_normalizer.state_dict(), stacked[k].reward_normalizer.state_dict())
            expected = one.act(obs[k], 5 * step)
            assert actions.dtype == expected.dtype
            np.testing.assert_allclose(actions[k], expected, rtol=1e-5, atol=1e-6)
            if algo == "sac":
                for a, b in zip(one.normalizer.buffers(), stacked[k].normalizer.buffers(), strict=True):
                    assert torch.equal(a, b)
        if step == 1:  # the next actions are those of the new structure
            for agents in (singles, stacked):
                g = torch.Generator().manual_seed(1)
                reset_networks(agents[2].networks(), REGISTRY["plasticity_injection"](), batch(algo, 0), g)
            for one, data in zip(singles, batches := [batch(algo, k) for k in range(3)], strict=True):
                one.learn(data)
            update(stack, batches)


@pytest.mark.parametrize("algo", ALGOS)
def test_an_agent_stays_the_same_when_it_is_traced_in_mid_run(algo):
    one, other = agent(algo, 0), agent(algo, 0)
    stack, obs = (
        Agents([other], trace_from=2),
        np.random.default_rng(0).normal(size=(7, OBS)).astype(np.float32),
    )
    for step in range(6):
        assert (other in _traced(stack)) == (
            step > 2
        )  # the third step's action still comes from the agent itself
        one.observe(obs)
        stack.observe(obs[None])
        assert np.array_equal(stack.act(obs[None], step)[0], one.act(obs, step))
        assert update(stack, [batch(algo, step)]) == [one.learn(batch(algo, step))]
    assert_same(one.state_dict(), other.state_dict())


def test_agents_that_are_stacked_from_the_first_are_not_stacked_again_to_be_traced():
    stack = Agents([agent("dqn", 0), agent("dqn", 1)], trace_from=2)
    groups = stack._groups
    for step in range(4):
        update(stack, [batch("dqn", step)] * 2)
    assert stack._groups is groups


def _traced(stack):
    return [agent for runs, stacked in stack._groups if stacked is not None for agent in stacked.agents]


def test_networks_wide_enough_for_the_fused_block_equal_their_single_runs():
    options = {"critic_width": fused.MIN_WIDTH, "actor_width": 16}
    singles, stacked = ([agent("sac", seed, **options) for seed in range(2)] for _ in range(2))
    stack = Agents(stacked)
    for step in range(3):
        data = [batch("sac", step), batch("sac", step + 10)]
        expected = [one.learn(each) for one, each in zip(singles, data, strict=True)]
        assert_close(update(stack, data), expected)
    for single, other in zip(singles, stacked, strict=True):
        for name in ("actor_optimizer", "critic_optimizer"):  # with averages of the gradients
            moments = (getattr(one, name).state_dict()["state"] for one in (other, single))
            assert_close(*(list(state.values()) for state in moments))


def test_tracing_keeps_values_and_leaves_alone_what_depends_on_them():
    def choose(x):
        return [x.exp() * 1 if x.sum() > 0 else x]

    def compute(x):
        return [x.exp().view(2, 3).mul_(2), x.new_ones(2)]

    x = torch.randn(2, 3)
    assert trace(choose, [], [x]).func is choose
    assert not hasattr(trace(compute, [], [x]), "func")
    for one, other in zip(trace(compute, [], [x])(x + 1), compute(x + 1), strict=True):
        assert torch.equal(one, other)


def test_networks_for_frames_equal_their_single_runs_exactly():
    def make(seed):
        return DQN(
            dataclasses.replace(DQN_CONFIG, pixel_network="nips"), (4, 84, 84), ACTION, 0, 100, seed, CPU
        )

    def frames(seed):
        g = torch.Generator().manual_seed(seed)
        stack = torch.randint(256, (2, 5, 84, 84), dtype=torch.uint8, generator=g)
        return Batch(
            stack[:, :4], torch.tensor([0, 2]), torch.randn(2, generator=g), torch.ones(2), stack[:, 1:]
        )

    singles, stacked = ([make(seed) for seed in range(2)] for _ in range(2))
    stack = Agents(stacked)
    for step in range(3):
        data = [frames(step), frames(step + 10)]
        expected = [one.learn(each) for one, each in zip(singles, data, strict=True)]
        assert update(stack, data) == expected
    for single, other in zip(singles, stacked, strict=True):
        for a, b in zip(single.q.parameters(), other.q.parameters(), strict=True):
            assert torch.equal(a, b)
