"""The clock and the schedules of a run: asking at ``next_step`` alone gives what asking at every step gives."""

import numpy as np
import pytest

from configs import loader
from training.due import Clock, Due

QUESTIONS = ("log", "metrics", "reset", "evaluation", "checkpoint")


def clock_and_due(**options):
    flags = [word for key, value in options.items() for word in (f"--{key}", *str(value).split())]
    config, _ = loader.load(["--algo", "dqn", "--env", "CartPole-v1", "--preset", "quick", *flags])
    clock = Clock(config)
    return clock, Due(config, clock, has_reset_points=True), config


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_due_between_two_next_steps(seed):
    rng = np.random.default_rng(seed)
    periods = rng.integers(0, 60, size=5).tolist()
    keys = ("log.every", "log.metrics-every", "eval.every", "checkpoint.every", "reset.every")
    options = dict(zip(keys, periods, strict=True))
    options |= {"env.num-envs": int(rng.integers(1, 5)), "replay.learning-starts": 30, "total-steps": 400}
    options |= {"reset.until": 250, "reset.at": " ".join(map(str, rng.integers(1, 500, size=3)))}
    asked_always, asked_when_due = [], []
    for events, only_when_due in ((asked_always, False), (asked_when_due, True)):
        clock, due, config = clock_and_due(**options)
        while not clock.finished:
            clock.advance(config.env.num_envs)
            clock.take_owed()
            if only_when_due and clock.env_step < due.next_step:
                continue
            events += [
                (clock.env_step, name, answer) for name in QUESTIONS if (answer := getattr(due, name)())
            ]
            due.look_ahead()
    assert asked_always == asked_when_due
    assert ("evaluation" in [name for _, name, _ in asked_always]) and asked_always[-1][0] >= 400


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.3, 1.0, 2.0, 2.5])
@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_updates_owed_are_exact_after_every_step(ratio, num_envs):
    options = {"replay.replay-ratio": ratio, "env.num-envs": num_envs, "replay.learning-starts": 12}
    clock, _, _ = clock_and_due(**options)
    other, _, _ = clock_and_due(**options)
    numerator, updates, transitions = round(ratio * 100), 0, 0
    for step in range(1, 1_001):
        clock.advance(num_envs)
        if clock.env_step >= 12:  # those of the warm-up bring none
            transitions += num_envs
        if step % 3 == 0:
            other.load_state_dict(clock.state_dict())
            assert other.owed == clock.owed
            updates += clock.take_owed()
            assert updates == numerator * transitions // 100
            assert clock.has_learned == (updates > 0)


def test_a_restored_run_has_the_same_things_due():
    options = {"log.every": 7, "reset.every": 50, "reset.until": 200, "eval.every": 40, "total-steps": 300}
    options |= {"replay.learning-starts": 20, "checkpoint.every": 60, "log.metrics-every": 0}
    clock, due, _ = clock_and_due(**options)

    def run_to(clock, due, stop):
        seen = []
        while clock.env_step < stop:
            clock.advance(1)
            clock.take_owed()
            if clock.env_step >= due.next_step:
                seen += [(clock.env_step, name) for name in QUESTIONS if getattr(due, name)()]
                due.look_ahead()
        return seen

    run_to(clock, due, 130)
    other_clock, other_due, _ = clock_and_due(**options)
    other_clock.load_state_dict(clock.state_dict())
    other_due.load_state_dict(due.state_dict())
    assert other_due.next_step == due.next_step
    assert run_to(other_clock, other_due, 300) == run_to(clock, due, 300)


def test_until_ends_periodic_resets_alone():
    options = {"env.change.kind": "rotate", "env.change.every": 20, "reset.on-change": "true"}
    options |= {"reset.every": 15, "reset.until": 50, "total-steps": 100, "replay.learning-starts": 10}
    clock, due, _ = clock_and_due(**options)
    assert due.resets_possible
    resets = {}
    while not clock.finished:
        clock.advance(1)
        clock.take_owed()
        if reason := due.reset():
            resets[clock.env_step] = reason
    assert list(resets) == [
        15,
        20,
        30,
        40,
        45,
        60,
        80,
    ]  # tasks begin at 20, 40, 60, 80; the period ends after 50


def test_resets_at_borders_are_possible_without_a_period():
    options = {
        "env.change.kind": "rotate",
        "env.change.every": 20,
        "reset.on-change": "true",
        "reset.until": 10,
    }
    assert clock_and_due(**options, **{"reset.every": 0, "total-steps": 1_100})[1].resets_possible
    _, due, _ = clock_and_due(**{"reset.every": 40, "reset.until": 10, "total-steps": 1_100})
    assert not due.resets_possible
