"""Play greedy episodes: the function train.py calls, and a command over a finished or running run.

python evaluate.py runs/sac-h1-walk-fire-quick-seed0 --episodes 20 --video
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from common.stats import bootstrap_interval, standard_error
from common.table import format_table
from configs.loader import ConfigError, read_config

# What the command alone needs is imported in its functions: --help must not wait for PyTorch and the environments.
if TYPE_CHECKING:
    from envs.vec import VecEnv

VIDEO_SUFFIXES = (".mp4", ".gif")


class VideoError(ValueError):
    """A video that cannot be written as asked."""


class Policy(Protocol):
    """Anything that maps observations ``(N, D)`` to actions."""

    def act_greedy(self, obs: np.ndarray) -> np.ndarray: ...


class RandomPolicy:
    """Uniform actions from the environment's own generator."""

    def __init__(self, env: VecEnv) -> None:
        self._env = env

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        return self._env.random_action()


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths (env steps) of complete episodes."""

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
    policy: Policy, env: VecEnv, episodes: int, seed: int, frames: list[np.ndarray] | None = None
) -> Evaluation:
    """Play ``episodes`` complete episodes.

    Every environment plays a share fixed in advance: counting whichever episodes end first would favour short ones.

    Args:
        policy: acts greedily.
        env: used by nothing else; it is reset here.
        episodes: at least 1.
        seed: of the environments; the same seed gives the same episodes.
        frames: pictures of environment 0 during its first episode are appended, if given.
    """
    quota = np.full(env.num_envs, episodes // env.num_envs)
    quota[: episodes % env.num_envs] += 1
    played = np.zeros_like(quota)
    finished = []
    obs = env.reset(seed)
    while (played < quota).any():
        if frames is not None and played[0] == 0:
            frames.append(env.render())
        step = env.step(policy.act_greedy(obs))
        obs = step.obs
        for episode in step.episodes:
            if played[episode.env_index] < quota[episode.env_index]:
                finished.append(episode)
            played[episode.env_index] += 1
    # In the order of environments, so that results do not depend on which of them finished first.
    finished.sort(key=lambda episode: episode.env_index)
    return Evaluation(tuple(e.episodic_return for e in finished), tuple(e.length for e in finished))


def main(argv: list[str] | None = None) -> int:
    """Evaluate a run from the command line; returns the exit code."""
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
    if args.seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {args.seed}")
    if args.json is not None and not args.json.parent.is_dir():
        raise ConfigError(f"--json {args.json}: no folder {args.json.parent}")
    if args.video is not None and args.video.name and args.video.suffix not in VIDEO_SUFFIXES:
        raise VideoError(f"--video {args.video}: must end in {' or '.join(VIDEO_SUFFIXES)}")
    if not (args.run / "config.yaml").exists():
        raise ConfigError(f"{args.run} is no run folder: it has no config.yaml")
    config = read_config(args.run / "config.yaml")
    saved = newest_agent(args.run / "checkpoints", args.checkpoint)

    env = make_evaluation_env(config, 1, None if args.video is None else "rgb_array")
    device = torch.device("cpu")
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    state = checkpoint.load(saved, ["agent"], device)
    agent.load_state_dict(state["agent"])

    frames: list[np.ndarray] | None = None if args.video is None else []
    result = evaluate(agent, env, args.episodes, stream_seed(args.seed, "eval_env"), frames)
    figures = summary(result, env.env_id, state["env_step"], saved.name)
    print(format_table([[key, _shown(value)] for key, value in figures.items() if key != "returns"]))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    if frames is not None:
        path = args.video if args.video.name else args.run / "video.mp4"
        write_video(path, frames, env.frames_per_second)
        print(f"video:   {path} (return {result.returns[0]:.1f}, {len(frames)} frames)")
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
    """Return the figures of an evaluation, with the published random and success scores where there are any."""
    from envs import random_score, success_score

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
        "success_score": success_score(env_id),
        "returns": list(result.returns),
    }
    bar = success_score(env_id)
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


def write_video(path: Path, frames: list[np.ndarray], frames_per_second: float) -> None:
    """Write RGB frames ``(H, W, 3)`` uint8 as MP4 or GIF, by the file's ending."""
    import imageio.v3 as imageio

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        # Players need even sizes, which a block of 2 guarantees; the default of 16 would rescale most pictures.
        options = {"fps": frames_per_second, "codec": "libx264", "macro_block_size": 2}
        imageio.imwrite(path, np.stack(frames), plugin="FFMPEG", **options)
    else:
        imageio.imwrite(path, np.stack(frames), duration=1000.0 / frames_per_second, loop=0)


if __name__ == "__main__":
    sys.exit(main())
