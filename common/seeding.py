"""One random stream per consumer, so that measuring more often can never change the training."""

from __future__ import annotations

import numpy as np
import torch

STREAMS = (
    "init",  # first weights
    "explore",  # action noise, epsilon draws
    "update",  # sampled actions inside the losses
    "replay",  # minibatch indices
    "train_env",  # resets of the training environments and warm-up actions
    "eval_env",  # resets of the evaluation environments and the random baseline policy
    "reset",  # fresh weights drawn by network resets
    "metrics",  # probe batches of the plasticity metrics
    "change",  # tasks that change
    "data",  # which data of a study come first
)


def stream_seed(seed: int, stream: str, *path: int) -> int:
    """Return a 63-bit seed for ``stream``, independent across streams, run seeds and sub-streams ``path``.

    Raises:
        ValueError: the stream is not one of ``STREAMS``.
    """
    if stream not in STREAMS:
        raise ValueError(f"unknown random stream {stream!r}; valid: {', '.join(STREAMS)}")
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *path))
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def torch_generator(seed: int, stream: str, *path: int) -> torch.Generator:
    """Return a CPU generator seeded from ``stream`` and sub-stream ``path``."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, *path))
