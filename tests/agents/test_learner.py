"""Blocks of updates, recorded once and replayed, against updates one after the other; on CUDA: test_graphs_gpu.py."""

import copy

import numpy as np
import pytest
import torch

import agents.learner
import agents.make
from agents import AGENTS
from agents.graphs import Places, StaticInputs, addresses, learning_tensors, rollback
from configs import loader
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY, reset_networks
from tests.agents.learning_cases import CPU, OBS, Case, recorded
from tests.training.test_act_lag import ARGS, SHORT
from tests.training.test_train import SMALL, assert_same, newest, run_interrupted, table
from training import loop

RESETS = [(name, {}) for name in REGISTRY if name not in ("l2_init", "parseval", "none")]
RESETS += [("full", {"optimizer": "rebuild"}), ("fire", {"optimizer": "keep", "target": "keep"})]
MOVES_STORAGE = {"plasticity_injection", "full-rebuild"}


class Counted:
    """``recorded`` that counts how often something was recorded."""

    def __init__(self):
        self.count = 0

    def __call__(self, body, side):
        self.count += 1
        return recorded(body, side)


def compare(one, other, resets=lambda case, step, batches: None, steps=8):
    """Both cases through the same steps, with 0 to 3 updates each; equal bit for bit."""
    for step in range(steps):
        for case in (one, other):
            case.actions = case.step()
        for a, b in zip(one.actions, other.actions, strict=True):
            assert (a == b).all()
        if count := step % 4:
            (batches, losses), (others, logged) = one.learner.learn(count), other.learner.learn(count)
            assert_same(losses, logged, f"step {step}")
            assert_same(batches._asdict(), others._asdict(), f"step {step}")
            resets(one, step, batches)
            resets(other, step, others)
    for a, b in zip(one.agents, other.agents, strict=True):
        assert a.update_step == b.update_step > 0
        assert_same(a.state_dict(), b.state_dict())


CASES = [("dqn", *reset) for reset in RESETS]
CASES += [
    pytest.param(
        algo, name, {}, marks=[pytest.mark.slow] if algo != "sac" and name in ("full", "redo") else []
    )
    for algo in ("sac", "td3", "xqc")
    for name in ("full", "fire", "redo", "plasticity_injection", "cbp")
]


@pytest.mark.parametrize(("algo", "reset", "options"), CASES)
def test_blocks_equal_single_updates_through_every_reset(algo, reset, options):
    strategy, capture = REGISTRY[reset](OPTIONS[reset](**options)), Counted()
    recorded = []

    def resets(case, step, batches):
        slots = case.agents[0].networks()
        tracker = strategy.tracker()
        if tracker is not None:
            tracker.after_update(slots, batches.run(0), torch.Generator().manual_seed(step))
        elif step == 6:
            recorded.append(capture.count)
            before = addresses(learning_tensors(case.agents))
            reset_networks(slots, strategy, batches.run(0), torch.Generator().manual_seed(step))
            moved = addresses(learning_tensors(case.agents)) != before
            assert moved == (reset + "-rebuild" * (options == {"optimizer": "rebuild"}) in MOVES_STORAGE)
            case.learner.learn(1)  # from here on all patterns of DQN's target copies are new ones

    compare(Case(algo, None), Case(algo, capture), resets)


@pytest.mark.parametrize("algo", list(AGENTS))
def test_blocks_of_several_agents_equal_single_updates(algo):
    strategy = REGISTRY["fire"]()

    def resets(case, step, batches):
        if step == 6:
            reset_networks(case.agents[1].networks(), strategy, batches.run(1), torch.Generator())

    compare(Case(algo, None, count=2), Case(algo, recorded, count=2), resets, steps=8)


def test_blocks_on_frames_equal_single_updates():
    compare(Case("pixels", None), Case("pixels", recorded), steps=16)


def test_recorded_acting_equals_acting():
    for algo in AGENTS:
        one, other = Case(algo, None), Case(algo, recorded, act_capture=recorded)
        reset = REGISTRY["plasticity_injection"]()

        def resets(case, step, batches, reset=reset):
            if step == 2:
                reset_networks(case.agents[0].networks(), reset, batches.run(0), torch.Generator())

        compare(one, other, resets, steps=6)
        obs = one._fresh()[:1]  # another number of environments, as in evaluations
        assert (one.agents[0].act_greedy(obs) == other.agents[0].act_greedy(obs)).all()


def test_a_block_is_recorded_once_for_each_pattern_and_again_where_tensors_moved():
    capture = Counted()
    case = Case("dqn", capture)
    case.step()
    seen = set()
    for count in [
        2,
        3,
        2,
        3,
    ] * 6:  # the target is copied every 5 updates: at either end of a block, or nowhere
        seen.add((count, case.agents[0].update_pattern(count)))
        case.learner.learn(count)
    assert capture.count == len(seen) == 2
    case.learner.learn(1)
    for count in [2, 3] * 3:
        seen.add((count, case.agents[0].update_pattern(count)))
        case.learner.learn(count)
    assert capture.count == len(seen) + 1 > 3
    agent, recorded = case.agents[0], capture.count
    agent.load_state_dict(copy.deepcopy(agent.state_dict()))  # new tensors in the optimizer
    case.learner.learn(1)
    case.learner.learn(1)
    assert capture.count in (recorded + 1, recorded + 2)


def test_update_pattern_are_the_updates_after_which_the_target_is_copied():
    case = Case("dqn", None)
    case.step()
    agent = case.agents[0]
    expected = agent.update_pattern(12)
    copies = []
    for update in range(12):
        case.learner.learn(1)
        if all(
            torch.equal(a, b) for a, b in zip(agent.q.parameters(), agent.target_q.parameters(), strict=True)
        ):
            copies.append(update)
    assert expected == tuple(copies) == (4, 9)
    assert Case("sac", None).agents[0].update_pattern(12) == ()
    assert Case("td3", None).agents[0].update_pattern(5) == (1, 3)


def test_updates_on_trial_leave_no_trace():
    for algo in AGENTS:
        case = Case(algo, None)
        case.step()
        before = copy.deepcopy(case.agents[0].state_dict())
        noise = case.agents[0].draw(8)  # the draw itself is not undone
        batch = case.replay.run(0).gather(torch.arange(2).repeat(4))
        before["noise"] = case.agents[0].state_dict().get("noise")
        with rollback(case.agents):
            case.agents[0].learn(batch, noise)
            assert case.agents[0].update_step == 1
        after = case.agents[0].state_dict()
        created = []
        for name in case.agents[0].optimizers:
            created += after.pop(name)["state"].values()
            before.pop(name)
        assert created and all(not t.any() for state in created for t in state.values())
        if algo == "dqn":
            before.pop("noise")
        assert_same(before, after)


@pytest.mark.parametrize("algo", list(AGENTS))
def test_places_are_unmoved_until_something_moves(algo):
    case = Case(algo, None)
    agent, slots = case.agents[0], case.agents[0].networks()
    case.step()
    case.learner.learn(2)  # TD3's actor begins to learn in the second
    saved = copy.deepcopy(agent.state_dict())
    batch = case.replay.run(0).gather(torch.arange(2).repeat(4))
    moves = {
        "an update": (lambda: case.learner.learn(1), True),
        "zeroed moments": (lambda: [slot.zero_optimizer_state() for slot in slots.values()], True),
        "dropped moments": (lambda: [slot.rebuild_optimizer_state() for slot in slots.values()], False),
        "new moments": (lambda: case.learner.learn(1), False),
        "a checkpoint": (lambda: agent.load_state_dict(saved), False),
        "new heads": (
            lambda: reset_networks(slots, REGISTRY["plasticity_injection"](), batch, torch.Generator()),
            False,
        ),
    }
    for name, (move, unmoved) in moves.items():
        places = Places(case.agents)
        assert places.unmoved(), name
        move()
        assert places.unmoved() == unmoved, name


def test_static_inputs_keep_their_place_and_take_every_value():
    examples = [torch.arange(6).view(2, 3), torch.empty(0), torch.rand(5), torch.ones(3, dtype=torch.uint8)]
    static = StaticInputs(examples, CPU)
    places = [t.data_ptr() for t in static.tensors]
    for scale in (1, 2):
        values = [(t * scale).to(t.dtype) for t in examples]
        static.fill(values)
        for tensor, value in zip(static.tensors, values, strict=True):
            assert tensor.dtype == value.dtype and torch.equal(tensor, value)
    assert [t.data_ptr() for t in static.tensors] == places


@pytest.mark.parametrize("algo", list(AGENTS))
def test_gather_takes_the_rings_position_as_tensors(algo):
    case = Case(algo, None)
    for _ in range(17):
        case.step()
        replay = case.replay
        index = torch.arange(len(replay.run(0))).unsqueeze(0)
        for one, other in zip(replay.gather(index), replay.gather(index, replay.span.clone()), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("algo", [pytest.param("sac", marks=pytest.mark.slow), "dqn"])
def test_a_run_of_recorded_blocks_equals_the_run_and_resumes(algo, tmp_path, monkeypatch):
    monkeypatch.setitem(SMALL, algo, ARGS[algo])
    lagless = [*SHORT.split(), "--act-lag", "0"]
    config, _ = loader.load([*ARGS[algo].split(), *lagless])
    loop.train(config, tmp_path / "eager")
    for module in (agents.make, agents.learner):
        monkeypatch.setattr(module, "pick_capture", lambda config, device: recorded)
    run_interrupted(tmp_path / "static", algo, 100, *lagless)
    assert_same(newest(tmp_path / "static"), newest(tmp_path / "eager"))
    assert table(tmp_path / "static/scalars.csv") == table(tmp_path / "eager/scalars.csv")


@pytest.mark.parametrize("algo", AGENTS)
def test_the_saved_policy_acts_like_the_agent(algo):
    trained, new = Case(algo, None), Case(algo, None)
    for _ in range(6):
        trained.step()
        trained.learner.learn(2)
    agent, player = trained.agents[0], new.agents[0]
    if algo == "dqn":
        reset_networks(
            agent.networks(), REGISTRY["plasticity_injection"](), None, torch.Generator().manual_seed(0)
        )
    obs = np.random.default_rng(0).normal(size=(16, OBS)).astype(np.float32)
    expected = agent.act_greedy(obs)
    assert not np.array_equal(player.act_greedy(obs), expected)
    state = agent.policy_state()
    player.load_policy(state)
    assert np.array_equal(player.act_greedy(obs), expected)
    assert set(state) < set(agent.state_dict())
