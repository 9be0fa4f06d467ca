"""Thresholds, patience, gaps, reasons and resuming."""

from __future__ import annotations

import math

import pytest

from fire.triggers import Trigger, TriggerConfig

KEY = "plasticity/critic/dormant_ratio"


def fired(trigger: Trigger, values: list[float], start: int = 0) -> list[int]:
    """Indices of the measurements, 100 env steps apart, that ask for a reset."""
    return [
        i
        for i, value in enumerate(values, start)
        if trigger.update(100 * i, {KEY: value, "other": 9.0}) is not None
    ]


def test_threshold_is_strict_and_has_two_directions() -> None:
    assert fired(Trigger(TriggerConfig(KEY, 0.5)), [0.4, 0.5, 0.6, 0.7]) == [2, 3]
    assert fired(Trigger(TriggerConfig(KEY, 0.5, "below")), [0.4, 0.5, 0.6, 0.3]) == [0, 3]


def test_patience_counts_consecutive_measurements() -> None:
    trigger = Trigger(TriggerConfig(KEY, 0.5, patience=3))
    assert fired(trigger, [0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]) == [5, 8]


def test_min_gap_delays_but_does_not_forget() -> None:
    assert fired(Trigger(TriggerConfig(KEY, 0.5, min_gap=250)), [0.6] * 8) == [0, 3, 6]
    trigger = Trigger(TriggerConfig(KEY, 0.5, min_gap=250))
    trigger.note_reset(100)
    assert fired(trigger, [0.6] * 5) == [4]


def test_reason_names_key_value_and_threshold() -> None:
    trigger = Trigger(TriggerConfig("plasticity/*/srank", 8, "below", patience=2))
    assert trigger.update(0, {"plasticity/actor/srank": 7.0, "plasticity/critic/srank": 30.0}) is None
    reason = trigger.update(1, {"plasticity/actor/srank": 5.0, "plasticity/critic/srank": 6.0})
    assert reason == "plasticity/actor/srank = 5 is below 8, 2 times in a row"


def test_missing_keys_and_nan_ask_for_nothing() -> None:
    trigger = Trigger(TriggerConfig(KEY, 0.5, patience=2))
    assert trigger.update(0, {KEY: 0.6}) is None
    assert trigger.update(1, {"other": 1.0}) is None
    assert trigger.update(2, {KEY: 0.6}) is not None
    assert fired(Trigger(TriggerConfig(KEY, 0.5)), [math.nan]) == []
    assert fired(Trigger(TriggerConfig(KEY, 0.5, "below")), [math.nan]) == []
    assert Trigger(TriggerConfig()).update(0, {KEY: 1e9}) is None


def test_resuming_continues_count_and_gap() -> None:
    values = [0.6, 0.6, 0.6, 0.2, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    config = TriggerConfig(KEY, 0.5, patience=2, min_gap=300)
    whole = fired(Trigger(config), values)
    for cut in range(len(values)):
        first, second = Trigger(config), Trigger(config)
        head = fired(first, values[:cut])
        second.load_state_dict(first.state_dict())
        assert head + fired(second, values[cut:], start=cut) == whole


@pytest.mark.parametrize(
    "options", [{"direction": "over"}, {"patience": 0}, {"min_gap": -1}, {"threshold": math.inf}]
)
def test_wrong_options(options: dict) -> None:
    with pytest.raises(ValueError):
        TriggerConfig(KEY, **options)
