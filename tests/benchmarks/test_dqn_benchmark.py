"""The rival of the DQN benchmark computes what our agent computes: same transitions, same weights, same update."""

import numpy as np
import torch

from agents import Batch
from benchmarks.dqn import BATCH, NUM_ENVS, Ours, Published


def test_the_published_learner_makes_the_same_update(monkeypatch):
    published, ours = Published(5), Ours(5)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (14, NUM_ENVS, 84, 84), dtype=np.uint8)
    for row in range(10):
        obs, following = (frames[start : start + 4].swapaxes(0, 1) for start in (row, row + 1))
        action, reward = rng.integers(5, size=NUM_ENVS), rng.normal(size=NUM_ENVS).astype(np.float32)
        no = np.zeros(NUM_ENVS, bool)
        for learner in (published, ours):
            learner.add(obs, action, reward, no, no, following)
    weights = [*published.q.parameters()]
    for mine, theirs in zip(ours.agent.q.parameters(), weights, strict=True):
        mine.data.copy_(theirs.data)
    for mine, theirs in zip(ours.agent.target_q.parameters(), published.target.parameters(), strict=True):
        mine.data.copy_(theirs.data)

    rows, envs = rng.integers(10, size=BATCH), rng.integers(NUM_ENVS, size=BATCH)
    draws = iter((rows, envs))
    monkeypatch.setattr(np.random, "randint", lambda *args: next(draws))
    published.update()
    batch = ours.replay.gather(torch.as_tensor(rows * NUM_ENVS + envs))
    assert isinstance(batch, Batch)
    ours.agent.learn(batch)
    for mine, theirs in zip(ours.agent.q.parameters(), weights, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
