"""Environments: native HumanoidBench tasks, Atari games, any Gymnasium id, and the vector they are stepped in."""

import envs.humanoid  # noqa: F401  (registers the native tasks)
from envs.errors import EnvError
from envs.gymnasium_backend import make_env
from envs.ids import import_module_of, resolve_env_id
from envs.make import make_evaluation_env, make_training_env, make_vec
from envs.scores import human_normalized_score, human_score, random_score, success_score
from envs.vec import Episode, Step, VecEnv

__all__ = [
    "EnvError",
    "Episode",
    "Step",
    "VecEnv",
    "human_normalized_score",
    "human_score",
    "import_module_of",
    "make_env",
    "make_evaluation_env",
    "make_training_env",
    "make_vec",
    "random_score",
    "resolve_env_id",
    "success_score",
]
