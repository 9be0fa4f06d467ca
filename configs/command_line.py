"""The command line of ``train.py``: argparse over the options, with the defaults of the files that it names.

A flag is the YAML path with dots: ``--agent.critic-width 256``.
"""

from __future__ import annotations

import argparse
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import ConfigError
from configs.schema import AGENT_CONFIGS
from configs.values import KIND_NAMES, Option, Value

# Flags that name a block of values: the option each one sets, and its default.
SELECTORS = {
    "algo": ("algo", "sac"),
    "env": ("env.id", "h1-walk"),
    "reset": ("reset.name", "fire"),
    "preset": ("preset", "paper"),
}
# Options that have no flag of their own.
UNFLAGGED = {*(path for path, _ in SELECTORS.values()), "reset.strategy"}


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Python 3.11's own pattern takes -1e-1 for a flag.
        self._negative_number_matcher = re.compile(r"-\.?\d[\d_]*\.?\d*([eE][-+]?\d+)?$")

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


def parse_names(argv: Sequence[str]) -> tuple[dict[str, str], list[Path]]:
    """Return the names given by ``SELECTORS``' flags, by flag, and the files of ``--config``."""
    parsed, _ = _selector_parser(add_help=False).parse_known_args([_dashed(word) for word in argv])
    given = {flag: getattr(parsed, flag) for flag in SELECTORS}
    return {flag: name for flag, name in given.items() if name is not None}, list(map(Path, parsed.config))


def parse_options(
    argv: Sequence[str], options: Mapping[str, Option], merged: Mapping[str, Value]
) -> tuple[dict[str, Any], argparse.Namespace]:
    """Return the options given as flags, unchecked, by path, and all flags; ``merged`` has the defaults for the help.

    Raises:
        ConfigError: an unknown flag, or one without its value.
        SystemExit: ``--help`` was asked for and printed.
    """
    parser = _full_parser(options, merged)
    parsed, unknown = parser.parse_known_args([_dashed(word) for word in argv])
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0], flags, n=1, cutoff=0.5)
        raise ConfigError(
            f"unknown argument {unknown[0]!r}; " + (f"did you mean {near[0]}?" if near else "see --help")
        )
    given = {path: value for path, value in vars(parsed).items() if path in options and value is not None}
    return given, parsed


def flag_of(path: str) -> str:
    """Return the flag that sets the option ``path``."""
    return "--" + path.replace("_", "-")


def _dashed(word: str) -> str:
    """Write a flag with dashes, so that ``--total_steps`` works too."""
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value if word.startswith("--") else word


def _selector_parser(add_help: bool, **kwargs: Any) -> _Parser:
    parser = _Parser(
        prog="python train.py",
        add_help=add_help,
        allow_abbrev=False,
        usage="%(prog)s [--algo NAME] [--env ID] [--reset NAME] [--preset NAME] [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **kwargs,
    )
    parser.add_argument("--algo", metavar="NAME", help=f"agent: {', '.join(AGENT_CONFIGS)} (default: sac)")
    parser.add_argument(
        "--env",
        metavar="ID",
        help="h1-walk, a game such as Asterix, any Gymnasium id, such as Pendulum-v1 (default: h1-walk)",
    )
    parser.add_argument(
        "--reset",
        metavar="NAME",
        help="a file in configs/reset/, see docs/resets.md, with options behind a colon if need be: "
        "fire:scale=unit,strength=0.5 (default: fire)",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="paper: the published protocol; quick: minutes on 2 CPU cores; laptop: sac on an H1 task, hours on one "
        "core (default: paper)",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="YAML files merged after the named ones, left to right",
    )
    parser.add_argument(
        "--resets",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="several strategies instead of --reset, trained as one batched program like --num-agents; with "
        "--branch-from they share one beginning",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="run folder (default: runs/<algo>-<env>-<reset>-<preset>-seed<seed>); with several runs a folder in "
        "which theirs lie, or one with {seed} or {reset} in its name for each seed or reset",
    )
    parser.add_argument(
        "--show-config",
        action="store_true",
        help="print every option, and the file or flag that set it, as YAML for --config; train nothing",
    )
    return parser


def _full_parser(options: Mapping[str, Option], merged: Mapping[str, Value]) -> _Parser:
    names = ", ".join(f"{flag} {merged[path]}" for flag, (path, _) in SELECTORS.items())
    parser = _selector_parser(
        add_help=True,
        description="Train an agent, reset its networks on a schedule, watch its plasticity.\n\n"
        "  python train.py --algo sac --env h1-walk --reset fire --preset quick\n"
        "  python train.py --algo dqn --env CartPole-v1 --reset shrink_perturb --reset.every 10000\n\n"
        "The same command resumes an interrupted run.",
        epilog=f"Defaults shown are those of: {names}. Precedence: files of algo, env, reset, preset; --config; flags.",
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for path, option in options.items():
        if path in UNFLAGGED:
            continue
        section = path.partition(".")[0] if "." in path else "run"
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        unit = f" [{option.unit}]" if option.unit else ""
        text = f"{option.help}{unit} (default: {_shown(merged[path])})"
        kind = KIND_NAMES[option.kind].upper() + ("_OR_NULL" if option.nullable else "")
        arity: dict[str, Any] = {}
        if option.is_list:
            arity = {"nargs": "*"}
        elif option.kind is bool:
            arity = {"nargs": "?", "const": "true"}
        groups[section].add_argument(
            flag_of(path),
            dest=path,
            metavar="{" + ",".join(map(str, option.choices)) + "}" if option.choices else kind,
            help=text.replace("%", "%%"),
            **arity,
        )
    return parser


def _shown(value: Value) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "null" if value is None else str(value)
