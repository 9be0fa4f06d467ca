"""Play greedy episodes of a finished or running run.

python evaluate.py runs/sac-h1-walk-fire-quick-seed0 --episodes 20 --video
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # nothing here needs more of Ctrl-C than the end
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from common.files import to_json
from common.table import format_table
from common.threads import let_idle_threads_sleep
from common.video import VIDEO_SUFFIXES, VideoError, VideoWriter
from configs.errors import ConfigError
from configs.loader import read_config

# What the command alone needs is imported in its functions: --help must not wait for PyTorch and the environments.
if TYPE_CHECKING:
    from training.evaluation import Evaluation


def main(argv: list[str] | None = None) -> int:
    """Evaluate a run from the command line; returns the exit code."""
    let_idle_threads_sleep()
    parser = argparse.ArgumentParser(prog="python evaluate.py", description="Play greedy episodes of a run.")
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
    parser.add_argument(
        "--allow-import",
        action="store_true",
        help="run the code of the module that the run names in env.id (module:Id); only for runs that you trust",
    )
    args = parser.parse_args(argv)

    from training.failures import one_line

    try:
        return _run(args)
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


def _run(args: argparse.Namespace) -> int:
    import torch

    from agents import make_agent
    from common import checkpoint
    from common.seeding import stream_seed
    from envs import import_module_of, make_evaluation_env, resolve_env_id
    from training.evaluation import evaluate, load_agent

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
    video_path = None if args.video is None else args.video if args.video.name else args.run / "video.mp4"
    for path in filter(None, (args.json, video_path)):
        _require_writable(path)
    if not (args.run / "config.yaml").exists():
        raise ConfigError(f"{args.run} is no run folder: it has no config.yaml")
    config = read_config(args.run / "config.yaml")
    # Options of updates alone, which the CPU may not have.
    config = dataclasses.replace(config, precision="float32", compile=False)
    if args.allow_import:
        import_module_of(config.env.id)
    saved, state = load_agent(args.run / "checkpoints", args.checkpoint)

    env = make_evaluation_env(config, 1, None if args.video is None else "rgb_array")
    if config.env.change.period:
        env.set_task(config.env.change.task_trained(state["env_step"]))
    device = torch.device("cpu")
    agent = make_agent(config, env.observation_space, env.action_space, env.max_episode_steps, device)
    with checkpoint.fitting(saved):
        agent.load_policy(state["agent"])

    play = functools.partial(
        evaluate,
        agent,
        env,
        args.episodes,
        stream_seed(args.seed, "eval_env"),
        unfinished=config.eval.unfinished,
        epsilon=config.eval.epsilon if args.epsilon is None else args.epsilon,
        max_episode_steps=config.eval.max_episode_steps,
    )
    if video_path is None:
        result = play()
    else:
        try:
            with VideoWriter(video_path, env.frames_per_second) as video:
                result = play(frames=video)
        except OSError as error:  # the encoder's words are many lines
            raise VideoError(f"cannot write {video_path}: {str(error).strip().splitlines()[0]}") from error
    played = config.env.task_id(config.env.change.task_trained(state["env_step"]))
    figures = summary(result, resolve_env_id(played), state["env_step"], saved.name)
    print(format_table([[key, _shown(value)] for key, value in figures.items() if key != "returns"]))
    if args.json:
        args.json.write_text(to_json(figures, indent=1) + "\n")
        print(f"figures: {args.json}")
    if video_path is not None:
        print(f"video:   {video_path} (return {result.returns[0]:.1f}, {video.num_frames} frames)")
    env.close()
    return 0


def _require_writable(path: Path) -> None:
    """Raise OSError, before minutes of play, if ``path`` cannot be written; it stays as it is."""
    existed = path.exists()
    with path.open("ab"):
        pass
    if not existed:
        path.unlink()


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
        "cut_off": result.cut_off,
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
