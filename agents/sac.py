"""Soft actor-critic on SimBa networks (Haarnoja et al. 2018, arXiv 1812.05905; Lee et al. 2024, arXiv 2410.09754).

One update: actor, temperature, critics (with the new actor and temperature), soft target update.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents import losses
from agents.base import discount_from_horizon, load_optimizer, probe_noise
from agents.graphs import Capture, HostCall
from agents.networks import ObservationNormalizer, SimbaActor, SimbaCritic, build_seeded, frozen
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from common.seeding import torch_generator
from configs.schema import SACConfig
from fire.network.slot import NetworkSlot
from fire.regularizers import Regularizer
from fire.resets.injection import restore_structure


class SAC:
    """SAC for flat observations and actions in [-1, 1].

    Args:
        config: hyperparameters.
        obs_dim, action_dim: sizes D and A.
        max_episode_steps: episode limit in transitions, for the discount rule.
        seed: run seed; the agent draws from the streams ``init``, ``explore`` and ``update``.
        device: where networks and generators live.
        numerics: precision of the losses.
        capture: records acting as a CUDA graph; None: no graph.
    """

    modules: ClassVar = ("actor", "critic", "target_critic", "temperature", "regularizers")
    optimizers: ClassVar = {
        "actor_optimizer": "actor",
        "critic_optimizer": "critic",
        "alpha_optimizer": "temperature",
    }

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
        self.device = device
        self.action_dim = action_dim
        self.gamma = discount_from_horizon(max_episode_steps) if config.gamma is None else config.gamma
        self.target_entropy = config.target_entropy_per_action * action_dim
        self.update_step = 0
        self.normalizer = ObservationNormalizer(obs_dim).to(device)

        def build_actor() -> nn.Module:
            return SimbaActor(self.normalizer, obs_dim, action_dim, config.actor_width, config.actor_blocks)

        def build_critic() -> nn.Module:
            sizes = (config.critic_width, config.critic_blocks, config.num_critics)
            return SimbaCritic(self.normalizer, obs_dim, action_dim, *sizes)

        self._builders = {"actor": build_actor, "critic": build_critic}
        self._seed = seed
        self.actor = self._initial("actor")
        self.critic = self._initial("critic")
        # The target shares the normaliser: it must see inputs under the current statistics, never under old ones.
        self.target_critic = copy.deepcopy(
            self.critic, {id(self.normalizer): self.normalizer}
        ).requires_grad_(False)
        self.temperature = Temperature(config.init_temperature).to(device)

        optimizer = partial(
            torch.optim.AdamW,
            lr=config.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.actor_optimizer = optimizer(self.actor.parameters(), weight_decay=config.weight_decay)
        self.critic_optimizer = optimizer(self.critic.parameters(), weight_decay=config.weight_decay)
        self.alpha_optimizer = optimizer(self.temperature.parameters(), weight_decay=0.0)
        self.regularizers = nn.ModuleDict(
            {
                name: Regularizer(config.l2_init, config.parseval, slot)
                for name, slot in self.networks().items()
            }
        )
        prepare = partial(numerics.prepare, device=device)
        self.actor_loss, self.critic_loss = prepare(self._actor_loss), prepare(self._critic_loss)
        self.temperature_loss = self._temperature_loss
        self._sampled = HostCall(self._sampled_action, self.actor, device, capture)
        self._mean = HostCall(self._mean_action, self.actor, device, capture)
        # On the CPU whatever the device, so that a checkpoint moves between devices and both draw the same noise.
        self._explore = torch_generator(seed, "explore")
        self._noise = torch_generator(seed, "update")

    # Acting

    def observe(self, obs: np.ndarray) -> None:
        self.normalizer.update(torch.as_tensor(obs, dtype=torch.float32, device=self.device))

    def act(self, obs: np.ndarray, env_step: int) -> np.ndarray:
        noise = torch.randn((len(obs), self.action_dim), generator=self._explore)
        return self._sampled(np.asarray(obs, np.float32), noise)

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        return self._mean(np.asarray(obs, np.float32))

    def _sampled_action(self, obs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(obs)
        return torch.tanh(mean + log_std.exp() * noise)

    def _mean_action(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.actor(obs)[0])

    # Learning

    def update(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        noise = self.draw(len(batch.reward)) if noise is None else noise
        actor_noise, critic_noise = noise.to(self.device)
        with frozen(self.critic):
            actor_loss, entropy = self.actor_loss(batch, actor_noise)
        _descend(self.actor_optimizer, actor_loss)

        alpha_loss, _ = self.temperature_loss(entropy.detach())
        _descend(self.alpha_optimizer, alpha_loss)

        critic_loss, q_mean = self.critic_loss(batch, critic_noise)
        _descend(self.critic_optimizer, critic_loss)

        with torch.no_grad():
            pairs = list(zip(self.target_critic.parameters(), self.critic.parameters(), strict=True))
            torch._foreach_lerp_([t for t, _ in pairs], [p for _, p in pairs], self.config.target_tau)
        self.update_step += 1
        return {
            "actor_loss": actor_loss.detach(),
            "critic_loss": critic_loss.detach(),
            "ent_coef_loss": alpha_loss.detach(),
            "ent_coef": self.temperature().detach(),
            "entropy": entropy.detach(),
            "q_mean": q_mean.detach(),
        }

    def draw(self, batch_size: int) -> Tensor:
        """Standard normal noise ``(2, B, A)`` for the actor's loss and the critics', on the CPU."""
        shape = (batch_size, self.action_dim)
        return torch.stack([torch.randn(shape, generator=self._noise) for _ in range(2)])

    def target_copies(self, count: int) -> tuple[int, ...]:
        """None: the target follows softly at every update."""
        return ()

    def _actor_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        action, log_prob = losses.tanh_gaussian_sample(*self.actor(batch.obs), noise)
        q = self.critic(batch.obs, action)
        loss = losses.sac_actor_loss(q, log_prob, self.temperature().detach())
        return loss + self.regularizers["actor"](self.actor), -log_prob.mean()

    def _temperature_loss(self, entropy: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = self.temperature.log_alpha
        return losses.temperature_loss(log_alpha, entropy, self.target_entropy), log_alpha.exp()

    def _critic_loss(self, batch: Batch, noise: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            next_action, next_log_prob = losses.tanh_gaussian_sample(*self.actor(batch.next_obs), noise)
            next_q = self.target_critic(batch.next_obs, next_action)
            td_target = losses.sac_td_target(
                batch.reward, batch.discount, next_q, next_log_prob, self.temperature()
            )
        q = self.critic(batch.obs, batch.action)
        return losses.sac_critic_loss(q, td_target) + self.regularizers["critic"](self.critic), q.mean()

    # Resets, metrics, checkpoints

    def networks(self) -> dict[str, NetworkSlot]:
        def probe(loss, batch: Batch) -> Tensor:
            return loss(batch, probe_noise(batch.action.shape, self.device))[0]

        return {
            "actor": NetworkSlot(
                module=self.actor,
                optimizer=self.actor_optimizer,
                build=partial(self._fresh, "actor"),
                initial=partial(self._initial, "actor"),
                forward=lambda batch: self.actor(batch.obs)[0],
                loss=partial(probe, self._actor_loss),
                heads=("mean", "log_std"),
                preserve=("normalizer",),
            ),
            "critic": NetworkSlot(
                module=self.critic,
                optimizer=self.critic_optimizer,
                build=partial(self._fresh, "critic"),
                initial=partial(self._initial, "critic"),
                forward=lambda batch: self.critic(batch.obs, batch.action),
                forward_next=self._forward_next,
                loss=partial(probe, self._critic_loss),
                target=self.target_critic,
                heads=("value",),
                preserve=("normalizer",),
                ensemble_size=self.config.num_critics,
            ),
        }

    def _forward_next(self, batch: Batch) -> Tensor:
        noise = probe_noise(batch.action.shape, self.device)
        action, _ = losses.tanh_gaussian_sample(*self.actor(batch.next_obs), noise)
        return self.critic(batch.next_obs, action)

    def _fresh(self, name: str, generator: torch.Generator) -> nn.Module:
        return build_seeded(self._builders[name], generator).to(self.device)

    def _initial(self, name: str) -> nn.Module:
        # The critic must not start from the actor's draws, so each network advances the stream by its position.
        generator = torch_generator(self._seed, "init")
        for earlier in self._builders:
            if earlier == name:
                break
            torch.randint(2**62, (), generator=generator)
        return self._fresh(name, generator)

    @torch.no_grad()
    def reset_temperature(self) -> None:
        """Return the temperature to its initial value, with a fresh optimizer state."""
        self.temperature.log_alpha.fill_(math.log(self.config.init_temperature))
        for value in self.alpha_optimizer.state[self.temperature.log_alpha].values():
            value.zero_()

    def reset_normalizer(self) -> None:
        """Return the observation statistics to those of a new agent."""
        self.normalizer.reset()

    def state_dict(self) -> dict[str, Any]:
        modules = {name: getattr(self, name).state_dict() for name in ("actor", "critic", "target_critic")}
        optimizers = {name: getattr(self, name).state_dict() for name in self.optimizers}
        return {
            **modules,
            **optimizers,
            "log_alpha": self.temperature.log_alpha.detach().clone(),
            "update_step": self.update_step,
            "explore": self._explore.get_state(),
            "noise": self._noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, slot in self.networks().items():
            restore_structure(slot, state[name])
        for name in ("actor", "critic", "target_critic"):
            getattr(self, name).load_state_dict(state[name])
        for name in self.optimizers:
            load_optimizer(getattr(self, name), state[name])
        with torch.no_grad():
            self.temperature.log_alpha.copy_(state["log_alpha"])
        self.update_step = int(state["update_step"])
        self._explore.set_state(state["explore"].cpu())
        self._noise.set_state(state["noise"].cpu())


class Temperature(nn.Module):
    """SAC's entropy coefficient ``alpha``, learned as its logarithm."""

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(math.log(initial)))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step on the optimizer's own parameters; ``inputs`` keeps autograd from computing any other gradient."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=[p for group in optimizer.param_groups for p in group["params"]])
    optimizer.step()
