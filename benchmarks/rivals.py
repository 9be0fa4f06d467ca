"""SAC as others write it, on SimBa's sizes: CleanRL, LeanRL, Stable-Baselines3, SBX, the authors' JAX program.

Each function returns what performs one gradient update on ``BATCH`` random transitions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import Env, spaces
from torch import Tensor, nn

from agents.replay import Batch
from configs.schema import SACConfig

OBS, ACTION, BATCH = 51, 19, 256  # h1-walk; the batch of SimBa's configuration


def make_batch(seed: int, actions: int | None = None, device: str = "cpu") -> Batch:
    """Random transitions; ``actions`` discrete ones, or vectors."""
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, BATCH, OBS, generator=g)
    vectors = torch.rand(BATCH, ACTION, generator=g) * 2 - 1
    action = vectors if actions is None else torch.randint(actions, (BATCH,), generator=g)
    reward, discount = torch.randn(BATCH, generator=g), torch.full((BATCH,), 0.99)
    return Batch(*(tensor.to(device) for tensor in (obs, action, reward, discount, next_obs)))


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
    """SAC as CleanRL writes it, at replay ratio 1 with the actor updated every time.

    ``lean``: as LeanRL changes it, so that a graph can hold the update: nothing is read back to the host.
    """

    def __init__(
        self,
        config: SACConfig,
        device: str = "cpu",
        lean: bool = False,
        observation: int = OBS,
        action: int = ACTION,
    ) -> None:
        def critic() -> nn.Module:
            return nn.Sequential(
                Trunk(observation + action, config.critic_width, config.critic_blocks),
                nn.Linear(config.critic_width, 1),
            ).to(device)

        self.actor = nn.Sequential(
            Trunk(observation, config.actor_width, config.actor_blocks),
            nn.Linear(config.actor_width, 2 * action),
        ).to(device)
        self.critics, self.targets = ([critic() for _ in range(2)] for _ in range(2))
        self.log_alpha = torch.zeros(1, requires_grad=True, device=device)
        self.lean = lean
        self.target_entropy = -0.5 * action
        adamw = partial(torch.optim.AdamW, lr=1e-4, capturable=lean and device == "cuda")
        self.q_optimizer = adamw([p for q in self.critics for p in q.parameters()])
        self.actor_optimizer = adamw(self.actor.parameters())
        self.a_optimizer = adamw([self.log_alpha])

    def sample(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.actor(obs).chunk(2, dim=1)
        std = (-3.5 * torch.tanh(log_std) - 1.5).exp()
        normal = torch.distributions.Normal(mean, std, validate_args=not self.lean)
        raw = normal.rsample()
        action = torch.tanh(raw)
        return action, (normal.log_prob(raw) - torch.log(1 - action.pow(2) + 1e-6)).sum(1, keepdim=True)

    def update(self, batch: Batch) -> None:
        temperature = self.log_alpha.exp().detach()
        alpha = temperature if self.lean else temperature.item()
        with torch.no_grad():
            action, log_prob = self.sample(batch.next_obs)
            inputs = torch.cat([batch.next_obs, action], 1)
            low = torch.min(*(target(inputs) for target in self.targets)) - alpha * log_prob
            wanted = batch.reward + batch.discount * low.view(-1)
        inputs = torch.cat([batch.obs, batch.action], 1)
        q_loss = torch.stack([F.mse_loss(q(inputs).view(-1), wanted) for q in self.critics]).sum()
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
        alpha_loss = (-self.log_alpha.exp() * (log_prob + self.target_entropy)).mean()
        self.a_optimizer.zero_grad()
        alpha_loss.backward()
        self.a_optimizer.step()
        for q, target in zip(self.critics, self.targets, strict=True):
            for p, t in zip(q.parameters(), target.parameters(), strict=True):
                t.data.copy_(0.005 * p.data + 0.995 * t.data)


def lean_update(
    config: SACConfig, batch: Batch, capture: Callable[[Callable[[], object]], Callable[[], object]]
) -> Callable[[], object]:
    """CleanRL's body as LeanRL runs it: compiled, and recorded as one graph by ``capture``; noise is drawn inside."""
    rival = CleanRL(config, batch.obs.device.type, lean=True)
    compiled = torch.compile(rival.update)
    return capture(lambda: compiled(batch))


class Still(Env):
    """An environment of h1-walk's sizes that costs nothing, for programs that fill their buffers themselves."""

    observation_space = spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(OBS, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return np.random.randn(OBS).astype(np.float32), 0.0, False, False, {}


def sbx_update(config: SACConfig) -> Callable[[], object]:
    """SBX's SAC with its SimbaPolicy."""
    _one_xla_thread()
    from sbx import SAC

    widths = {
        "pi": [config.actor_width] * config.actor_blocks,
        "qf": [config.critic_width] * config.critic_blocks,
    }
    model = SAC(
        "SimbaPolicy", Still(), batch_size=BATCH, learning_starts=600, policy_kwargs={"net_arch": widths}
    )
    model.learn(601)
    return lambda: model.train(batch_size=BATCH, gradient_steps=1)


def exchange_networks(model: Any, networks: CleanRL, learning_rate: float = 1e-3) -> None:
    """Give Stable-Baselines3's SAC the SimBa networks of ``networks``, and AdamW for them."""
    model.actor.latent_pi = networks.actor[0]
    for critic, members in ((model.critic, networks.critics), (model.critic_target, networks.targets)):
        for index, member in enumerate(members):
            setattr(critic, f"qf{index}", member)
            critic.q_networks[index] = member
    for network in (model.actor, model.critic):
        network.optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)


def sb3_update(config: SACConfig, device: str) -> Callable[[], object]:
    """Stable-Baselines3's SAC; it has no SimBa policy, so its networks are exchanged for those of ``CleanRL``."""
    from stable_baselines3 import SAC

    model = SAC(
        "MlpPolicy",
        Still(),
        batch_size=BATCH,
        learning_starts=600,
        policy_kwargs={"net_arch": {"pi": [config.actor_width], "qf": [config.critic_width]}},
        device=device,
    )
    exchange_networks(model, CleanRL(config, device), config.learning_rate)
    model.learn(601)
    return lambda: model.train(gradient_steps=1, batch_size=BATCH)


def simba_update(config: SACConfig, checkout: Path) -> Callable[[], object]:
    """The agent of SonyResearch/simba, from a checkout of that repository."""
    _one_xla_thread()
    import jax

    if not hasattr(jax, "tree_map"):  # removed from JAX since their release
        jax.tree_map = jax.tree_util.tree_map
    sys.path.insert(0, str(checkout))
    from scale_rl.agents.sac.sac_agent import SACAgent

    options = {
        "seed": 0,
        "num_train_envs": 1,
        "max_episode_steps": 500,
        "normalize_observation": True,
        "actor_block_type": "residual",
        "actor_num_blocks": config.actor_blocks,
        "actor_hidden_dim": config.actor_width,
        "critic_block_type": "residual",
        "critic_num_blocks": config.critic_blocks,
        "critic_hidden_dim": config.critic_width,
        "critic_use_cdq": config.num_critics == 2,
        "temp_target_entropy": None,
        "temp_target_entropy_coef": config.target_entropy_per_action,
        "temp_initial_value": config.init_temperature,
        "temp_learning_rate": config.learning_rate,
        "temp_weight_decay": 0.0,
        "target_tau": config.target_tau,
        "gamma": 0.99,
        "n_step": 1,
        "mixed_precision": False,
    }
    for network in ("actor", "critic"):
        options[f"{network}_learning_rate"] = config.learning_rate
        options[f"{network}_weight_decay"] = config.weight_decay
    agent = SACAgent(Still.observation_space, Still.action_space, options)
    obs, action, reward, _, next_obs = (tensor.numpy() for tensor in make_batch(0))
    batch = {"observation": obs, "action": action, "reward": reward, "next_observation": next_obs}
    batch |= {name: np.zeros(BATCH, np.float32) for name in ("terminated", "truncated")}
    return lambda: agent.update(0, dict(batch))


def _one_xla_thread() -> None:
    """Keep XLA's CPU backend to one thread; without effect once JAX has been imported."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
