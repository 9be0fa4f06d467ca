"""Agents: learners that know networks and batches, but no environment or logger."""

from agents.base import Agent
from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.make import AGENTS, make_agent, make_replay, pick_device
from agents.replay import Batch, FlatReplay, Replay, RunReplay
from agents.sac import SAC
from agents.td3 import TD3
from agents.xqc import XQC

__all__ = [
    "AGENTS",
    "DQN",
    "SAC",
    "TD3",
    "XQC",
    "Agent",
    "Batch",
    "FlatReplay",
    "FrameReplay",
    "Replay",
    "RunReplay",
    "make_agent",
    "make_replay",
    "pick_device",
]
