"""The command line of the studies: shared flags, questions, errors in one line. Imports no PyTorch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from common.threads import let_idle_threads_sleep
from configs.errors import ConfigError

# Sets of arms, each for one question, that make sense on any network; a study adds its own.
SHARED_QUESTIONS = {
    "ewc": ("none", "none:ewc=100", "fire_paper", "fire_paper:ewc=100"),
    "optimizer": (
        "none",
        "optimizer_only",
        "fire_paper:optimizer=keep",
        "fire_paper:optimizer=zero",
        "full:optimizer=keep",
        "full",
    ),
    "steps": (
        "none",
        "fire_paper",
        "fire_paper:method=newton_schulz,num_iters=5",
        "fire_paper:method=newton_schulz,num_iters=10",
        "fire_paper:method=newton_schulz,num_iters=20",
    ),
    "scale": (
        "none",
        "fire_paper",
        "fire_paper:scale=unit",
        "fire_paper:scale=mean_singular_value",
        "fire_paper:scale=preserve_norm",
        "fire_paper:scale=fresh_norm",
    ),
    "strength": (
        "none",
        "fire_paper:strength=0.25",
        "fire_paper:strength=0.5",
        "fire_paper:strength=0.75",
        "fire_paper",
    ),
}


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def positive(text: str) -> int:
    """An int of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def positive_float(text: str) -> float:
    """A float above 0."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return number


def share(text: str) -> float:
    """A float in [0, 1]."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], got {text}")
    return number


positive.__name__, positive_float.__name__, share.__name__ = "int", "number", "number"  # argparse's messages


def add_shared_flags(
    parser: argparse.ArgumentParser,
    *,
    arms: Sequence[str],
    questions: Mapping[str, Sequence[str]],
    output: str,
) -> None:
    """Add the flags of every study."""
    group = parser.add_argument_group("methods and runs")
    group.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help="methods: names of configs/reset/, with options if need be (fire_paper:method=newton_schulz,num_iters=5; "
        f"several values joined by +); differences are to the first (default: {' '.join(arms)})",
    )
    group.add_argument(
        "--question", choices=list(questions), help="a set of arms for one question, instead of --arms"
    )
    group.add_argument("--seeds", type=positive, default=3, help="seeds 0, 1, ... (default: %(default)s)")
    group.add_argument(
        "--output",
        type=Path,
        default=Path(output),
        metavar="DIR",
        help="results and states (default: %(default)s)",
    )
    group.add_argument(
        "--optimizer",
        choices=("fresh", "kept"),
        default="fresh",
        help="at a border between chunks: a new optimizer for every arm, as published, or whatever the arm's reset "
        "says (default: %(default)s)",
    )
    group.add_argument(
        "--evaluations", type=positive, default=10, help="evaluations in each chunk (default: %(default)s)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)"
    )
    machine.add_argument("--threads", type=positive, help="CPU threads (default: PyTorch's)")
    machine.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="of the updates; resets and metrics are float32 (default: %(default)s)",
    )
    machine.add_argument("--compile", action="store_true", help="torch.compile the updates; pays on a GPU")


def chosen_arms(
    args: argparse.Namespace, default: Sequence[str], questions: Mapping[str, Sequence[str]]
) -> list[str]:
    """The arms that the flags ask for.

    Raises:
        ConfigError: ``--arms`` and ``--question`` together, an arm twice.
    """
    if args.arms and args.question:
        raise ConfigError("--arms and --question exclude each other")
    if args.question == "optimizer":
        args.optimizer = "kept"  # else there is nothing to compare
    specs = list(args.arms or questions.get(args.question, default))
    for spec in specs:
        if specs.count(spec) > 1:
            raise ConfigError(f"--arms: {spec} stands there twice")
    return specs


def main(
    parse: Callable[[Sequence[str]], Any],
    run: Callable[[Any], str],
    argv: Sequence[str],
    stopped: str = "stopped; the same command goes on from the last finished chunk",
) -> int:
    """Parse, run, print the table; errors that a user can cause are one line, as is ``stopped`` after Ctrl-C.

    Returns the exit code.
    """
    let_idle_threads_sleep()
    try:
        args = parse(argv)
        print(run(args), end="")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'system'}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    print(f"results in {args.output}")
    return 0
