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

__all__ = ["DQN", "SAC", "Agent", "Batch", "ReplayBuffer", "make_agent", "make_replay", "pick_device"]


def make_agent(
    config: Config,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    max_episode_steps: int | None,
    device: torch.device,
) -> Agent:
    """Build the agent of ``config`` for single-environment spaces; ``max_episode_steps`` counts transitions.

    Raises:
        ConfigError: the algorithm cannot act in this action space, or cannot honour a reset option.
    """
    (obs_dim,) = observation_space.shape
    wanted, other = (spaces.Box, "dqn") if config.algo == "sac" else (spaces.Discrete, "sac")
    if not isinstance(action_space, wanted):
        raise ConfigError(
            f"--algo {config.algo} needs {wanted.__name__} actions, but {config.env.id} has {action_space}; "
            f"use --algo {other}"
        )
    agent: Agent
    if config.algo == "sac":
        (action_dim,) = action_space.shape
        agent = SAC(config.agent, obs_dim, action_dim, max_episode_steps, config.seed, device)
    else:
        learning_starts, total_steps = config.replay.learning_starts, config.total_steps
        num_actions = int(action_space.n)
        agent = DQN(config.agent, obs_dim, num_actions, learning_starts, total_steps, config.seed, device)

    unknown = sorted(set(config.reset.networks) - set(agent.networks()))
    if unknown:
        valid = ", ".join(agent.networks())
        raise ConfigError(f"reset.networks: {config.algo} has no network {unknown[0]!r}; valid: {valid}")
    if config.reset.temperature == "reset" and not hasattr(agent, "reset_temperature"):
        raise ConfigError(f"reset.temperature reset: {config.algo} has no temperature; valid: keep")
    return agent


def make_replay(
    config: Config,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    gamma: float,
    device: torch.device,
) -> ReplayBuffer:
    """Build the replay buffer of ``config``; a capacity beyond the run's length is not reserved.

    Raises:
        ConfigError: ``replay_capacity`` or ``n_step`` does not fit the number of environments.
    """
    # One row more than the run fills, so that a total_steps that is no multiple of num_envs still fits.
    capacity = min(config.replay.replay_capacity, config.total_steps + config.env.num_envs)
    discrete = isinstance(action_space, spaces.Discrete)
    shapes = (observation_space.shape, action_space.shape)
    try:
        return ReplayBuffer(
            capacity, config.env.num_envs, *shapes, discrete, gamma, config.replay.n_step, device
        )
    except ValueError as error:
        raise ConfigError(f"replay: {error}") from error


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; valid here: auto, cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
