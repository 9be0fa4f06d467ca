"""From YAML files and flags to a checked ``Config``, and back to YAML.

Values merge left to right, later ones win: dataclass defaults, ``configs/algo/<algo>.yaml``,
``configs/env/<env>.yaml``, ``configs/reset/<reset>.yaml``, ``configs/preset/<preset>/<algo>.yaml``,
``configs/preset/<preset>/<algo>-<env>.yaml``, files given with ``--config``, flags. The two files that name an
environment are optional; one named after its family (``h1`` for ``h1-walk``, ``atari`` for ``Pong``) serves where it
has none of its own.
A flag is the YAML path with dots: ``--agent.critic-width 256``.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from common.games import find_game, game_names
from configs import schema
from configs.errors import ConfigError
from fire.options import OPTIONS
from fire.triggers import TriggerConfig

CONFIG_DIR = Path(__file__).parent
# Flags that name a block of values: the option each one sets, and its default.
SELECTORS = {
    "algo": ("algo", "sac"),
    "env": ("env.id", "h1-walk"),
    "reset": ("reset.name", "fire"),
    "preset": ("preset", "paper"),
}


class Entry(NamedTuple):
    """One option: the attribute of ``Config`` and the field it is stored in, its type, its documentation."""

    attribute: str
    field: str
    annotation: Any
    default: Any
    help: str
    unit: str
    choices: tuple[Any, ...] | None
    minimum: float | None
    maximum: float | None


def entries(algo: str, strategy: str) -> dict[str, Entry]:
    """Return every option of a run with algorithm ``algo`` and reset ``strategy`` by its dotted path."""
    blocks = [
        ("", "", schema.Config),
        ("env.", "env", schema.EnvConfig),
        ("env.atari.", "atari", schema.AtariConfig),
        ("replay.", "replay", schema.ReplayConfig),
        ("agent.", "agent", schema.AGENT_CONFIGS[algo]),
        ("reset.", "reset", schema.ResetConfig),
        ("reset.", "strategy", OPTIONS[strategy]),
        ("reset.trigger.", "trigger", TriggerConfig),
        ("eval.", "eval", schema.EvalConfig),
        ("log.", "log", schema.LogConfig),
        ("checkpoint.", "checkpoint", schema.CheckpointConfig),
    ]
    nested = {attribute for _, attribute, _ in blocks}
    found: dict[str, Entry] = {}
    for prefix, attribute, cls in blocks:
        annotations = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            if not attribute and f.name in nested:
                continue
            path = prefix + f.name
            if path in found:
                raise TypeError(f"option {path} is defined twice")
            meta = f.metadata
            found[path] = Entry(attribute, f.name, annotations[f.name], f.default, **meta)
    return found


def load(argv: Sequence[str]) -> tuple[schema.Config, argparse.Namespace]:
    """Parse a command line (without the program's name).

    Returns:
        the configuration, and the flags that are no part of it (``run_dir``).

    Raises:
        ConfigError: an unknown name, key, flag or value; the message names the valid ones.
        SystemExit: ``--help`` was asked for and printed.
    """
    argv = [_dashed(word) for word in argv]
    selected = _parse(_selector_parser(add_help=False), argv, complete=False)
    files = [(path, _read(Path(path))) for path in selected.config]

    names = {}
    for flag, (path, default) in SELECTORS.items():
        in_files = [values[path] for _, values in files if path in values]
        given = getattr(selected, flag)
        names[flag] = given if given is not None else in_files[-1] if in_files else default
    if not isinstance(names["env"], str):
        raise ConfigError(f"env.id must be text, got {names['env']!r}")
    _check_name("algo", names["algo"], schema.AGENT_CONFIGS)
    _check_name("reset", names["reset"], resets())
    _check_name("preset", names["preset"], presets(names["algo"]))

    layers = [*((str(p.relative_to(CONFIG_DIR)), _read(p)) for p in named_files(**names)), *files]
    strategy = [values["reset.strategy"] for _, values in layers if "reset.strategy" in values][-1]
    _check_name("reset.strategy", strategy, OPTIONS)
    options = entries(names["algo"], strategy)
    merged = {path: entry.default for path, entry in options.items()}
    for origin, values in layers:
        merged |= _checked(values, options, origin)
    merged |= {path: names[flag] for flag, (path, _) in SELECTORS.items()}

    flags = _parse(_full_parser(options, merged), argv, complete=True)
    given = {path: value for path, value in vars(flags).items() if path in options and value is not None}
    merged |= _checked(given, options, "command line")
    return build(merged), flags


def build(values: Mapping[str, Any]) -> schema.Config:
    """Build the configuration from values by dotted path; options left out keep their defaults.

    Raises:
        ConfigError: a strategy or trigger refuses its own options.
    """
    algo, strategy = values["algo"], values["reset.strategy"]
    blocks: dict[str, dict[str, Any]] = {}
    for path, entry in entries(algo, strategy).items():
        if path in values:
            blocks.setdefault(entry.attribute, {})[entry.field] = values[path]
    if values.get("total_steps", 1) <= values.get("replay.learning_starts", 0):
        raise ConfigError(
            f"total_steps {values['total_steps']} must exceed replay.learning_starts "
            f"{values['replay.learning_starts']}, or nothing is learned"
        )
    if values.get("reset.trigger.metric") and not values.get("log.metrics_every"):
        raise ConfigError(
            "reset.trigger.metric needs metrics to be measured: log.metrics_every must be above 0, got 0"
        )
    own = {}
    for attribute, prefix, cls in (
        ("strategy", "reset.", OPTIONS[strategy]),
        ("trigger", "reset.trigger.", TriggerConfig),
    ):
        try:
            own[attribute] = cls(**blocks.get(attribute, {}))
        except ValueError as error:
            raise ConfigError(f"{prefix}{error}") from error
    return schema.Config(
        **blocks[""],
        env=schema.EnvConfig(**blocks.get("env", {})),
        atari=schema.AtariConfig(**blocks.get("atari", {})),
        replay=schema.ReplayConfig(**blocks.get("replay", {})),
        agent=schema.AGENT_CONFIGS[algo](**blocks.get("agent", {})),
        reset=schema.ResetConfig(**blocks.get("reset", {})),
        **own,
        eval=schema.EvalConfig(**blocks.get("eval", {})),
        log=schema.LogConfig(**blocks.get("log", {})),
        checkpoint=schema.CheckpointConfig(**blocks.get("checkpoint", {})),
    )


def flatten_config(config: schema.Config) -> dict[str, Any]:
    """Return every option of ``config`` by its dotted path."""
    values = {}
    for path, entry in entries(config.algo, config.reset.strategy).items():
        block = getattr(config, entry.attribute) if entry.attribute else config
        values[path] = getattr(block, entry.field)
    return values


def dump(config: schema.Config) -> str:
    """Return ``config`` as YAML that ``--config`` reads back."""
    nested: dict[str, Any] = {}
    for path, value in flatten_config(config).items():
        *parents, leaf = path.split(".")
        block = nested
        for parent in parents:
            block = block.setdefault(parent, {})
        block[leaf] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(nested, sort_keys=False)


def read_config(path: Path) -> schema.Config:
    """Read a complete configuration written by ``dump``.

    Raises:
        ConfigError: the file is missing or does not fit this version's options.
    """
    values = _read(path)
    missing = [key for key in ("algo", "reset.strategy") if key not in values]
    if missing:
        raise ConfigError(f"{path}: {missing[0]} is missing")
    _check_name("algo", values["algo"], schema.AGENT_CONFIGS)
    _check_name("reset.strategy", values["reset.strategy"], OPTIONS)
    options = entries(values["algo"], values["reset.strategy"])
    return build(_checked(values, options, str(path)))


def resets() -> list[str]:
    """Names that ``--reset`` takes."""
    return sorted(p.stem for p in CONFIG_DIR.glob("reset/*.yaml"))


def presets(algo: str) -> list[str]:
    """Names of the presets that exist for ``algo``."""
    return sorted(p.parent.name for p in CONFIG_DIR.glob(f"preset/*/{algo}.yaml"))


def named_files(algo: str, env: str, reset: str, preset: str) -> list[Path]:
    """The YAML files that the four names bring in, in the order in which they merge."""
    # From the id itself to its family: "h1-walk-v0", "h1-walk", "h1".
    task = env.rpartition(":")[2]
    names = [task, re.sub(r"-v\d+$", "", task), task.split("-")[0]]
    if game := find_game(env):
        names += [game_names()[game], "atari"]
    spellings = [name.replace("/", "_") for name in names]

    def first_existing(pattern: str) -> list[Path]:
        paths = [CONFIG_DIR / pattern.format(name) for name in spellings]
        return [p for p in paths if p.exists()][:1]

    return [
        CONFIG_DIR / "algo" / f"{algo}.yaml",
        *first_existing("env/{}.yaml"),
        CONFIG_DIR / "reset" / f"{reset}.yaml",
        CONFIG_DIR / "preset" / preset / f"{algo}.yaml",
        *first_existing(f"preset/{preset}/{algo}-{{}}.yaml"),
    ]


# Reading and checking values


def _read(path: Path) -> dict[str, Any]:
    """Read a YAML mapping and flatten it to dotted paths."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of options, got {type(content).__name__}")
    return _flatten(content)


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        flat |= _flatten(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return flat


def _checked(values: Mapping[str, Any], options: Mapping[str, Entry], origin: str) -> dict[str, Any]:
    for path in values:
        if path not in options:
            raise ConfigError(f"{origin}: unknown option {path!r}{_nearest(path, options)}")
    return {path: _coerce(value, options[path], f"{origin}: {path}") for path, value in values.items()}


def _coerce(value: Any, entry: Entry, where: str) -> Any:
    """Return ``value`` (from YAML, or text from the command line) as the option's type, or raise ConfigError."""
    annotation = entry.annotation
    if isinstance(annotation, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "none")):
            return None
        (annotation,) = (a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list of {_type_name(annotation)}, got {value!r}")
        item = typing.get_args(annotation)[0]
        return tuple(_in_range(_scalar(v, item, where), entry, where) for v in value)
    return _in_range(_scalar(value, annotation, where), entry, where)


def _in_range(value: Any, entry: Entry, where: str) -> Any:
    if entry.choices is not None and value not in entry.choices:
        raise ConfigError(f"{where} must be one of {', '.join(map(str, entry.choices))}; got {value!r}")
    if entry.minimum is not None and not value >= entry.minimum:
        raise ConfigError(f"{where} must be at least {entry.minimum}, got {value!r}")
    if entry.maximum is not None and not value <= entry.maximum:
        raise ConfigError(f"{where} must be at most {entry.maximum}, got {value!r}")
    return value


def _scalar(value: Any, kind: type, where: str) -> Any:
    if kind is str and isinstance(value, str):
        return value
    try:
        parsed = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        parsed = None
    if isinstance(parsed, str) and kind in (int, float):  # YAML 1.1 reads 1e-4 as text
        try:
            parsed = float(parsed)
        except ValueError:
            parsed = None
    if kind is bool and isinstance(parsed, bool):
        return parsed
    if kind in (int, float) and isinstance(parsed, int | float) and not isinstance(parsed, bool):
        if kind is float:
            return float(parsed)
        if float(parsed).is_integer():
            return int(parsed)
    raise ConfigError(f"{where} must be {_type_name(kind)}, got {value!r}")


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is tuple:
        return _type_name(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(annotation))
    return {int: "int", float: "float", bool: "true/false", str: "text", types.NoneType: "null"}[annotation]


def _check_name(flag: str, name: Any, valid: Iterable[str]) -> None:
    if not isinstance(name, str) or name not in valid:
        raise ConfigError(f"--{flag} {name}: unknown; valid: {', '.join(sorted(valid))}")


def _nearest(path: str, valid: Iterable[str]) -> str:
    matches = difflib.get_close_matches(path, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; valid: {', '.join(valid)}"


# The command line


class _Parser(argparse.ArgumentParser):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Python 3.11's own pattern takes -1e-1 for a flag.
        self._negative_number_matcher = re.compile(r"-\.?\d[\d_]*\.?\d*([eE][-+]?\d+)?$")

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(message)


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
    parser.add_argument(
        "--algo", metavar="NAME", help=f"agent: {', '.join(schema.AGENT_CONFIGS)} (default: sac)"
    )
    parser.add_argument(
        "--env",
        metavar="ID",
        help="h1-walk, a game such as Asterix, any Gymnasium id, such as Pendulum-v1 (default: h1-walk)",
    )
    parser.add_argument("--reset", metavar="NAME", help="reset strategy, see configs/reset/ (default: fire)")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="paper: the published protocol; quick: minutes on 2 CPU cores (default: paper)",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="FILE",
        help="YAML files merged after the named ones, left to right",
    )
    parser.add_argument(
        "--resets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="several strategies instead of --reset, trained as one batched program like --num-agents; with "
        "--branch-from they share one beginning",
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", help="run folder (default: runs/<algo>-<env>-<reset>-<preset>-seed<seed>)"
    )
    return parser


def _full_parser(options: Mapping[str, Entry], merged: Mapping[str, Any]) -> _Parser:
    names = ", ".join(f"{flag} {merged[path]}" for flag, (path, _) in SELECTORS.items())
    parser = _selector_parser(
        add_help=True,
        description="Train an agent, reset its networks on a schedule, watch its plasticity.\n\n"
        "  python train.py --algo sac --env h1-walk --reset fire --preset quick\n"
        "  python train.py --algo dqn --env CartPole-v1 --reset shrink_perturb --reset.every 10000\n\n"
        "The same command resumes an interrupted run.",
        epilog=f"Defaults shown are those of: {names}. Precedence: files of algo, env, reset, preset; --config; flags.",
    )
    groups: dict[str, Any] = {}
    for path, entry in options.items():
        if path in (*(selected for selected, _ in SELECTORS.values()), "reset.strategy"):
            continue
        section = path.partition(".")[0] if "." in path else "run"
        group = groups.setdefault(
            section, parser.add_argument_group(section) if section not in groups else None
        )
        unit = f" [{entry.unit}]" if entry.unit else ""
        text = f"{entry.help}{unit} (default: {_shown(merged[path])})"
        kind = _type_name(entry.annotation)
        arity: dict[str, Any] = {}
        if typing.get_origin(entry.annotation) is tuple:
            arity = {"nargs": "*"}
        elif entry.annotation is bool:
            arity = {"nargs": "?", "const": "true"}
        metavar = (
            "{" + ",".join(map(str, entry.choices)) + "}" if entry.choices else kind.upper().replace(" ", "_")
        )
        flag = "--" + path.replace("_", "-")
        group.add_argument(flag, dest=path, metavar=metavar, help=text.replace("%", "%%"), **arity)
    return parser


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "null" if value is None else str(value)


def _parse(parser: _Parser, argv: Sequence[str], complete: bool) -> argparse.Namespace:
    namespace, unknown = parser.parse_known_args(argv)
    if complete and unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0], flags, n=1, cutoff=0.5)
        raise ConfigError(
            f"unknown argument {unknown[0]!r}; " + (f"did you mean {near[0]}?" if near else "see --help")
        )
    return namespace
