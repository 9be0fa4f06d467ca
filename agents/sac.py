"""Soft actor-critic on SimBa networks (Haarnoja et al. 2018, arXiv 1812.05905; Lee et al. 2024, arXiv 2410.09754).

One update: actor, temperature, critics (with the new actor and temperature), soft target update.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents import losses
from agents.base import Agent, Step, discount_from_horizon, probe_noise
from agents.graphs import Capture
from agents.networks import ObservationNormalizer, SimbaActor, SimbaCritic
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from configs.schema import Config, SACConfig, XQCConfig
from fire.network.slot import NetworkSlot


class SAC(Agent):
    """SAC for flat observations and actions in [-1, 1].

    Args:
        config: hyperparameters.
        obs_dim, action_dim: sizes D and A.
        max_episode_steps: episode limit in transitions, for the discount rule.
        seed: run seed; the agent draws from the streams ``init``, ``explore`` and ``update``.
        device: where networks live.
        numerics: precision of the losses.
        capture: records acting as a CUDA graph; None: no graph.
    """

    modules: ClassVar[tuple[str, ...]] = ("actor", "critic", "target_critic", "temperature", "regularizers")
    optimizers: ClassVar = {
        "actor_optimizer": "actor",
        "critic_optimizer": "critic",
        "alpha_optimizer": "temperature",
    }
    policy: ClassVar = "actor"
    streams: ClassVar = {"explore": "explore", "noise": "update"}
    resettable: ClassVar[tuple[str, ...]] = ("temperature", "normalizer")
    normalizer: ObservationNormalizer

    def __init__(
        self,
        config: SACConfig,
        obs_dim: int,
        action_dim: int,
        max_episode_steps: int | None,
        seed: int,
        device: torch.device,
        numerics: Numerics = FLOAT32,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.action_dim = action_dim
        self.gamma = discount_from_horizon(max_episode_steps) if config.gamma is None else config.gamma
        self.target_entropy = config.target_entropy_per_action * action_dim
        self.normalizer = ObservationNormalizer(obs_dim).to(device)

        def build_actor() -> nn.Module:
            return SimbaActor(self.normalizer, obs_dim, action_dim, config.actor_width, config.actor_blocks)

        def build_critic() -> nn.Module:
            sizes = (config.critic_width, config.critic_blocks, config.num_critics)
            return SimbaCritic(self.normalizer, obs_dim, action_dim, *sizes)

        super().__init__(seed, device, {"actor": build_actor, "critic": build_critic}, capture)
        self._assemble(config, numerics)

    def _assemble(self, config: SACConfig | XQCConfig, numerics: Numerics) -> None:
        """Draw the networks, and make what trains them."""
        self.actor = self._initial("actor")
        self.critic = self._initial("critic")
        # The target shares the normaliser: it must see inputs under the current statistics, never under old ones.
        shared = {} if self.normalizer is None else {id(self.normalizer): self.normalizer}
        self.target_critic = copy.deepcopy(self.critic, shared).requires_grad_(False)
        self.temperature = Temperature(config.init_temperature).to(self.device)

        optimizer = partial(
            torch.optim.AdamW,
            lr=config.learning_rate,
            betas=config.betas,
            eps=1e-8,
            fused=True,
            capturable=self.device.type == "cuda",
        )
        self.actor_optimizer = optimizer(self.actor.parameters(), weight_decay=config.weight_decay)
        self.critic_optimizer = optimizer(self.critic.parameters(), weight_decay=config.weight_decay)
        self.alpha_optimizer = optimizer(self.temperature.parameters(), weight_decay=0.0)
        self.regularizers = self._make_regularizers(config.l2_init, config.parseval)
        prepare = partial(numerics.prepare, device=self.device)
        self.actor_loss, self.critic_loss = prepare(self._actor_loss), prepare(self._critic_loss)

    @classmethod
    def sizes(
        cls, config: Config, obs_space: spaces.Box, action_space: Any, max_steps: int | None
    ) -> tuple[Any, ...]:
        return (*obs_space.shape, *action_space.shape, max_steps)

    # Acting

    def draw_exploration(self, count: int, env_step: int) -> tuple[Tensor]:
        return (torch.randn((count, self.action_dim), generator=self.generators["explore"]),)

    def explore(self, obs: Tensor, *drawn: Tensor) -> Tensor:
        (noise,) = drawn
        mean, log_std = self.actor(obs)
        return torch.tanh(mean + log_std.exp() * noise)

    def exploit(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.actor(obs)[0])

    # Learning

    def update(self, step: Step, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        actor_noise, critic_noise = noise.unbind(-3)
        actor_loss, entropy = step("actor_optimizer", self.actor_loss, batch, actor_noise)
        (alpha_loss,) = step("alpha_optimizer", self.temperature_loss, entropy)
        critic_loss, q_mean, alpha = step("critic_optimizer", self.critic_loss, batch, critic_noise)
        step.soft_update("target_critic", "critic", self.config.target_tau)
        return {
            "actor_loss": actor_loss,
            "critic_loss": critic_loss,
            "ent_coef_loss": alpha_loss,
            "ent_coef": alpha,
            "entropy": entropy,
            "q_mean": q_mean,
        }

    def draw(self, batch_size: int) -> Tensor:
        """Standard normal noise ``(2, B, A)`` for the actor's loss and the critics', on the CPU."""
        shape = (batch_size, self.action_dim)
        return torch.stack([torch.randn(shape, generator=self.generators["noise"]) for _ in range(2)])

    def _actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and entropy."""
        mean, log_std = self.actor(batch.obs)
        action, log_prob = losses.tanh_gaussian_sample(mean, log_std, noise)
        alpha = self.temperature.log_alpha.exp().detach()
        loss = losses.sac_actor_loss(self.critic(batch.obs, action), log_prob, alpha)
        if self.regularizers:
            loss = self._regularized("actor", loss)
        return loss, -log_prob.mean()

    def temperature_loss(self, entropy: Tensor) -> tuple[Tensor]:
        return (losses.temperature_loss(self.temperature.log_alpha, entropy, self.target_entropy),)

    def _critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, ...]:
        """Loss, mean Q-value and temperature."""
        with torch.no_grad():
            mean, log_std = self.actor(batch.next_obs)
            next_action, next_log_prob = losses.tanh_gaussian_sample(mean, log_std, noise)
            next_q = self.target_critic(batch.next_obs, next_action)
            alpha = self.temperature.log_alpha.exp()
            td_target = losses.sac_td_target(batch.reward, batch.discount, next_q, next_log_prob, alpha)
        q = self.critic(batch.obs, batch.action)
        loss = losses.sac_critic_loss(q, td_target)
        if self.regularizers:
            loss = self._regularized("critic", loss)
        return loss, q.mean(), alpha

    # Resets and metrics

    def networks(self) -> dict[str, NetworkSlot]:
        def probe(loss, batch: Batch) -> Tensor:
            return loss(batch, probe_noise(batch.action.shape, self.device))[0]

        return {
            "actor": self._slot(
                "actor",
                forward=lambda batch: self.actor(batch.obs)[0],
                policy=lambda batch: self.actor(batch.obs),
                loss=partial(probe, self._actor_loss),
                heads=("mean", "log_std"),
                preserve=("normalizer",),
            ),
            "critic": self._slot(
                "critic",
                forward=lambda batch: self.critic(batch.obs, batch.action),
                forward_next=self._forward_next,
                predicts_values=True,
                loss=partial(probe, self._critic_loss),
                heads=("value",),
                preserve=("normalizer",),
                ensemble_size=self.config.num_critics,
            ),
        }

    def _forward_next(self, batch: Batch) -> Tensor:
        noise = probe_noise(batch.action.shape, self.device)
        mean, log_std = self.actor(batch.next_obs)
        action, _ = losses.tanh_gaussian_sample(mean, log_std, noise)
        return self.critic(batch.next_obs, action)

    @torch.no_grad()
    def reset_temperature(self) -> None:
        """Return the temperature to its initial value, with a fresh optimizer state."""
        self.temperature.log_alpha.fill_(math.log(self.config.init_temperature))
        for value in self.alpha_optimizer.state[self.temperature.log_alpha].values():
            value.zero_()


class Temperature(nn.Module):
    """SAC's entropy coefficient ``alpha``, learned as its logarithm."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))
