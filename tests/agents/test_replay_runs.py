"""One buffer of several runs against a buffer of each run alone."""

import numpy as np
import pytest
import torch

from agents.frames import FrameReplay
from agents.replay import FlatReplay
from tests.agents.test_frames import GAMMA, SHAPE, CountingEnv
from tests.training.test_train import assert_same

RUNS, ENVS, ROWS = 3, 2, 40


def make(kind, num_runs, n_step=3):
    options = {"n_step": n_step, "num_runs": num_runs}
    if kind == "frames":
        return FrameReplay(ROWS * ENVS, ENVS, SHAPE, 18, GAMMA, **options)
    return FlatReplay(ROWS * ENVS, ENVS, (5,), (), True, GAMMA, **options)


class Play:
    """Rows of each run, whose episodes have lengths of their own: their buffers of frames evict at different times."""

    def __init__(self, kind):
        self.kind = kind
        lengths = [(2, 8, 1e9)[run % 3] for run in range(RUNS)]
        self.envs = [CountingEnv(ENVS, seed=run, mean_length=lengths[run]) for run in range(RUNS)]

    def rows(self):
        rows = [env.step() for env in self.envs]
        if self.kind == "flat":  # the first frame's upper line is a flat observation
            rows = [tuple(x[:, -1, 0].astype(np.float32) if x.ndim == 4 else x for x in row) for row in rows]
        return rows


def fill(play, whole, alone, count):
    for _ in range(count):
        rows = play.rows()
        whole.add(*map(np.concatenate, zip(*rows, strict=True)))
        for buffer, row in zip(alone, rows, strict=True):
            buffer.add(*row)


def check(whole, alone):
    generators = [[torch.Generator().manual_seed(run) for run in range(RUNS)] for _ in range(3)]
    index = whole.draw(16, generators[0])
    batch = whole.gather(index)
    for one, other in zip(batch, whole.gather(index, whole.span.clone()), strict=True):
        assert torch.equal(one, other)
    for k, buffer in enumerate(alone):
        single, view = buffer.run(0), whole.run(k)
        assert len(view) == len(single)
        expected = buffer.gather(buffer.draw(16, generators[1][k : k + 1])).run(0)
        for found in (batch.run(k), view.sample(16, generators[2][k])):
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other)
        assert_same(view.state_dict(), single.state_dict())
        assert view.check_valid() == (True, "")


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("kind", ["flat", "frames"])
def test_every_run_has_what_a_buffer_of_its_own_would_have(kind, n_step):
    play, whole = Play(kind), make(kind, RUNS, n_step)
    alone = [make(kind, 1, n_step) for _ in range(RUNS)]
    for count in (1, 20, 19, 1, 30, 60):  # partly filled, full, wrapped
        fill(play, whole, alone, count)
        check(whole, alone)
    lengths = {len(whole.run(k)) for k in range(RUNS)}
    assert (len(lengths) > 1) == (kind == "frames")


@pytest.mark.parametrize("kind", ["flat", "frames"])
@pytest.mark.parametrize("count", [5, 100])
def test_states_move_between_buffers_of_one_run_and_of_several(kind, count):
    play, whole = Play(kind), make(kind, RUNS)
    alone = [make(kind, 1) for _ in range(RUNS)]
    fill(play, whole, alone, count)
    new_whole, new_alone = make(kind, RUNS), [make(kind, 1) for _ in range(RUNS)]
    for k in range(RUNS):
        new_whole.run(k).load_state_dict(alone[k].run(0).state_dict())
        new_alone[k].run(0).load_state_dict(whole.run(k).state_dict())
    fill(play, new_whole, new_alone, 50)
    check(new_whole, new_alone)


def test_runs_saved_at_different_rows_are_refused():
    play, whole, alone = Play("flat"), make("flat", RUNS), [make("flat", 1) for _ in range(RUNS)]
    fill(play, whole, alone, 3)
    states = [buffer.run(0).state_dict() for buffer in alone]
    fill(play, whole, alone, 1)
    other = make("flat", RUNS)
    other.run(0).load_state_dict(states[0])
    with pytest.raises(ValueError, match="run 1 goes on at row 4, the others at 3"):
        other.run(1).load_state_dict(alone[1].run(0).state_dict())
    with pytest.raises(ValueError, match="run 3: the buffer holds runs 0 to 2"):
        whole.run(3)


@pytest.mark.parametrize("kind", ["flat", "frames"])
def test_bytes_of_several_runs(kind):
    buffer = make(kind, RUNS)
    sizes = (ROWS * ENVS, ENVS) + ((SHAPE, 18) if kind == "frames" else ((5,), (), True))
    assert type(buffer).bytes_needed(*sizes, RUNS) == buffer.nbytes
    assert buffer.run(0).nbytes == buffer.nbytes // RUNS
