"""Small agents with filled replays, for tests of the learner on any device."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.learner import Agents, GraphLearner, Learner
from agents.numerics import FLOAT32
from agents.replay import FlatReplay
from agents.sac import SAC
from agents.td3 import TD3
from agents.xqc import XQC
from configs.schema import DQNConfig, SACConfig, TD3Config, XQCConfig
from tests.pretend_cuda import repeat

OBS, ACTION, BATCH, ENVS = 5, 3, 8, 2
CPU = torch.device("cpu")


class Case:
    """K agents of an algorithm (``pixels``: DQN on frames) with replay and learner; ``capture`` None: eager."""

    def __init__(self, algo, capture, count=1, device=CPU, numerics=FLOAT32, act_capture=None):
        self.algo = algo
        self.agents = [self._agent(seed, device, numerics, act_capture) for seed in range(count)]
        self.replay = self._replay(device, count)
        self.stack = Agents(self.agents, numerics)
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        parts = (self.stack, self.replay, generators, BATCH, numerics)
        self.learner = Learner(*parts) if capture is None else GraphLearner(*parts, capture)
        self._rng = np.random.default_rng(0)
        self._ended = np.ones(ENVS, bool)
        self._obs = None

    def _agent(self, seed, device, numerics, capture):
        if self.algo == "sac":
            config = SACConfig(actor_width=8, critic_width=8, critic_blocks=1, learning_rate=3e-3)
            return SAC(config, OBS, ACTION, 500, seed, device, numerics, capture)
        if self.algo == "xqc":
            config = XQCConfig(actor_widths=(8,), critic_widths=(8,), num_atoms=11, learning_rate=3e-3)
            return XQC(config, OBS, ACTION, 500, ENVS, seed, device, numerics, capture)
        if self.algo == "td3":
            config = TD3Config(hidden_widths=(16, 8))
            return TD3(config, OBS, ACTION, seed, device, numerics, capture)
        config = DQNConfig(
            hidden_widths=(16, 8), learning_rate=1e-3, target_update_period=5, pixel_network="nips"
        )
        shape = (4, 84, 84) if self.algo == "pixels" else (OBS,)
        return DQN(config, shape, ACTION, 0, 100, seed, device, numerics, capture)

    def _replay(self, device, count):
        options = {"gamma": 0.99, "n_step": 3, "device": device, "num_runs": count}
        if self.algo == "pixels":
            return FrameReplay(24, ENVS, (4, 84, 84), ACTION, **options)
        shape = () if self.algo == "dqn" else (ACTION,)
        return FlatReplay(24, ENVS, (OBS,), shape, self.algo == "dqn", **options)

    def step(self):
        """Act, and store a row of transitions; the ring of 12 rows wraps."""
        if self._obs is None:
            self._obs = self._fresh()
        self._obs = np.where(self._ended.reshape(-1, *[1] * (self._obs.ndim - 1)), self._fresh(), self._obs)
        if self.algo == "pixels":
            frame = self._rng.integers(0, 256, (ENVS, 1, 84, 84), dtype=np.uint8)
            following = np.concatenate([self._obs[:, 1:], frame], axis=1)
        else:
            following = self._fresh()
        self._ended = self._rng.random(ENVS) < 0.2
        count = len(self.agents)
        obs = np.stack([self._obs] * count)
        self.stack.observe(obs)
        actions = self.stack.act(obs, 50)
        reward = self._rng.normal(size=count * ENVS).astype(np.float32)
        ended, truncated = np.tile(self._ended, count), np.zeros(count * ENVS, bool)
        self.stack.observe_rewards(reward.reshape(count, ENVS), ended.reshape(count, ENVS))
        row = (np.concatenate(obs), np.concatenate(actions), reward, ended, truncated)
        self.replay.add(*row, np.concatenate([following] * count))
        self._obs = following
        return actions

    def _fresh(self):
        if self.algo == "pixels":
            return self._rng.integers(0, 256, (ENVS, 4, 84, 84), dtype=np.uint8)
        return self._rng.normal(size=(ENVS, OBS)).astype(np.float32)


class _Recorder(TorchDispatchMode):
    """Keeps every operation on tensors, those of backward passes and optimizers included."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITING:
            raise AssertionError(f"{function} would wait for the device")
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result


# Operations whose result the host must know before it can go on.
WAITING = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


def recorded(body, side=None):
    """A CUDA graph's behaviour on the CPU: operations repeated on the addresses and the constants of the recording.

    Whatever Python decided or counted while recording is frozen, and the tensors of the recording hold the results.
    """
    for _ in range(3):
        body()
    recorder = _Recorder()
    with recorder:
        final = body()

    def replay():
        repeat(recorder.operations)
        return final

    replay.operations = recorder.operations
    return replay
