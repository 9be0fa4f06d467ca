"""Deep Q-learning with a hard-updated target network (Mnih et al. 2015), optionally Double DQN.

Double DQN: van Hasselt et al. 2016, arXiv 1509.06461.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from agents import losses
from agents.base import load_optimizer
from agents.graphs import Capture, HostCall
from agents.networks import MLPQNetwork, NatureQNetwork, NipsQNetwork, build_seeded, pixels_to_floats
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from common.schedules import LinearSchedule
from common.seeding import torch_generator
from configs.schema import DQNConfig
from fire.network.slot import NetworkSlot
from fire.regularizers import Regularizer
from fire.resets.injection import restore_structure

PIXEL_NETWORKS = {"nature": NatureQNetwork, "nips": NipsQNetwork}


class DQN:
    """DQN for discrete actions: an MLP on flat observations, a convolutional network on stacked frames.

    Args:
        config: hyperparameters.
        obs_shape: (D,) for float32 observations, (C, 84, 84) for uint8 frames.
        num_actions: number of discrete actions.
        learning_starts: env steps of random warm-up, after which epsilon begins to fall.
        total_steps: env steps of the run, of which epsilon falls over a fraction.
        seed: run seed; the agent draws from the streams ``init`` and ``explore``.
        device: where networks and generators live.
        numerics: precision of the loss.
        capture: records acting as a CUDA graph; None: no graph.
    """

    modules: ClassVar = ("q", "target_q", "regularizer")
    optimizers: ClassVar = {"optimizer": "q"}

    def __init__(
        self,
        config: DQNConfig,
        obs_shape: tuple[int, ...],
        num_actions: int,
        learning_starts: int,
        total_steps: int,
        seed: int,
        device: torch.device,
        numerics: Numerics = FLOAT32,
        capture: Capture | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.gamma = config.gamma
        self.num_actions = num_actions
        self.update_step = 0
        self._seed = seed
        self._is_pixels = len(obs_shape) == 3
        if self._is_pixels:
            network = PIXEL_NETWORKS[config.pixel_network]
            self._build: Callable[[], nn.Module] = partial(network, obs_shape[0], num_actions)
        else:
            self._build = partial(MLPQNetwork, obs_shape[0], num_actions, config.hidden_widths)
        self.q = self._initial()
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            self.q.parameters(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.epsilon = LinearSchedule(
            config.epsilon_start,
            config.epsilon_end,
            learning_starts,
            round(config.epsilon_fraction * total_steps),
        )
        self.regularizer = Regularizer(config.l2_init, config.parseval, self.networks()["q"])
        self._best = HostCall(lambda obs: self.q(obs).argmax(1), self.q, device, capture)
        self.loss = numerics.prepare(self._loss, device)
        self._explore = torch_generator(seed, "explore")

    # Acting

    def observe(self, obs: np.ndarray) -> None:
        """DQN keeps no input statistics."""

    def act(self, obs: np.ndarray, env_step: int) -> np.ndarray:
        """Epsilon-greedy with draws of its own for every environment."""
        action = self.act_greedy(obs)
        explores = torch.rand(len(obs), generator=self._explore).numpy() < self.epsilon(env_step)
        random = torch.randint(self.num_actions, (len(obs),), generator=self._explore).numpy()
        return np.where(explores, random, action)

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        return self._best(obs)

    # Learning

    def update(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        loss, q_mean = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.update_step += 1
        if self.update_step % self.config.target_update_period == 0:
            self.networks()["q"].sync_target()
        return {"loss": loss.detach(), "q_mean": q_mean.detach()}

    def draw(self, batch_size: int) -> Tensor:
        """Nothing: the loss has no noise."""
        return torch.empty(0)

    def target_copies(self, count: int) -> tuple[int, ...]:
        """The updates among the next ``count`` that end with a hard copy into the target network (0: the next)."""
        period = self.config.target_update_period
        return tuple(i for i in range(count) if (self.update_step + i + 1) % period == 0)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        q = self.q(batch.obs)
        with torch.no_grad():
            next_obs = pixels_to_floats(batch.next_obs) if self._is_pixels else batch.next_obs
            next_target = self.target_q(next_obs)
            next_select = self.q(next_obs) if self.config.double_q else next_target
            td_target = losses.dqn_td_target(batch.reward, batch.discount, next_target, next_select)
        return losses.dqn_loss(q, batch.action, td_target) + self.regularizer(self.q), q.mean()

    # Resets, metrics, checkpoints

    def networks(self) -> dict[str, NetworkSlot]:
        return {
            "q": NetworkSlot(
                module=self.q,
                optimizer=self.optimizer,
                build=self._fresh,
                initial=self._initial,
                forward=lambda batch: self.q(batch.obs),
                forward_next=lambda batch: self.q(batch.next_obs),
                loss=lambda batch: self._loss(batch)[0],
                target=self.target_q,
                injected=("head",) if self._is_pixels else (),
            )
        }

    def _fresh(self, generator: torch.Generator) -> nn.Module:
        return build_seeded(self._build, generator).to(self.device)

    def _initial(self) -> nn.Module:
        return self._fresh(torch_generator(self._seed, "init"))

    def state_dict(self) -> dict[str, Any]:
        return {
            "q": self.q.state_dict(),
            "target_q": self.target_q.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "update_step": self.update_step,
            "explore": self._explore.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_structure(self.networks()["q"], state["q"])
        for name in ("q", "target_q"):
            getattr(self, name).load_state_dict(state[name])
        load_optimizer(self.optimizer, state["optimizer"])
        self.update_step = int(state["update_step"])
        self._explore.set_state(state["explore"].cpu())
