"""Speed of a SAC update at SimBa's widths: against CleanRL's way of writing it, SBX, and the machine's matrix product.

    python -m benchmarks.throughput [--rounds 12] [--updates 2] [--agents 4] [--json FILE]

In every round all contenders take their turn on one thread; figures are CPU seconds of the process, their medians over
rounds, and medians of the ratios within a round, so that a busy machine counts little.

ours        one update of ``agents.sac.SAC``
cleanrl     the body of CleanRL's sac_continuous_action.py on SimBa networks: a module for each critic, AdamW in its
            default form, gradients of the critics' weights computed and thrown away in the actor's loss
sbx         Stable-Baselines3's JAX twin with its SimbaPolicy, where ``sbx`` can be imported
sgemm       float32 product of two 2048 x 2048 matrices, whose rate is taken as what the machine can do

``share`` is the algorithm's need, ``FLOPS`` floating-point operations, divided by time and the rate of sgemm.
The second table is about ``--num-agents``: one update of K agents as a batched program, against K single updates.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.dqn import DQN
from agents.population import DQNPopulation, SACPopulation
from agents.replay import Batch
from agents.sac import SAC
from configs.schema import DQNConfig, SACConfig

OBS, ACTION, BATCH = 51, 19, 256  # h1-walk; the batch of SimBa's configuration
SIZE = 2048
CPU = torch.device("cpu")


def flops(config: SACConfig) -> float:
    """Multiplications and additions of one update, matrix products only.

    A critic is run forwards three times (target, critic loss, actor loss), its inputs' gradients are needed twice and
    its weights' once: six products, as for the actor forwards twice (both losses) and backwards once (two products).
    """

    def products(fan_in: int, width: int, blocks: int, fan_out: int) -> int:
        return fan_in * width + blocks * 8 * width * width + width * fan_out

    critic = products(OBS + ACTION, config.critic_width, config.critic_blocks, 1)
    actor = products(OBS, config.actor_width, config.actor_blocks, 2 * ACTION)
    return 2.0 * BATCH * (6 * config.num_critics * critic + 4 * actor)


def make_batch(seed: int, actions: int | None = None) -> Batch:
    """Random transitions; ``actions`` discrete ones, or vectors."""
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, BATCH, OBS, generator=g)
    vectors = torch.rand(BATCH, ACTION, generator=g) * 2 - 1
    action = vectors if actions is None else torch.randint(actions, (BATCH,), generator=g)
    return Batch(obs, action, torch.randn(BATCH, generator=g), torch.full((BATCH,), 0.99), next_obs)


# The rival


class Trunk(nn.Module):
    """SimBa's encoder in plain layers."""

    def __init__(self, fan_in: int, width: int, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(fan_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


class CleanRL:
    """SAC as CleanRL writes it, at replay ratio 1 with the actor updated every time."""

    def __init__(self, config: SACConfig) -> None:
        def critic() -> nn.Module:
            return nn.Sequential(
                Trunk(OBS + ACTION, config.critic_width, config.critic_blocks),
                nn.Linear(config.critic_width, 1),
            )

        self.actor = nn.Sequential(
            Trunk(OBS, config.actor_width, config.actor_blocks), nn.Linear(config.actor_width, 2 * ACTION)
        )
        self.critics, self.targets = ([critic() for _ in range(2)] for _ in range(2))
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.q_optimizer = torch.optim.AdamW([p for q in self.critics for p in q.parameters()], lr=1e-4)
        self.actor_optimizer = torch.optim.AdamW(self.actor.parameters(), lr=1e-4)
        self.a_optimizer = torch.optim.AdamW([self.log_alpha], lr=1e-4)

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, dim=1)
        normal = torch.distributions.Normal(mean, (-3.5 * torch.tanh(log_std) - 1.5).exp())
        raw = normal.rsample()
        action = torch.tanh(raw)
        return action, (normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)).sum(1, keepdim=True)

    def update(self, batch: Batch) -> None:
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            action, log_prob = self.sample(batch.next_obs)
            inputs = torch.cat([batch.next_obs, action], 1)
            low = torch.min(*(target(inputs) for target in self.targets)) - alpha * log_prob
            wanted = batch.reward + batch.discount * low.view(-1)
        inputs = torch.cat([batch.obs, batch.action], 1)
        q_loss = sum(F.mse_loss(q(inputs).view(-1), wanted) for q in self.critics)
        self.q_optimizer.zero_grad()
        q_loss.backward()
        self.q_optimizer.step()

        action, log_prob = self.sample(batch.obs)
        inputs = torch.cat([batch.obs, action], 1)
        actor_loss = (alpha * log_prob - torch.min(*(q(inputs) for q in self.critics))).mean()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        with torch.no_grad():
            _, log_prob = self.sample(batch.obs)
        alpha_loss = (-self.log_alpha.exp() * (log_prob - 0.5 * ACTION)).mean()
        self.a_optimizer.zero_grad()
        alpha_loss.backward()
        self.a_optimizer.step()
        for q, target in zip(self.critics, self.targets, strict=True):
            for p, t in zip(q.parameters(), target.parameters(), strict=True):
                t.data.copy_(0.005 * p.data + 0.995 * t.data)


def sbx_update(config: SACConfig) -> Callable[[int], None]:
    """``train(gradient_steps)`` of SBX on a buffer of random transitions."""
    import gymnasium as gym
    from sbx import SAC as RivalSAC

    class Still(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            return np.zeros(OBS, np.float32), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return np.random.randn(OBS).astype(np.float32), 0.0, False, False, {}

    widths = {
        "pi": [config.actor_width] * config.actor_blocks,
        "qf": [config.critic_width] * config.critic_blocks,
    }
    model = RivalSAC(
        "SimbaPolicy", Still(), batch_size=BATCH, learning_starts=600, policy_kwargs={"net_arch": widths}
    )
    model.learn(601)
    return lambda count: model.train(batch_size=BATCH, gradient_steps=count)


# Measuring


def cpu_seconds(call: Callable[[], object], count: int) -> float:
    """CPU seconds of the process for one of ``count`` calls."""
    start = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - start) / count


def take_turns(
    contenders: dict[str, Callable[[], object]], rounds: int, count: int
) -> dict[str, list[float]]:
    """CPU seconds of one call of each contender in every round, the order turning from round to round."""
    names = list(contenders)
    for call in contenders.values():
        call()
        call()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(cpu_seconds(contenders[name], count))
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of how many times faster we are, over rounds."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def single(rounds: int, count: int) -> dict[str, object]:
    """One SAC update at the paper's widths."""
    config, batch = SACConfig(), make_batch(0)
    ours, rival = SAC(config, OBS, ACTION, 500, 0, CPU), CleanRL(config)
    left, right, out = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE), torch.empty(SIZE, SIZE)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.update(batch),
        "cleanrl": lambda: rival.update(batch),
        "sgemm": lambda: torch.mm(left, right, out=out),
    }
    if importlib.util.find_spec("sbx"):
        train = sbx_update(config)
        contenders["sbx"] = lambda: train(1)
    seconds = take_turns(contenders, rounds, count)
    need = flops(config) / (2.0 * SIZE**3)  # in units of the reference product
    figures: dict[str, object] = {"gflop": flops(config) / 1e9}
    figures["sgemm_gflop_per_second"] = 2.0 * SIZE**3 / statistics.median(seconds["sgemm"]) / 1e9
    for name in contenders:
        if name != "sgemm":
            shares = [need * s / t for t, s in zip(seconds[name], seconds["sgemm"], strict=True)]
            figures[name] = {
                "milliseconds": 1e3 * statistics.median(seconds[name]),
                "share": statistics.median(shares),
                "ours_is_faster_by": ratio(seconds["ours"], seconds[name]),
            }
    return figures


def several(rounds: int, count: int, agents: int) -> dict[str, object]:
    """One update of ``agents`` agents together, in units of as many single updates."""
    narrow = SACConfig(actor_width=64, critic_width=128, critic_blocks=1)  # of the quick preset's size
    cases = {
        "sac, actor 64, critics 128 x 1": (
            [SAC(narrow, OBS, ACTION, 500, seed, CPU) for seed in range(2 * agents)],
            SACPopulation,
            [make_batch(seed) for seed in range(agents)],
        ),
        "dqn, MLP 120-84": (
            [DQN(DQNConfig(), (OBS,), ACTION, 0, 100, seed, CPU) for seed in range(2 * agents)],
            DQNPopulation,
            [make_batch(seed, ACTION) for seed in range(agents)],
        ),
    }
    figures: dict[str, object] = {}
    for name, (made, kind, batches) in cases.items():
        alone, population = made[:agents], kind(made[agents:])
        contenders = {
            "together": lambda population=population, batches=batches: population.update(batches),
            "alone": lambda alone=alone, batches=batches: [
                agent.update(batch) for agent, batch in zip(alone, batches, strict=True)
            ],
        }
        seconds = take_turns(contenders, rounds, 10 * count)
        figures[name] = {
            "together_milliseconds": 1e3 * statistics.median(seconds["together"]),
            "alone_milliseconds": 1e3 * statistics.median(seconds["alone"]),
            "together_is_faster_by": ratio(seconds["together"], seconds["alone"]),
        }
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--updates", type=int, default=2, help="updates per turn (default: 2)")
    parser.add_argument("--agents", type=int, default=4, help="agents of the batched program (default: 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: importlib.metadata.version(name) for name in ("sbx-rl", "jax") if _installed(name)}
    record = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.throughput {' '.join(sys.argv[1:])}".strip(),
        "versions": versions,
        "update": single(args.rounds, args.updates),
        f"{args.agents} agents": several(args.rounds, args.updates, args.agents),
    }
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
