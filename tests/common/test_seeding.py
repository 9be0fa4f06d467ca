"""Streams are reproducible, distinct from each other, and refuse names nobody declared."""

import pytest
import torch

from common.seeding import STREAMS, stream_seed, torch_generator


def test_streams_differ_by_name_seed_and_path():
    seeds = {
        stream_seed(seed, name, *path) for seed in range(3) for name in STREAMS for path in ((), (0,), (1,))
    }
    assert len(seeds) == 3 * len(STREAMS) * 3
    assert stream_seed(1, "init", 2) == stream_seed(1, "init", 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_generators_follow_their_stream():
    def draw(name):
        return torch.rand(4, generator=torch_generator(0, name))

    assert torch.equal(draw("replay"), draw("replay"))
    assert not torch.equal(draw("replay"), draw("update"))


def test_unknown_stream_is_refused():
    with pytest.raises(ValueError, match=r"'evaluation'.*valid: init"):
        stream_seed(0, "evaluation")
