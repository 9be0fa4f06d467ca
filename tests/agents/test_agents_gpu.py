"""Agents on a CUDA device: the same update as on the CPU, and a checkpoint that moves between devices."""

import copy

import numpy as np
import pytest
import torch

from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.replay import Batch, FlatReplay
from agents.sac import SAC
from configs.schema import DQNConfig, SACConfig
from fire.resets.registry import REGISTRY

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def batch(device, discrete):
    g = torch.Generator().manual_seed(0)
    action = torch.randint(3, (16,), generator=g) if discrete else torch.rand(16, 3, generator=g) * 2 - 1
    obs, next_obs = torch.randn(2, 16, 5, generator=g)
    tensors = Batch(obs, action, torch.randn(16, generator=g), torch.full((16,), 0.99), next_obs)
    return Batch(*(t.to(device) for t in tensors))


def test_sac_update_on_the_gpu_equals_the_cpu():
    config = SACConfig(actor_width=8, critic_width=8, critic_blocks=1)
    agents = {name: SAC(config, 5, 3, 500, 0, torch.device(name)) for name in ("cpu", "cuda")}
    noise = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(1))
    for name, agent in agents.items():
        agent.learn(batch(name, discrete=False), noise)
    for key, value in agents["cpu"].critic.state_dict().items():
        torch.testing.assert_close(agents["cuda"].critic.state_dict()[key].cpu(), value, rtol=1e-3, atol=1e-5)


def test_dqn_update_on_the_gpu_equals_the_cpu():
    config = DQNConfig(hidden_widths=(8,))
    agents = {name: DQN(config, (5,), 3, 0, 100, 0, torch.device(name)) for name in ("cpu", "cuda")}
    for name, agent in agents.items():
        agent.learn(batch(name, discrete=True))
    for key, value in agents["cpu"].q.state_dict().items():
        torch.testing.assert_close(agents["cuda"].q.state_dict()[key].cpu(), value, rtol=1e-3, atol=1e-6)


def test_a_state_saved_on_the_gpu_continues_there_bit_for_bit():
    config = SACConfig(actor_width=8, critic_width=8, critic_blocks=1)
    one, two = (SAC(config, 5, 3, 500, seed, CUDA) for seed in (0, 1))
    one.learn(batch(CUDA, discrete=False))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    a, b = one.learn(batch(CUDA, discrete=False)), two.learn(batch(CUDA, discrete=False))
    assert all(torch.equal(a[key], b[key]) for key in a)
    obs = np.zeros((2, 5), np.float32)
    assert np.array_equal(one.act(obs, 0), two.act(obs, 0))


def test_replay_lives_and_samples_on_the_gpu():
    buffer = FlatReplay(8, 1, (5,), (3,), False, 0.99, device=CUDA)
    buffer.add(*(np.zeros((1, *s), np.float32) for s in ((5,), (3,), ())), np.array([False]), np.array([False]),
               np.ones((1, 5), np.float32))  # fmt: skip
    sample = buffer.run(0).sample(4, torch.Generator().manual_seed(0))
    assert all(t.device.type == "cuda" for t in sample) and sample.next_obs.eq(1).all()


def test_frame_replay_on_the_gpu_hands_out_what_the_cpu_does():
    rng = np.random.default_rng(0)
    cpu, gpu = (FrameReplay(40, 2, (4, 84, 84), 3, 0.99, 3, device) for device in ("cpu", CUDA))
    obs = rng.integers(0, 256, (2, 4, 84, 84), dtype=np.uint8)
    for _ in range(30):  # wraps
        frame = rng.integers(0, 256, (2, 1, 84, 84), dtype=np.uint8)
        following = np.concatenate([obs[:, 1:], frame], axis=1)
        ended = rng.random(2) < 0.2
        for buffer in (cpu, gpu):
            buffer.add(obs, np.ones(2, int), np.ones(2, np.float32), ended, np.zeros(2, bool), following)
        fresh = rng.integers(0, 256, obs.shape, dtype=np.uint8)
        obs = np.where(ended[:, None, None, None], fresh, following)
    here, there = cpu.run(0), gpu.run(0)
    index = torch.arange(len(here))
    for one, other in zip(here.gather(index), there.gather(index.to(CUDA)), strict=True):
        assert other.device.type == "cuda" and torch.equal(one, other.cpu())
    there.load_state_dict(here.state_dict())
    assert torch.equal(here.gather(index).obs, there.gather(index.to(CUDA)).obs.cpu())


@pytest.mark.parametrize("reset", ["cbp", "snr"])
def test_a_trackers_statistics_loaded_on_the_cpu_go_on_on_the_gpu(reset):
    agent = DQN(DQNConfig(hidden_widths=(8,)), (5,), 3, 0, 100, 0, CUDA)
    trackers = [REGISTRY[reset]().tracker() for _ in range(2)]
    sources = [torch.Generator().manual_seed(step) for step in range(2)]
    trackers[0].after_update(agent.networks(), batch(CUDA, discrete=True), sources[0])
    saved = {key: {n: t.cpu() for n, t in group.items()} for key, group in trackers[0].state_dict().items()}
    trackers[1].load_state_dict(saved, CUDA)
    trackers[1].after_update(agent.networks(), batch(CUDA, discrete=True), sources[1])
