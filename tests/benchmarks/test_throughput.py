"""The figures of benchmarks/throughput.py and benchmarks/training.py against independent counts."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.sac import SAC
from benchmarks import rivals, throughput, timing, training
from benchmarks.throughput import flops
from configs.schema import SACConfig
from tests.agents.learning_cases import recorded


def test_flops_are_those_that_an_update_performs():
    config = SACConfig(actor_width=96, critic_width=160)
    agent = SAC(config, rivals.OBS, rivals.ACTION, 500, 0, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        agent.learn(rivals.make_batch(0))
    # The count leaves out that nobody needs the gradients of the critics' first inputs in the critics' own loss.
    assert counter.get_total_flops() == pytest.approx(flops(config), rel=0.03)


@pytest.mark.parametrize("lean", [False, True])
def test_cleanrls_body_moves_all_its_networks(lean):
    rival = rivals.CleanRL(SACConfig(actor_width=8, critic_width=8, critic_blocks=1), lean=lean)
    networks = [rival.actor, *rival.critics, *rival.targets]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    rival.update(rivals.make_batch(0))
    for network, old in zip(networks, before, strict=True):
        assert any(not torch.equal(p, q) for p, q in zip(network.parameters(), old, strict=True))


def test_leanrls_body_is_compiled_and_recorded_and_its_losses_do_not_wait_for_the_device(monkeypatch):
    done = []
    monkeypatch.setattr(torch, "compile", lambda function: done.append("compiled") or function)
    config, batch = SACConfig(actor_width=8, critic_width=8, critic_blocks=1), rivals.make_batch(0)
    rivals.lean_update(config, batch, lambda body: done.append("recorded") or body)()
    assert done == ["compiled", "recorded"]
    rival = rivals.CleanRL(config, lean=True)
    recorded(lambda: rival.sample(batch.obs))  # fails where it would wait


def test_traffic_counts_every_array_of_the_optimizers_and_the_target():
    config = SACConfig(actor_width=8, critic_width=16)
    agent = SAC(config, rivals.OBS, rivals.ACTION, 500, 0, torch.device("cpu"))
    agent.learn(rivals.make_batch(0))

    def size(tensors):
        return sum(t.nbytes for t in tensors if t.dim())

    expected = 3 * size(agent.target_critic.parameters())
    for optimizer in (agent.actor_optimizer, agent.critic_optimizer):
        learning = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [v for state in optimizer.state.values() for v in state.values()]
        expected += 2 * size(learning) + size(p.grad for p in learning) + 2 * size(moments)
    assert throughput.traffic(agent) == expected


def test_a_group_of_agents_is_updated_as_the_loop_does_it():
    flags = "--agent.critic-width 8 --agent.critic-blocks 0 --agent.actor-width 8 --agent.actor-blocks 0"
    batch, losses = throughput.learner_update("cpu", *flags.split(), agents=3)()
    assert len(batch.obs) == len(losses["critic_loss"]) == 3


def test_an_update_as_the_loop_makes_it_can_be_timed():
    flags = "--agent.critic-width 8 --agent.critic-blocks 0 --agent.actor-width 8 --agent.actor-blocks 0"
    batch, losses = throughput.learner_update("cpu", *flags.split())()
    assert batch.obs.shape == (1, rivals.BATCH, rivals.OBS) and losses["critic_loss"].isfinite()


def test_the_precision_asked_for_is_the_one_that_is_timed():
    flags = "--agent.critic-width 8 --agent.critic-blocks 0 --agent.actor-width 8 --agent.actor-blocks 0"
    losses = {
        precision: throughput.learner_update("cpu", *flags.split(), "--precision", precision)()[1]
        for precision in ("float32", "bf16")
    }
    one, other = (losses[precision]["critic_loss"] for precision in ("float32", "bf16"))
    assert not torch.equal(one, other) and torch.allclose(one, other, rtol=0.05)


def test_compiled_losses_are_timed_where_they_are_asked_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled.append(function) or function)
    monkeypatch.setattr("agents.numerics.missing_compiler", lambda device: None)
    flags = "--compile true --agent.critic-width 8 --agent.critic-blocks 0"
    throughput.learner_update("cpu", *flags.split())()
    assert compiled


def test_a_step_of_stacked_agents_acts_stores_and_learns():
    step = throughput.stack_step(2, "cpu")
    assert step["act"]().shape == (2, 16)
    step["store"]()
    batch, losses = step["update"]()
    assert batch.obs.shape == (2, 64, 4) and losses["loss"].shape == (2,)


def test_every_contender_takes_its_turns_and_ratios_are_paired():
    calls = []
    seconds = timing.take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, 3, 2, "cpu")
    assert "".join(calls) == "aabb" + "aabb" + "bbaa" + "aabb"
    assert [len(values) for values in seconds.values()] == [3, 3]
    assert timing.ratio([1, 2, 4], [2, 2, 40]) == 2


def test_the_training_loop_is_timed_after_its_first_updates(monkeypatch):
    flags = "--algo dqn --env CartPole-v1 --preset quick --agent.hidden-widths 4"
    monkeypatch.setitem(training.CASES, "tiny", (flags, 310, 40, False))
    figures = training.work("tiny", 1, 1, "cpu")
    assert figures["updates_per_env_step"] == 0.5  # the preset's replay ratio
    assert figures["wall_seconds_per_1000_env_steps"] * figures["env_steps_per_second"] == pytest.approx(1e3)


def test_the_command_runs_every_part_it_is_asked_for(monkeypatch, capsys):
    for name in ("single", "several", "stacked"):
        monkeypatch.setattr(throughput, name, lambda args, name=name: {"part": name})
    monkeypatch.setattr(throughput, "agent_cost", lambda repeats, device: {"repeats": repeats})
    monkeypatch.setattr(training, "measure", lambda *options: options)
    monkeypatch.setattr(
        "sys.argv", ["throughput", "--repeats", "2", "--cases", "sac-quick", "--threads", "1"]
    )
    throughput.main()
    record = json.loads(capsys.readouterr().out)
    assert record["update"] == {"part": "single"} and record["agents"] == {"number": 4, "part": "several"}
    assert record["stack"] == {"part": "stacked"}
    assert record["training"] == [["sac-quick"], [1], 2, "cpu"] and record["reset"] == {"repeats": 2}
