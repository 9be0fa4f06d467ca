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
from gymnasium import spaces
from torch import Tensor, nn

from agents import losses
from agents.base import Agent, Step
from agents.graphs import Capture
from agents.networks import MLPQNetwork, NatureQNetwork, NipsQNetwork, pixels_to_floats
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch
from common.schedules import LinearSchedule, Restarted
from configs.schema import Config, DQNConfig
from fire.network.slot import NetworkSlot

PIXEL_NETWORKS = {"nature": NatureQNetwork, "nips": NipsQNetwork}


class DQN(Agent):
    """DQN for discrete actions: an MLP on flat observations, a convolutional network on stacked frames.

    Args:
        config: hyperparameters.
        obs_shape: (D,) for float32 observations, (C, 84, 84) for uint8 frames.
        num_actions: number of discrete actions.
        learning_starts: env steps of random warm-up, after which epsilon begins to fall.
        total_steps: env steps of the run, of which epsilon falls over a fraction.
        seed: run seed; the agent draws from the streams ``init`` and ``explore``.
        device: where networks live.
        numerics: precision of the loss.
        capture: records acting as a CUDA graph; None: no graph.
    """

    modules: ClassVar = ("q", "target_q", "regularizers")
    optimizers: ClassVar = {"optimizer": "q"}
    policy: ClassVar = "q"

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
        self.gamma = config.gamma
        self.num_actions = num_actions
        self._is_pixels = len(obs_shape) == 3
        build: Callable[[], nn.Module]
        if self._is_pixels:
            self.obs_dtype = np.uint8
            build = partial(
                PIXEL_NETWORKS[config.pixel_network], obs_shape[0], num_actions, config.layer_norm
            )
        else:
            build = partial(MLPQNetwork, obs_shape[0], num_actions, config.hidden_widths, config.layer_norm)
        super().__init__(seed, device, {"q": build}, capture)
        self.q = self._initial("q")
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.q.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self._epsilon: LinearSchedule | Restarted = LinearSchedule(
            config.epsilon_start,
            config.epsilon_end,
            learning_starts,
            round(config.epsilon_fraction * total_steps),
        )
        self.regularizers = self._make_regularizers(config.l2_init, config.parseval)
        self.loss = numerics.prepare(self._loss, device)

    @classmethod
    def sizes(
        cls, config: Config, obs_space: spaces.Box, action_space: Any, max_steps: int | None
    ) -> tuple[tuple[int, ...], int, int, int]:
        return obs_space.shape, int(action_space.n), config.replay.learning_starts, config.total_steps

    # Acting

    def epsilon(self, env_step: int) -> float:
        return self._epsilon(env_step)

    def restart_exploration(self, period: int, duration: int) -> bool:
        assert isinstance(self._epsilon, LinearSchedule), "restarted already"
        again = LinearSchedule(self._epsilon.start, self._epsilon.end, 0, duration)
        self._epsilon = Restarted(self._epsilon, again, period)
        return True

    def draw_exploration(self, count: int, env_step: int) -> tuple[Tensor, Tensor]:
        """Which environments explore, each by a draw of its own, and their random actions."""
        generator = self.generators["explore"]
        explores = torch.rand(count, generator=generator) < self._epsilon(env_step)
        return explores, torch.randint(self.num_actions, (count,), generator=generator)

    def explore(self, obs: Tensor, *drawn: Tensor) -> Tensor:
        """Epsilon-greedy actions."""
        explores, random = drawn
        return torch.where(explores, random, self.exploit(obs))

    def exploit(self, obs: Tensor) -> Tensor:
        return self.q(obs).argmax(-1)

    # Learning

    def update(self, step: Step, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        loss, q_mean = step("optimizer", self.loss, batch)
        if self.update_pattern(1):
            step.hard_update("target_q", "q")
        return {"loss": loss, "q_mean": q_mean}

    def update_pattern(self, count: int) -> tuple[int, ...]:
        """The updates among the next ``count`` that end with a copy into the target network (0: the next)."""
        return self._every(self.config.target_update_period, count)

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss and mean Q-value."""
        q = self.q(batch.obs)
        with torch.no_grad():
            next_obs = pixels_to_floats(batch.next_obs) if self._is_pixels else batch.next_obs
            next_target = self.target_q(next_obs)
            next_select = self.q(next_obs) if self.config.double_q else next_target
            td_target = losses.dqn_td_target(batch.reward, batch.discount, next_target, next_select)
        loss = losses.dqn_loss(q, batch.action, td_target, self.config.loss)
        if self.regularizers:
            loss = self._regularized("q", loss)
        return loss, q.mean()

    # Resets and metrics

    def networks(self) -> dict[str, NetworkSlot]:
        return {
            "q": self._slot(
                "q",
                forward=lambda batch: self.q(batch.obs),
                forward_next=lambda batch: self.q(batch.next_obs),
                policy=lambda batch: self.exploit(batch.obs),
                predicts_values=True,
                loss=lambda batch: self._loss(batch)[0],
                injected=("head",) if self._is_pixels else (),
            )
        }
