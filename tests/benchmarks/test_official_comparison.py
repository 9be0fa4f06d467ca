"""The scripts that compare with the original, as far as they go without it."""

from __future__ import annotations

import io

import numpy as np
import pytest

from benchmarks.envs import BARE, Bare, Batched, NativeSingles, measure, ratio
from benchmarks.official_worker import read, write
from benchmarks.parity import task_and_side


def test_speed_contenders_simulate_the_same_motion():
    contenders = {
        BARE: Bare("walk", 2),
        "single": NativeSingles("h1-walk-v0", 2),
        "batch": Batched("walk", 2, 1),
    }
    times = measure(contenders, steps=3, blocks=2)
    assert all(len(own) == 2 and min(min(block) for block in own) > 0 for own in times.values())
    reached = [simulation.data.qpos for simulation in contenders[BARE].simulations]
    np.testing.assert_array_equal(contenders["batch"].vector._readings.qpos, reached)
    np.testing.assert_array_equal([env._simulation.data.qpos for env in contenders["single"].envs], reached)


def test_ratio_is_the_median_over_blocks():
    assert ratio([(2, 9), (3, 9), (40, 9)], [(1, 3), (1, 3), (1, 3)], 0) == 3
    assert ratio([(2, 9), (3, 9), (40, 9)], [(1, 3), (1, 3), (1, 3)], 1) == 3


def test_worker_reads_what_was_written():
    stream = io.BytesIO()
    arrays = [np.arange(6.0).reshape(2, 3), np.float32([1, 2])]
    for array in arrays:
        write(stream, array)
    stream.seek(0)
    for array in arrays:
        got = read(stream)
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)


def test_runs_of_either_side_name_their_task():
    assert task_and_side("h1-walk") == task_and_side("h1-walk-v0") == ("walk", "native")
    assert task_and_side("humanoid_bench:h1-sit_hard-v0") == ("sit_hard", "official")
    with pytest.raises(
        ValueError, match="h1hand-walk-v0 is not on both sides; the tasks that are: stand, walk"
    ):
        task_and_side("humanoid_bench:h1hand-walk-v0")
