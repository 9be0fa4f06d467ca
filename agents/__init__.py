"""Agents: learners that know networks and batches, but no environment, buffer or logger."""

from __future__ import annotations

import torch
from gymnasium import spaces

from agents.base import Agent
from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.graphs import pick_capture
from agents.numerics import Numerics, set_products
from agents.replay import Batch, Replay, ReplayBuffer
from agents.sac import SAC
from common.memory import available_memory
from configs.errors import ConfigError
from configs.schema import Config

__all__ = [
    "DQN",
    "SAC",
    "Agent",
    "Batch",
    "FrameReplay",
    "Replay",
    "ReplayBuffer",
    "make_agent",
    "make_replay",
    "pick_device",
]

LARGE_BUFFER = 10**9  # bytes from which a replay buffer's size is announced


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
    obs_shape = observation_space.shape
    wanted, other = (spaces.Box, "dqn") if config.algo == "sac" else (spaces.Discrete, "sac")
    if not isinstance(action_space, wanted):
        raise ConfigError(
            f"--algo {config.algo} needs {wanted.__name__} actions, but {config.env.id} has {action_space}; "
            f"use --algo {other}"
        )
    agent: Agent
    numerics = Numerics(config.precision, config.compile)
    if config.compile and config.num_agents > 1:
        raise ConfigError(
            f"--compile true: losses of {config.num_agents} agents in one program are not compiled; leave it at false"
        )
    numerics.check(device)
    speed = (numerics, pick_capture(config, device))
    if config.algo == "sac":
        if len(obs_shape) != 1:
            raise ConfigError(f"--algo sac needs flat observations, but {config.env.id} has {obs_shape}")
        (obs_dim,), (action_dim,) = obs_shape, action_space.shape
        agent = SAC(config.agent, obs_dim, action_dim, max_episode_steps, config.seed, device, *speed)
    else:
        learning_starts, total_steps = config.replay.learning_starts, config.total_steps
        num_actions = int(action_space.n)
        schedule = (learning_starts, total_steps)
        agent = DQN(config.agent, obs_shape, num_actions, *schedule, config.seed, device, *speed)

    unknown = sorted(set(config.reset.networks) - set(agent.networks()))
    if unknown:
        valid = ", ".join(agent.networks())
        raise ConfigError(f"reset.networks: {config.algo} has no network {unknown[0]!r}; valid: {valid}")
    for part in ("temperature", "normalizer"):
        if getattr(config.reset, part) == "reset" and not hasattr(agent, f"reset_{part}"):
            raise ConfigError(f"reset.{part} reset: {config.algo} has no {part}; valid: keep")
    return agent


def make_replay(
    config: Config,
    observation_space: spaces.Box,
    action_space: spaces.Space,
    gamma: float,
    device: torch.device,
    to_come: int = 0,
) -> Replay:
    """Build the replay buffer of ``config``; a capacity beyond the run's length is not reserved.

    What large buffers will take is printed before the memory of the first one is reserved.

    Args:
        config, observation_space, action_space, gamma, device: as for the agent; spaces of a single environment.
        to_come: further buffers of this size that the program will build, one for each other run.

    Raises:
        ConfigError: ``replay_capacity`` or ``n_step`` does not fit the number of environments, or the buffer does not
            fit into the memory that is available.
    """
    # One row more than the run fills, so that a total_steps that is no multiple of num_envs still fits.
    num_envs = config.env.num_envs
    capacity = min(config.replay.replay_capacity, config.total_steps + num_envs)
    options = {"gamma": gamma, "n_step": config.replay.n_step, "device": device}
    discrete = isinstance(action_space, spaces.Discrete)
    announce = to_come + 1 == config.num_agents
    try:
        if len(observation_space.shape) == 1:
            shapes = (observation_space.shape, action_space.shape)
            num_bytes = ReplayBuffer.bytes_needed(capacity, num_envs, *shapes, discrete)
            _reserve(num_bytes, to_come + 1, capacity, device, announce)
            return ReplayBuffer(capacity, num_envs, *shapes, discrete, **options)
        sizes = (capacity, num_envs, observation_space.shape, int(action_space.n))
        _reserve(FrameReplay.bytes_needed(*sizes), to_come + 1, capacity, device, announce)
        return FrameReplay(*sizes, **options)
    except ValueError as error:
        raise ConfigError(f"replay: {error}") from error


def _reserve(num_bytes: int, count: int, capacity: int, device: torch.device, announce: bool) -> None:
    """State what ``count`` large buffers need and raise ConfigError where that much memory is not to be had."""
    available, needed = available_memory(device), count * num_bytes
    what = f"{count} x {capacity:,} transitions" if count > 1 else f"{capacity:,} transitions"
    if available is not None and needed > available:
        fits = int(capacity * available / needed)
        raise ConfigError(
            f"replay.replay_capacity: {what} need {needed / 1e9:.2f} GB on {device}, of which "
            f"{available / 1e9:.2f} GB are available; at most {fits:,} {'each ' if count > 1 else ''}would fit"
        )
    if announce and needed >= LARGE_BUFFER:
        free = "" if available is None else f"; {available / 1e9:.1f} GB are available"
        print(f"replay: {what} will take {needed / 1e9:.2f} GB on {device}{free}")


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``; float32 products on it are IEEE ones from here on.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; valid here: auto, cpu")
    set_products("ieee")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
