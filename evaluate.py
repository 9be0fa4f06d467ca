"""Play greedy episodes: the function train.py calls, and a command over a finished or running run.

python evaluate.py runs/sac-h1-walk-fire-quick-seed0 --episodes 20 --video
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.stats import bootstrap_interval, standard_error
from common.table import format_table
from common.threads import let_idle_threads_sleep
from common.video import VIDEO_SUFFIXES, VideoError, VideoWriter
from configs.loader import ConfigError, read_config

# What the command alone needs is imported in its functions: --help must not wait for PyTorch and the environments.
if TYPE_CHECKING:
    from envs.vec import Episode, VecEnv

# Word of numpy.random.SeedSequence's spawn_key beside VecEnv's own two streams.
EXPLORATION_STREAM = 2


class Frames(Protocol):
    """Anything that takes pictures ``(H, W, 3)`` uint8: a list, or a video."""

    def append(self, picture: np.ndarray) -> None: ...


class Policy(Protocol):
    """Anything that maps observations ``(N, ...)`` to actions."""

    def act_greedy(self, obs: np.ndarray) -> np.ndarray: ...


class RandomPolicy:
    """Uniform actions from the environment's own generator."""

    def __init__(self, env: VecEnv) -> None:
        self._env = env

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        return self._env.random_action()


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (env steps) of episodes."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))

    @property
    def stderr(self) -> float:
        """Standard error of the mean; NaN for a single episode."""
        return standard_error(self.returns)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean."""
        return bootstrap_interval(self.returns)

    def success_rate(self, bar: float) -> float:
        """Share of episodes whose return reaches ``bar``."""
        return float(np.mean(np.asarray(self.returns) >= bar))


def evaluate(
    policy: Policy,
    env: VecEnv,
    episodes: int | None,
    seed: int,
    frames: Frames | None = None,
    *,
    steps: int = 0,
    unfinished: str = "drop",
    epsilon: float = 0.0,
) -> Evaluation:
    """Play ``episodes`` complete episodes, or for ``steps``, or whichever is shorter.

    Every environment plays a share fixed in advance: counting whichever episodes end first would favour short ones. An
    evaluation by steps does favour them, as published ones do, since it drops what it cuts off.

    Args:
        policy: acts greedily.
        env: used by nothing else; it is reset here.
        episodes: at least 1; None: as many as ``steps`` hold.
        seed: of the environments; the same seed gives the same episodes.
        frames: pictures of environment 0 during its first episode are appended, if given.
        steps: env steps to play, summed over environments and rounded up to whole steps of all; 0: no limit.
        unfinished: whether episodes that ``steps`` cut off are left out (``drop``, unless none has ended) or counted
            with their return so far (``count``).
        epsilon: share of actions drawn uniformly, each environment for itself.

    Raises:
        ValueError: neither ``episodes`` nor ``steps``.
    """
    if episodes is None and not steps:
        raise ValueError("evaluate: give a number of episodes, of steps, or both")
    quota = np.full(env.num_envs, np.iinfo(np.int64).max)
    if episodes is not None:
        quota[:] = episodes // env.num_envs
        quota[: episodes % env.num_envs] += 1
    played = np.zeros_like(quota)
    finished: list[Episode] = []
    chance = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(EXPLORATION_STREAM,)))
    steps_left = -(-steps // env.num_envs)
    obs = env.reset(seed)
    while (played < quota).any() and not (steps and steps_left <= 0):
        if frames is not None and played[0] == 0:
            frames.append(env.render())
        actions = policy.act_greedy(obs)
        if epsilon:
            actions = np.where(chance.random(env.num_envs) < epsilon, env.random_action().T, actions.T).T
        step = env.step(actions)
        obs = step.obs
        for episode in step.episodes:
            if played[episode.env_index] < quota[episode.env_index]:
                finished.append(episode)
            played[episode.env_index] += 1
        steps_left -= 1
    if unfinished == "count" or not finished:
        finished += [
            game for game in env.running_episodes() if played[game.env_index] < quota[game.env_index]
        ]
    # In the order of environments, so that results do not depend on which of them finished first.
    finished.sort(key=lambda episode: episode.env_index)
    return Evaluation(tuple(e.episodic_return for e in finished), tuple(e.length for e in finished))


def main(argv: list[str] | None = None) -> int:
    """Evaluate a run from the command line; returns the exit code."""
    let_idle_threads_sleep()
    parser = argparse.ArgumentParser(prog="python evaluate.py", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder written by train.py")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play (default: 20)")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "latest"),
        default="best",
        help="best evaluation, or newest (default: best)",
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the evaluation environments (default: 1)"
    )
    parser.add_argument(
        "--epsilon", type=float, help="share of actions drawn uniformly (default: the run's eval.epsilon)"
    )
    parser.add_argument(
        "--video",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="write an episode as MP4 or GIF (default: RUN/video.mp4)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args(argv)

    from common.checkpoint import CheckpointError
    from envs import EnvError

    try:
        return _run(args)
    except (ConfigError, EnvError, CheckpointError, VideoError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    import torch

    from agents import make_agent
    from common import checkpoint
    from common.seeding import stream_seed
    from envs import make_evaluation_env

    if args.episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, got {args.episodes}")
    if args.epsilon is not None and not 0 <= args.epsilon <= 1:
        raise ConfigError(f"--epsilon must be in [0, 1], got {args.epsilon}")
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: no folder {args.json.parent}")
    if args.video is not None and args.video.name and args.video.suffix not in VIDEO_SUFFIXES:
        raise VideoError(f"--video {args.video}: must end in {' or '.join(VIDEO_SUFFIXES)}")
    if not (args.run / "config.yaml").exists():
        raise ConfigError(f"{args.run} is no run folder: it has no config.yaml")
    config = read_config(args.run / "config.yaml")
    # Options of updates alone, which the CPU may not have.
    config = dataclasses.replace(config, precision="float32", compile=False)
    saved = newest_agent(args.run / "checkpoints", args.checkpoint)

    env = make_evaluation_env(config, 1, None if args.video is None else "rgb_array")
    device = torch.device("cpu")
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    state = checkpoint.load(saved, ["agent"], device)
    agent.load_state_dict(state["agent"])

    epsilon = config.eval.epsilon if args.epsilon is None else args.epsilon
    seed = stream_seed(args.seed, "eval_env")
    path = None
    if args.video is None:
        result = evaluate(agent, env, args.episodes, seed, epsilon=epsilon)
    else:
        path = args.video if args.video.name else args.run / "video.mp4"
        with VideoWriter(path, env.frames_per_second) as video:
            result = evaluate(agent, env, args.episodes, seed, video, epsilon=epsilon)
    figures = summary(result, env.env_id, state["env_step"], saved.name)
    print(format_table([[key, _shown(value)] for key, value in figures.items() if key != "returns"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    if path is not None:
        print(f"video:   {path} (return {result.returns[0]:.1f}, {video.num_frames} frames)")
    env.close()
    return 0


def newest_agent(folder: Path, kind: str) -> Path:
    """Return the checkpoint folder of the ``best`` evaluation or the ``latest`` step; best falls back to latest.

    Raises:
        CheckpointError: the run has saved nothing yet.
    """
    from common import checkpoint

    found = checkpoint.find(folder, "best") if kind == "best" else []
    found = found or checkpoint.find(folder, "step")
    if not found:
        raise checkpoint.CheckpointError(f"{folder} holds no checkpoint yet")
    return found[-1]


def summary(result: Evaluation, env_id: str, env_step: int, name: str) -> dict[str, object]:
    """Return the figures of an evaluation, with the published scores where there are any."""
    from envs import human_normalized_score, human_score, random_score, success_score

    low, high = result.interval
    figures: dict[str, object] = {
        "environment": env_id,
        "checkpoint": name,
        "env_step": env_step,
        "episodes": len(result.returns),
        "mean_return": result.mean,
        "standard_error": result.stderr,
        "interval_95": [low, high],
        "mean_length": result.mean_length,
        "random_score": random_score(env_id),
        "returns": list(result.returns),
    }
    bar, human = success_score(env_id), human_score(env_id)
    if human is not None:
        figures["human_score"] = human
        figures["human_normalized_score"] = human_normalized_score(env_id, result.mean)
    else:
        figures["success_score"] = bar
    if bar is not None:
        figures["success_rate"] = result.success_rate(bar)
    return figures


def _shown(value: object) -> str:
    if value is None:
        return "not published"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list):
        return "[" + ", ".join(f"{v:.2f}" for v in value) + "]"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
