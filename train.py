"""Train an agent whose networks are reset on a schedule.

python train.py --algo sac --env h1-walk --reset fire --preset quick
python train.py --help
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from typing import TYPE_CHECKING

if __name__ == "__main__":  # Ctrl-C while modules are imported; training has a handler of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)

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
    from envs import import_module_of
    from training.failures import device_failure, one_line
    from training.folder import run_configs, run_folders
    from training.loop import train_together
    from training.summary import python_command
    from training.trainer import TrainingDiverged

    where = ""
    try:
        # Typed by the user, not named by a file of perhaps someone else.
        if flags.origins["env.id"] == "--env":
            import_module_of(variants[0].env.id)
        configs = run_configs(variants)
        folders = run_folders(configs, flags.run_dir)
        where = ", ".join(map(str, folders))
        trainers = train_together(configs, folders)
        conclusions = [_conclusion(trainer, argv) for trainer in trainers if trainer.finished]
    except TrainingDiverged as error:
        print(f"error: training diverged: {error}; {where} keeps its last checkpoint", file=sys.stderr)
        return 1
    except Exception as error:
        if (line := device_failure(error)) is not None:
            kept = (
                f"; {where} keeps its last checkpoint, from which the same command goes on" if where else ""
            )
            print(f"error: {line}{kept}", file=sys.stderr)
            return 1
        if (line := one_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    if not all(trainer.finished for trainer in trainers):
        step = trainers[0].saved_at
        if step is None:
            print("stopped before the first step, nothing is saved; the same command starts anew:")
        else:
            print(f"stopped and saved at env step {step:,}; the same command resumes:")
        print(f"  {python_command()} train.py {shlex.join(argv)}")
        return 130
    for trainer, words in zip(trainers, conclusions, strict=True):
        _draw(trainer)
        print(words)
    return 0


def _conclusion(trainer: Trainer, argv: list[str]) -> str:
    """Return what came out of a finished run."""
    from envs import human_score, random_score, success_score
    from training.summary import closing_words

    env_id = trainer.config.env.task_id(trainer.config.env.change.task_trained(trainer.clock.env_step))
    return closing_words(trainer, argv, random_score(env_id), success_score(env_id), human_score(env_id))


def _draw(trainer: Trainer) -> None:
    """Draw the learning curve; a finished run is finished without it."""
    from envs import success_score
    from training import plots
    from training.summary import random_mean

    config, run_dir = trainer.config, trainer.run_dir
    title = f"{config.algo} on {config.env.id}, reset: {config.reset.name}, seed {config.seed}"
    try:
        plots.plot_learning_curve(run_dir, title, random_mean(run_dir), success_score(config.env.id))
    except Exception as error:
        print(
            f"warning: {run_dir} has no learning_curve.png: {' '.join(str(error).split())}", file=sys.stderr
        )


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output is gone; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)
