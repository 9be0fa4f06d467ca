"""XQC (Palenicek et al. 2026, "XQC: Well-conditioned Optimization Accelerates Deep Reinforcement Learning", arXiv
2509.25174): SAC with batch norm and unit weights, whose critics learn distributions of scaled returns.

One update, in the order of the released code: critics, targets; the actor's running statistics; in every third one also
actor and temperature.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents import losses
from agents.base import Agent, Step, discount_from_horizon, probe_noise
from agents.graphs import Capture
from agents.normalized import RewardNormalizer, XQCActor, XQCCritic, moved_statistics, unit_weights
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from agents.sac import SAC
from configs.schema import Config, XQCConfig
from fire.network.slot import NetworkSlot


class XQC(SAC):
    """XQC for flat observations and actions in [-1, 1].

    Acting, exploration and temperature are SAC's. Networks act by running statistics, and so does the critic in the
    actor's loss; they learn by those of the batch, the critics by those of observations and next ones together.

    Args:
        config: hyperparameters.
        obs_dim, action_dim: sizes D and A.
        max_episode_steps: episode limit in transitions, for the discount rule.
        num_envs: environments whose returns are followed.
        seed, device, numerics, capture: as for ``SAC``.
    """

    modules: ClassVar[tuple[str, ...]] = (*SAC.modules, "reward_normalizer")
    resettable: ClassVar[tuple[str, ...]] = ("temperature",)
    config: XQCConfig  # type: ignore[assignment]
    normalizer = None  # type: ignore[assignment]  # the first batch norm does its work
    reward_normalizer: RewardNormalizer
    actor: XQCActor
    critic: XQCCritic
    target_critic: XQCCritic

    def __init__(
        self,
        config: XQCConfig,
        obs_dim: int,
        action_dim: int,
        max_episode_steps: int | None,
        num_envs: int,
        seed: int,
        device: torch.device,
        numerics: Numerics = FLOAT32,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.action_dim = action_dim
        self.gamma = discount_from_horizon(max_episode_steps) if config.gamma is None else config.gamma
        self.target_entropy = config.target_entropy_per_action * action_dim
        self.reward_normalizer = RewardNormalizer(num_envs, self.gamma).to(device)
        sizes = (config.critic_widths, config.num_critics, config.num_atoms, config.value_limit)
        builders: dict[str, Callable[[], nn.Module]] = {
            "actor": partial(XQCActor, obs_dim, action_dim, config.actor_widths),
            "critic": partial(XQCCritic, obs_dim, action_dim, *sizes),
        }
        Agent.__init__(self, seed, device, builders, capture)
        self._assemble(config, numerics)

    @classmethod
    def sizes(
        cls, config: Config, obs_space: spaces.Box, action_space: Any, max_steps: int | None
    ) -> tuple[Any, ...]:
        return (*obs_space.shape, *action_space.shape, max_steps, config.env.num_envs)

    # Learning

    def update(self, step: Step, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One update; losses of actor and temperature in every ``policy_period``-th only."""
        actor_noise, critic_noise = noise.unbind(-3)
        found = step("critic_optimizer", self.critic_loss, batch, critic_noise)
        critic_loss, q_mean, alpha, *statistics = found
        step.write("critic", self._critic_afterwards, *statistics)
        step.soft_update("target_critic", "critic", self.config.target_tau)
        step.write("actor", self._actor_statistics, batch)
        values = {"critic_loss": critic_loss, "q_mean": q_mean, "ent_coef": alpha}
        if self.update_pattern(1):
            actor_loss, entropy = step("actor_optimizer", self.actor_loss, batch, actor_noise)
            step.write("actor", self._actor_weights)
            (alpha_loss,) = step("alpha_optimizer", self.temperature_loss, entropy)
            values |= {"actor_loss": actor_loss, "entropy": entropy, "ent_coef_loss": alpha_loss}
        return values

    def update_pattern(self, count: int) -> tuple[int, ...]:
        """The updates among the next ``count`` (0: the next) that also update the policy: the first, as released."""
        return tuple(i for i in range(count) if (self.update_step + i) % self.config.policy_period == 0)

    def _critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, ...]:
        """Loss, mean Q-value, temperature, and the statistics of the batch."""
        with torch.no_grad():
            next_action, next_log_prob = self._sample(batch.next_obs, noise)
            alpha = self.temperature.log_alpha.exp()
        obs, action = torch.cat([batch.obs, batch.next_obs]), torch.cat([batch.action, next_action])
        size = len(batch.obs)
        with torch.no_grad():
            next_log_probs = self.target_critic(obs, action, [])[:, size:]
            reward = batch.reward * self.reward_normalizer.scale
            parts = (reward, batch.discount, next_log_probs, next_log_prob, alpha)
            target = losses.categorical_td_target(self.critic.atoms, *parts)
        statistics: list[Tensor] = []
        log_probs = self.critic(obs, action, statistics)[:, :size]
        loss = losses.categorical_critic_loss(log_probs, target)
        if self.regularizers:
            loss = self._regularized("critic", loss)
        return loss, self.critic.mean(log_probs).mean(), alpha, *statistics

    def _actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and entropy."""
        action, log_prob = self._sample(batch.obs, noise, [])
        alpha = self.temperature.log_alpha.exp().detach()
        loss = losses.sac_actor_loss(self._q(batch.obs, action), log_prob, alpha)
        if self.regularizers:
            loss = self._regularized("actor", loss)
        return loss, -log_prob.mean()

    def _sample(
        self, obs: Tensor, noise: Tensor, statistics: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Actions ``(B, A)`` and their log-probabilities ``(B,)``."""
        mean, log_std = self.actor(obs, statistics)
        return losses.tanh_gaussian_sample(mean, log_std, noise)

    def _q(self, obs: Tensor, action: Tensor, statistics: list[Tensor] | None = None) -> Tensor:
        """Q-values ``(E, B)``."""
        return self.critic.mean(self.critic(obs, action, statistics))

    def _critic_afterwards(self, *statistics: Tensor) -> dict[str, Tensor]:
        return unit_weights(self.critic) | moved_statistics(self.critic, statistics)

    def _actor_statistics(self, batch: Batch) -> dict[str, Tensor]:
        statistics: list[Tensor] = []
        self.actor.encoder(batch.obs, statistics)
        return moved_statistics(self.actor, statistics)

    def _actor_weights(self) -> dict[str, Tensor]:
        return unit_weights(self.actor)

    # Resets and metrics

    def networks(self) -> dict[str, NetworkSlot]:
        def probe(loss, batch: Batch) -> Tensor:
            return loss(batch, probe_noise(batch.action.shape, self.device))[0]

        return {
            "actor": self._slot(
                "actor",
                forward=lambda batch: self.actor(batch.obs, [])[0],
                policy=lambda batch: self.actor(batch.obs),
                loss=partial(probe, self._actor_loss),
                heads=("mean", "log_std"),
            ),
            "critic": self._slot(
                "critic",
                forward=lambda batch: self._q(batch.obs, batch.action, []),
                forward_next=self._forward_next,
                predicts_values=True,
                loss=partial(probe, self._critic_loss),
                heads=("value",),
                ensemble_size=self.config.num_critics,
            ),
        }

    def _forward_next(self, batch: Batch) -> Tensor:
        noise = probe_noise(batch.action.shape, self.device)
        return self._q(batch.next_obs, self._sample(batch.next_obs, noise)[0], [])
