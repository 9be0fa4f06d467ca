"""Run an experiment: many runs of train.py, as one file describes them.

python sweep.py experiments/demo.yaml
python sweep.py experiments/figure_4a.yaml --dry-run
python sweep.py experiments/figure_4a.yaml --ray auto
python sweep.py experiments/figure_4a.yaml --slurm 240
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__":  # Ctrl-C while modules are imported; the queue has a handler of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from common.threads import let_idle_threads_sleep
from configs.errors import ConfigError

if TYPE_CHECKING:
    from sweeps.experiment import Experiment
    from sweeps.queue import Machines


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python sweep.py",
        description="Run the experiment that FILE describes, into runs/<its name>/. Ctrl-C saves all runs and stops; "
        "the same command goes on.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="experiment, see docs/experiments.md")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="programs at a time (default: one for each core that has memory)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="start nothing; say how many runs there are, and what memory, disk and hours they will take here",
    )
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        help="runs whose name has this in it, or matches it (*, ?), and their parents",
    )
    parser.add_argument("--retry-failed", action="store_true", help="try runs again that have failed")
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on with a file, or options in configs/, that have changed since: make what is new, continue what "
        "is longer, set aside and make anew what is otherwise",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the experiment (default: runs/<name>)"
    )
    parser.add_argument(
        "--allow-import",
        action="store_true",
        help="let environments module:Id of FILE run the code of their module",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="make the runs on a Ray cluster, see docs/cluster.md: host:port, auto, or local for one of this machine",
    )
    parser.add_argument(
        "--ray-cpus", type=int, default=1, metavar="N", help="cores of each program on Ray (default: 1)"
    )
    parser.add_argument(
        "--ray-gpus",
        type=float,
        default=0.0,
        metavar="X",
        help="graphics cards of each program on Ray, a part of one too: 0.25 (default: 0)",
    )
    parser.add_argument(
        "--slurm",
        type=int,
        metavar="MINUTES",
        help="make the runs as jobs of Slurm with that time limit, see docs/cluster.md",
    )
    parser.add_argument(
        "--slurm-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of sbatch: partition=gpu gpus_per_node=1 cpus_per_task=4; cluster=local needs no Slurm, to try it out",
    )
    args = parser.parse_args(argv)
    least_values = (
        ("--workers", args.workers, 1),
        ("--ray-cpus", args.ray_cpus, 1),
        ("--slurm", args.slurm, 1),
    )
    for flag, value, least in least_values:
        if value is not None and value < least:
            raise ConfigError(f"{flag} must be at least {least}, got {value}")
    if not (0 <= args.ray_gpus < 1 or (float(args.ray_gpus).is_integer() and args.ray_gpus > 0)):
        raise ConfigError(f"--ray-gpus must be a part of one or a whole number, got {args.ray_gpus:g}")
    if not args.ray and (args.ray_cpus != 1 or args.ray_gpus):
        raise ConfigError("--ray-cpus and --ray-gpus need --ray")
    if args.slurm_options and not args.slurm:
        raise ConfigError("--slurm-options need --slurm")
    if args.ray and args.slurm:
        raise ConfigError("--ray and --slurm exclude each other")
    if (args.ray or args.slurm) and args.dry_run:
        raise ConfigError(f"--dry-run measures this machine; leave {'--ray' if args.ray else '--slurm'} out")
    return args


@contextlib.contextmanager
def _machines(args: argparse.Namespace, experiment: Experiment, folder: Path) -> Iterator[Machines | None]:
    if args.ray:
        from sweeps.cluster import Cluster, Share

        with contextlib.closing(Cluster(args.ray, Share(args.ray_cpus, args.ray_gpus))) as cluster:
            yield cluster
    elif args.slurm:
        from sweeps.slurm import Slurm, parse_options

        options = parse_options(args.slurm_options)
        yield Slurm(args.slurm, options, folder / "logs" / "slurm", experiment.name)
    else:
        yield None


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code: 0 all is made, 1 some failed, 2 an error, 130 stopped."""
    let_idle_threads_sleep()
    try:
        args = _parse(argv)
        from sweeps.experiment import read_experiment, select

        experiment = read_experiment(args.file)
        runs = select(experiment.runs, args.only) if args.only else list(experiment.runs)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # PyTorch is imported from here on, so that --help and a misspelt key are answered at once.
    from sweeps.session import Session
    from training.failures import one_line

    try:
        folder = args.output or Path("runs") / experiment.name
        with _machines(args, experiment, folder) as machines:
            session = Session(experiment, runs, folder, args.workers, args.allow_import, machines)
            if args.dry_run:
                return session.estimate()
            return session.run(retry_failed=args.retry_failed, accept_changes=args.accept_changes)
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    try:
        exit_code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output is gone; Python would complain once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        exit_code = 1
    sys.exit(exit_code)
