"""HumanoidBench's tasks for the Unitree H1 without hands, in plain MuJoCo; importing registers ``h1-<task>-v0``.

Registering does not import MuJoCo: with other environments it is not needed, and it fails where MUJOCO_GL names a
library that is missing.
"""

from __future__ import annotations

import gymnasium as gym

# Of every task in ``tasks.TASKS``: the time limit, frames.
MAX_EPISODE_STEPS = dict.fromkeys(
    (
        *("stand", "walk", "run", "hurdle", "crawl", "maze", "pole"),
        *("sit_simple", "sit_hard", "balance_simple", "balance_hard", "stair", "slide", "reach"),
        *("push", "package", "door", "highbar_simple", "truck", "basketball"),
    ),
    1000,
) | {"push": 500, "basketball": 500}

for _task, _limit in MAX_EPISODE_STEPS.items():
    gym.register(
        id=f"h1-{_task}-v0",
        entry_point="envs.humanoid.env:HumanoidEnv",
        vector_entry_point="envs.humanoid.vector:HumanoidVectorEnv",
        max_episode_steps=_limit,
        kwargs={"task": _task},
    )
