"""All native tasks by name."""

from __future__ import annotations

from envs.humanoid.balancing import BalanceHard, BalanceSimple
from envs.humanoid.basketball import Basketball
from envs.humanoid.climbing import Slide, Stair
from envs.humanoid.hanging import HighBarSimple
from envs.humanoid.locomotion import Run, Stand, Walk
from envs.humanoid.manipulation import Door, Package, Push
from envs.humanoid.obstacles import Crawl, Hurdle, Maze, Pole
from envs.humanoid.reaching import Reach
from envs.humanoid.sitting import SitHard, SitSimple
from envs.humanoid.task import Task
from envs.humanoid.truck import Truck

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        *(Stand, Walk, Run),
        *(Hurdle, Crawl, Maze, Pole),
        *(SitSimple, SitHard, BalanceSimple, BalanceHard),
        *(Stair, Slide, Reach),
        *(Push, Package, Door, HighBarSimple, Truck, Basketball),
    )
}
