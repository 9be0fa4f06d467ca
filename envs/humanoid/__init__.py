"""HumanoidBench's tasks for the Unitree H1 without hands, in plain MuJoCo; importing registers ``h1-<task>-v0``."""

from __future__ import annotations

import gymnasium as gym

from envs.humanoid.tasks import TASKS

for _task in TASKS.values():
    gym.register(
        id=f"h1-{_task.name}-v0",
        entry_point="envs.humanoid.env:HumanoidEnv",
        vector_entry_point="envs.humanoid.vector:HumanoidVectorEnv",
        max_episode_steps=_task.max_episode_steps,
        kwargs={"task": _task.name},
    )
