"""Agents: learners that know networks and batches, but no environment, buffer or logger."""

from __future__ import annotations

import torch
from gymnasium import spaces

from agents.base import Agent
from agents.dqn import DQN
from agents.replay import Batch, ReplayBuffer
from agents.sac import SAC
from configs.loader import ConfigError
from configs.schema import Config

__all__ = ["DQN", "SAC", "Agent", "Batch", "ReplayBuffer", "make_agent", "make_replay"]


def make_agent(
    config: Config,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    max_episode_steps: int | None,
    device: torch.device,
) -> Agent:
    """Build the agent of ``config`` for single-environment spaces; ``max_episode_steps`` counts transitions.

    Raises:
        ConfigError: the algorithm cannot act in this action space.
    """
    (obs_dim,) = observation_space.shape
    if config.algo == "sac":
        if not isinstance(action_space, spaces.Box):
            raise ConfigError(_mismatch(config, "continuous (Box)", action_space, "dqn"))
        return SAC(config.agent, obs_dim, action_space.shape[0], max_episode_steps, config.seed, device)
    if not isinstance(action_space, spaces.Discrete):
        raise ConfigError(_mismatch(config, "discrete", action_space, "sac"))
    learning_starts, total_steps = config.replay.learning_starts, config.total_steps
    return DQN(config.agent, obs_dim, int(action_space.n), learning_starts, total_steps, config.seed, device)


def make_replay(
    config: Config,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    gamma: float,
    device: torch.device,
) -> ReplayBuffer:
    """Build the replay buffer of ``config``; a capacity beyond the run's length is not reserved."""
    # One row more than the run fills, so that a total_steps that is no multiple of num_envs still fits.
    capacity = min(config.replay.replay_capacity, config.total_steps + config.env.num_envs)
    return ReplayBuffer(
        capacity,
        config.env.num_envs,
        observation_space.shape,
        action_space.shape,
        isinstance(action_space, spaces.Discrete),
        gamma,
        config.replay.n_step,
        device,
    )


def _mismatch(config: Config, wanted: str, space: spaces.Space, other: str) -> str:
    return f"--algo {config.algo} needs {wanted} actions, but {config.env.id} has {space}; use --algo {other}"
