"""Train an agent whose networks are reset on a schedule.

python train.py --algo sac --env h1-walk --reset fire --preset quick
python train.py --help
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from configs import loader

if TYPE_CHECKING:
    from configs.schema import Config


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    try:
        config, flags = loader.load(argv)
    except loader.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _train(config, flags.run_dir, argv)


def _train(config: Config, run_dir: str | None, argv: list[str]) -> int:
    # PyTorch and the environments are imported here, so that --help and a misspelt flag are answered at once.
    from common.checkpoint import CheckpointError
    from common.plots import plot_learning_curve
    from common.run import TrainingDiverged, UnknownMetric
    from common.summary import closing_words, python_command, random_mean
    from configs.run_dir import default_run_dir
    from envs import EnvError, human_score, random_score, success_score
    from loop import train

    folder = Path(run_dir) if run_dir else default_run_dir(config)
    try:
        run = train(config, folder)
    except (loader.ConfigError, EnvError, CheckpointError, UnknownMetric) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}; {folder} keeps its last checkpoint", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped at once; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    if run.stop_requested:
        print(f"stopped and saved at env step {run.env_step:,}; the same command resumes:")
        print(f"  {python_command()} train.py {shlex.join(argv)}")
        return 130
    random, success = random_score(config.env.id), success_score(config.env.id)
    title = f"{config.algo} on {config.env.id}, reset: {config.reset.name}, seed {config.seed}"
    plot_learning_curve(folder, title, random_mean(folder), success)
    print(closing_words(run, argv, random, success, human_score(config.env.id)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
