"""The table of algorithms, and how a configuration becomes an agent and its replay."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium import spaces

from agents.base import Agent
from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.graphs import pick_capture
from agents.numerics import Numerics, set_products
from agents.replay import FlatReplay, Replay
from agents.sac import SAC
from agents.td3 import TD3
from agents.xqc import XQC
from common.memory import available_memory
from configs.errors import ConfigError
from configs.schema import Config, DQNConfig, SACConfig, TD3Config, XQCConfig

LARGE_BUFFER = 10**9  # bytes from which a replay buffer's size is announced
CUDA_RESERVE = 2 << 30  # bytes that networks, graphs and the libraries' workspaces may take on a GPU


class Algorithm(NamedTuple):
    """What there is to know of an algorithm from outside; ``configs.schema.AGENT_CONFIGS`` has the same options."""

    agent: type[Agent]
    options: type  # dataclass of ``config.agent``
    actions: type[spaces.Space]
    frames: bool  # whether observations may be stacked frames instead of flat


AGENTS = {
    "sac": Algorithm(SAC, SACConfig, spaces.Box, frames=False),
    "dqn": Algorithm(DQN, DQNConfig, spaces.Discrete, frames=True),
    "td3": Algorithm(TD3, TD3Config, spaces.Box, frames=False),
    "xqc": Algorithm(XQC, XQCConfig, spaces.Box, frames=False),
}


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
    row = AGENTS[config.algo]
    if not isinstance(action_space, row.actions):
        others = [name for name, other in AGENTS.items() if isinstance(action_space, other.actions)]
        raise ConfigError(
            f"--algo {config.algo} needs {row.actions.__name__} actions, but {config.env.id} has {action_space}; "
            f"use --algo {' or '.join(others)}"
        )
    if len(observation_space.shape) != 1 and not row.frames:
        shape = observation_space.shape
        raise ConfigError(f"--algo {config.algo} needs flat observations, but {config.env.id} has {shape}")
    if config.compile and config.num_agents > 1:
        raise ConfigError(
            f"--compile true: losses of {config.num_agents} agents in one program are not compiled; leave it at false"
        )
    Numerics(config.precision, config.compile).check(device)
    parts = (observation_space, action_space, max_episode_steps, device, pick_capture(config, device))
    agent = row.agent.from_config(config, *parts)
    change = config.env.change
    restarts = change.period and change.exploration == "restart"
    if restarts and not agent.restart_exploration(change.period, change.exploration_steps):
        raise ConfigError(
            f"env.change.exploration restart: {config.algo} has no schedule of exploration; valid: keep"
        )
    unknown = sorted(set(config.reset.networks) - set(agent.networks()))
    if unknown:
        valid = ", ".join(agent.networks())
        raise ConfigError(f"reset.networks: {config.algo} has no network {unknown[0]!r}; valid: {valid}")
    for part in ("temperature", "normalizer"):
        if getattr(config.reset, part) == "reset" and part not in agent.resettable:
            raise ConfigError(f"reset.{part} reset: {config.algo} has no {part}; valid: keep")
    return agent


def make_replay(
    config: Config,
    observation_space: spaces.Box,
    action_space: Any,
    gamma: float,
    device: torch.device,
    num_runs: int = 1,
) -> Replay:
    """Build the replay buffer of ``num_runs`` runs; a capacity beyond a run's length is not reserved.

    What a large buffer will take is printed before its memory is reserved.

    Args:
        config, observation_space, action_space, gamma, device: as for the agents; spaces of a single environment.
        num_runs: runs that ``config`` and its like, which differ in seed and reset alone, train as one program.

    Raises:
        ConfigError: ``replay_capacity`` or ``n_step`` does not fit the number of environments, or the buffer does not
            fit into the memory that is available.
    """
    num_envs, obs_shape = config.env.num_envs, observation_space.shape
    lookahead = (gamma, config.replay.n_step, device, num_runs)
    try:
        capacity = _capacity(config)
        _announce(replay_bytes(config, observation_space, action_space, num_runs), num_runs, capacity, device)
        if len(obs_shape) == 3:
            return FrameReplay(capacity, num_envs, obs_shape, int(action_space.n), *lookahead)
        discrete = isinstance(action_space, spaces.Discrete)
        return FlatReplay(capacity, num_envs, obs_shape, action_space.shape, discrete, *lookahead)
    except ValueError as error:
        raise ConfigError(f"replay: {error}") from error


def replay_bytes(config: Config, observation_space: spaces.Box, action_space: Any, num_runs: int = 1) -> int:
    """Return the bytes that the buffer of ``make_replay`` takes when it is full."""
    capacity, num_envs, obs_shape = _capacity(config), config.env.num_envs, observation_space.shape
    if len(obs_shape) == 3:
        return FrameReplay.bytes_needed(capacity, num_envs, obs_shape, int(action_space.n), num_runs)
    discrete = isinstance(action_space, spaces.Discrete)
    return FlatReplay.bytes_needed(capacity, num_envs, obs_shape, action_space.shape, discrete, num_runs)


def _capacity(config: Config) -> int:
    """Return the transitions reserved: one row more than the run fills, as total_steps need not divide by num_envs."""
    return min(config.replay.replay_capacity, config.total_steps + config.env.num_envs)


def _announce(needed: int, num_runs: int, capacity: int, device: torch.device) -> None:
    """State how many bytes a large buffer needs and raise ConfigError where that much memory is not to be had."""
    available = available_memory(device)
    if available is not None and device.type == "cuda":
        available = max(available - CUDA_RESERVE, 0)
    what = f"{num_runs} x {capacity:,} transitions" if num_runs > 1 else f"{capacity:,} transitions"
    if available is not None and needed > available:
        fits = int(capacity * available / needed)
        raise ConfigError(
            f"replay.replay_capacity: {what} need {needed / 1e9:.2f} GB on {device}, of which "
            f"{available / 1e9:.2f} GB are available; at most {fits:,} {'each ' if num_runs > 1 else ''}would fit"
        )
    if needed >= LARGE_BUFFER:
        free = "" if available is None else f"; {available / 1e9:.1f} GB are available"
        print(f"replay: {what} will take {needed / 1e9:.2f} GB on {device}{free}")


def pick_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``, of several GPUs the first that the process sees.

    From here on float32 products are IEEE ones, and convolutions repeat themselves bit for bit, as a resumed run must.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch sees no CUDA device; valid here: auto, cpu")
    set_products("ieee")
    torch.backends.cudnn.deterministic = True
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
