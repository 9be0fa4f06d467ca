"""All native tasks by name."""

from __future__ import annotations

from envs.humanoid.locomotion import Run, Stand, Walk
from envs.humanoid.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Stand, Walk, Run)}
