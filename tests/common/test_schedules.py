"""Schedules at every step before, on and after their edges."""

import pytest

from common.schedules import At, Every, LinearSchedule, Restarted


def test_linear_schedule_edges():
    schedule = LinearSchedule(start=1.0, end=0.1, begin=10, duration=90)
    assert [schedule(s) for s in (0, 10, 55, 100, 10_000)] == pytest.approx([1.0, 1.0, 0.55, 0.1, 0.1])
    assert LinearSchedule(1.0, 0.1, 10, 0)(9) == 1.0
    assert LinearSchedule(1.0, 0.1, 10, 0)(10) == 0.1


def test_every_with_vector_steps_is_due_once_per_period():
    every = Every(10)
    # Seven environments: steps 7, 14, 21, ... pass each multiple of ten once, never exactly.
    due = [step for step in range(7, 71, 7) if every.due(step)]
    assert due == [14, 21, 35, 42, 56, 63, 70]


def test_every_passed_multiples_at_once_count_once():
    every = Every(10)
    assert every.due(35) and not every.due(39) and every.due(40)


def test_every_zero_is_never_and_until_is_inclusive():
    assert not any(Every(0).due(step) for step in range(100))
    every = Every(10, until=20)
    assert [step for step in range(1, 60) if every.due(step)] == [10, 20]
    with pytest.raises(ValueError, match="-1"):
        Every(-1)


def test_at_uses_reached_not_equal():
    at = At((30, 5))
    assert [step for step in range(0, 60, 4) if at.due(step)] == [8, 32]


def test_states_continue():
    for make in (lambda: Every(10), lambda: At((5, 17, 30))):
        straight, first = make(), make()
        expected = [straight.due(step) for step in range(40)]
        got = [first.due(step) for step in range(18)]
        second = make()
        second.load_state_dict(first.state_dict())
        assert got + [second.due(step) for step in range(18, 40)] == expected


def test_a_restarted_schedule_falls_again_in_every_period_but_the_first():
    first, again = LinearSchedule(1.0, 0.1, 10, 40), LinearSchedule(1.0, 0.1, 0, 30)
    schedule = Restarted(first, again, 100)
    assert [schedule(step) for step in range(100)] == [first(step) for step in range(100)]
    assert [schedule(step) for step in range(100, 300)] == [again(step) for step in range(100)] * 2
    assert (
        schedule(100) == 1.0 and schedule(115) == pytest.approx(0.55) and schedule(299) == pytest.approx(0.1)
    )
