"""TD3 (Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", arXiv 1802.09477).

One update: critics on a smoothed, clipped double-Q target; in every second one also the actor and all targets.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.base import Agent, Step, probe_noise
from agents.graphs import Capture
from agents.networks import mlp
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from configs.schema import Config, TD3Config
from fire.network.slot import NetworkSlot

NUM_CRITICS = 2


class TD3(Agent):
    """TD3 for flat observations and actions in [-1, 1]; arguments as for ``SAC``."""

    modules: ClassVar = ("actor", "critic", "target_actor", "target_critic", "regularizers")
    optimizers: ClassVar = {"actor_optimizer": "actor", "critic_optimizer": "critic"}
    policy: ClassVar = "actor"
    streams: ClassVar = {"explore": "explore", "noise": "update"}

    def __init__(
        self,
        config: TD3Config,
        obs_dim: int,
        action_dim: int,
        seed: int,
        device: torch.device,
        numerics: Numerics = FLOAT32,
        capture: Capture | None = None,
    ) -> None:
        self.config, self.gamma, self.action_dim = config, config.gamma, action_dim
        actor = partial(mlp, [obs_dim, *config.hidden_widths, action_dim])
        critic = partial(mlp, [obs_dim + action_dim, *config.hidden_widths, 1], NUM_CRITICS)
        super().__init__(seed, device, {"actor": actor, "critic": critic}, capture)
        self.actor, self.critic = self._initial("actor"), self._initial("critic")
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        on_cuda = device.type == "cuda"
        adam = partial(
            torch.optim.AdamW,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=on_cuda,
        )
        self.actor_optimizer = adam(self.actor.parameters())
        self.critic_optimizer = adam(self.critic.parameters())
        self.regularizers = self._make_regularizers(config.l2_init, config.parseval)
        self.actor_loss = numerics.prepare(self._actor_loss, device)
        self.critic_loss = numerics.prepare(self._critic_loss, device)

    @classmethod
    def sizes(
        cls, config: Config, obs_space: spaces.Box, action_space: Any, max_steps: int | None
    ) -> tuple[int, int]:
        return (*obs_space.shape, *action_space.shape)

    def draw_exploration(self, count: int, env_step: int) -> tuple[Tensor]:
        return (torch.randn((count, self.action_dim), generator=self.generators["explore"]),)

    def explore(self, obs: Tensor, *drawn: Tensor) -> Tensor:
        return (self.exploit(obs) + self.config.exploration_noise * drawn[0]).clamp(-1, 1)

    def exploit(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.actor(obs))

    def draw(self, batch_size: int) -> Tensor:
        """Standard normal noise ``(B, A)`` of the target policy, on the CPU."""
        return torch.randn((batch_size, self.action_dim), generator=self.generators["noise"])

    def update(self, step: Step, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """Algorithm 1; an ``actor_loss`` in every ``policy_period``-th update only."""
        critic_loss, q_mean = step("critic_optimizer", self.critic_loss, batch, noise)
        losses = {"critic_loss": critic_loss, "q_mean": q_mean}
        if self.update_pattern(1):
            (losses["actor_loss"],) = step("actor_optimizer", self.actor_loss, batch)
            step.soft_update("target_critic", "critic", self.config.target_tau)
            step.soft_update("target_actor", "actor", self.config.target_tau)
        return losses

    def update_pattern(self, count: int) -> tuple[int, ...]:
        """The updates among the next ``count`` that also update the policy and the targets (0: the next)."""
        return self._every(self.config.policy_period, count)

    def _q(self, critic: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
        """Q-values ``(2, B)``."""
        return critic(torch.cat([obs, action], -1).expand(NUM_CRITICS, -1, -1)).squeeze(-1)

    def _critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors summed over the critics, and the mean Q-value (Algorithm 1; clipped noise: equation 14)."""
        with torch.no_grad():
            clip = self.config.target_noise_clip
            smoothing = (self.config.target_noise * noise).clamp(-clip, clip)
            next_action = (torch.tanh(self.target_actor(batch.next_obs)) + smoothing).clamp(-1, 1)
            next_q = self._q(self.target_critic, batch.next_obs, next_action).amin(0)
            td_target = batch.reward + batch.discount * next_q
        q = self._q(self.critic, batch.obs, batch.action)
        loss = (q - td_target).square().mean(1).sum()
        return self._regularized("critic", loss) if self.regularizers else loss, q.mean()

    def _actor_loss(self, batch: Batch) -> tuple[Tensor]:
        """``-mean Q_1(s, pi(s))``, whose gradient is the deterministic policy gradient."""
        loss = -self._q(self.critic, batch.obs, self.exploit(batch.obs))[0].mean()
        return (self._regularized("actor", loss) if self.regularizers else loss,)

    def networks(self) -> dict[str, NetworkSlot]:
        def critic_loss(b: Batch) -> Tensor:
            return self._critic_loss(b, probe_noise(b.action.shape, self.device))[0]

        return {
            "actor": self._slot(
                "actor",
                forward=lambda b: self.actor(b.obs),
                policy=lambda b: self.exploit(b.obs),
                loss=lambda b: self._actor_loss(b)[0],
            ),
            "critic": self._slot(
                "critic",
                forward=lambda b: self._q(self.critic, b.obs, b.action),
                forward_next=lambda b: self._q(self.critic, b.next_obs, self.exploit(b.next_obs)),
                predicts_values=True,
                loss=critic_loss,
                heads=("output",),
                ensemble_size=NUM_CRITICS,
            ),
        }
