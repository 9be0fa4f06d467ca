"""Train an agent whose networks are reset on a schedule.

python train.py --algo sac --env h1-walk --reset fire --preset quick
python train.py --help
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

from common.threads import let_idle_threads_sleep
from configs import loader
from configs.errors import ConfigError

if TYPE_CHECKING:
    from configs.loader import Flags
    from configs.schema import Config
    from training.trainer import Trainer


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    let_idle_threads_sleep()
    try:
        config, flags = loader.load(argv)
        loaded = [loader.load([*argv, "--reset", name]) for name in flags.resets] or [(config, flags)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.show_config:
        print("---\n".join(loader.dump(config, flags.origins) for config, flags in loaded), end="")
        return 0
    try:
        return _train([config for config, _ in loaded], flags, argv)
    except KeyboardInterrupt:
        print("stopped at once; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130


def _train(variants: list[Config], flags: Flags, argv: list[str]) -> int:
    # PyTorch and the environments are imported here, so that --help and a misspelt flag are answered at once.
    from common.checkpoint import CheckpointError
    from envs import EnvError, import_module_of
    from training.due import UnknownMetric
    from training.folder import run_configs, run_folders
    from training.loop import train_together
    from training.summary import python_command
    from training.trainer import TrainingDiverged

    where = ""
    try:
        if (
            flags.origins["env.id"] == "--env"
        ):  # typed by the user, not named by a file of perhaps someone else
            import_module_of(variants[0].env.id)
        configs = run_configs(variants)
        folders = run_folders(configs, flags.run_dir)
        where = ", ".join(map(str, folders))
        trainers = train_together(configs, folders)
    except (ConfigError, EnvError, CheckpointError, UnknownMetric) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}; {where} keeps its last checkpoint", file=sys.stderr)
        return 1
    if not all(trainer.finished for trainer in trainers):
        step = trainers[0].saved_at
        if step is None:
            print("stopped before the first step, nothing is saved; the same command starts anew:")
        else:
            print(f"stopped and saved at env step {step:,}; the same command resumes:")
        print(f"  {python_command()} train.py {shlex.join(argv)}")
        return 130
    for trainer in trainers:
        _conclude(trainer, argv)
    return 0


def _conclude(trainer: Trainer, argv: list[str]) -> None:
    """Draw the learning curve of a finished run and print what came out."""
    from envs import human_score, random_score, success_score
    from training.plots import plot_learning_curve
    from training.summary import closing_words, random_mean

    config, run_dir = trainer.config, trainer.run_dir
    random, success = random_score(config.env.id), success_score(config.env.id)
    title = f"{config.algo} on {config.env.id}, reset: {config.reset.name}, seed {config.seed}"
    plot_learning_curve(run_dir, title, random_mean(run_dir), success)
    print(closing_words(trainer, argv, random, success, human_score(config.env.id)))


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output is gone; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)
