"""From YAML files and flags to a checked ``Config``, and back to YAML.

Values merge left to right, later ones win: dataclass defaults, ``configs/algo/<algo>.yaml``,
``configs/env/<env>.yaml``, ``configs/reset/<reset>.yaml``, ``configs/preset/<preset>/<algo>.yaml``,
``configs/preset/<preset>/<algo>-<env>.yaml``, files given with ``--config``, flags. The two files that name an
environment are optional; one named after its family (``h1`` for ``h1-walk`` and for every ``humanoid_bench:`` id,
``atari`` for ``Pong``) serves where it has none of its own.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, TypeVar

from common.games import find_game, game_names
from configs.command_line import SELECTORS, UNFLAGGED, flag_of, parse_names, parse_options
from configs.errors import ConfigError
from configs.schema import AGENT_CONFIGS, CHOSEN_SECTIONS, Config
from configs.values import Option, Value, coerce, describe
from configs.yaml_files import read_yaml, to_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIG_DIR = Path(__file__).parent
OFFICIAL_PREFIX = "humanoid_bench:"  # of ids of that package, whose tasks share one protocol
Section = TypeVar("Section", bound="DataclassInstance")


class Flags(NamedTuple):
    """What a command line says beside the configuration."""

    run_dir: Path | None
    resets: list[str]
    show_config: bool
    origins: dict[str, str]  # by option: the file or flag that set it, or "default"


def load(argv: Sequence[str]) -> tuple[Config, Flags]:
    """Parse a command line (without the program's name).

    Returns:
        the configuration, and the flags that are no part of it.

    Raises:
        ConfigError: an unknown name, key, flag or value; the message names the valid ones.
        SystemExit: ``--help`` was asked for and printed.
    """
    given, config_files = parse_names(argv)
    files = [(str(path), read_yaml(path)) for path in config_files]
    names, name_origins = _select_names(given, files)
    named = [(str(path.relative_to(CONFIG_DIR.parent)), read_yaml(path)) for path in named_files(**names)]
    layers = [*named, *files]
    selected = {path: names[flag] for flag, (path, _) in SELECTORS.items()}

    raw = {path: value for _, layer in layers for path, value in layer.items()}
    options = options_of(_with_chosen_sections(raw | selected))
    values = {path: option.default for path, option in options.items()}
    origins = dict.fromkeys(values, "default")
    for origin, layer in layers:
        checked = _checked(layer, options, origin)
        values |= checked
        origins |= dict.fromkeys(checked, origin)
    own = _options_in_name(names["reset"], options)
    values |= own
    origins |= dict.fromkeys(own, f"--reset {names['reset']}")
    values |= selected
    origins |= name_origins

    from_flags, parsed = parse_options(argv, options, values)
    values |= _checked(from_flags, options, "command line")
    origins |= {path: flag_of(path) for path in from_flags}
    run_dir = Path(parsed.run_dir) if parsed.run_dir else None
    return build(values), Flags(run_dir, parsed.resets, parsed.show_config, origins)


def _select_names(
    given: Mapping[str, str], files: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the names of ``SELECTORS`` by flag, from flags before files before defaults, and by path what set each."""
    names, origins = {}, {}
    for flag, (path, default) in SELECTORS.items():
        candidates = [(default, "default")]
        candidates += [(values[path], origin) for origin, values in files if path in values]
        candidates += [(given[flag], f"--{flag}")] if flag in given else []
        names[flag], origins[path] = candidates[-1]
    if not isinstance(names["env"], str):
        raise ConfigError(f"env.id must be text, got {names['env']!r}")
    _check_name("--algo", names["algo"], AGENT_CONFIGS)
    _check_name("--reset", str(names["reset"]).partition(":")[0], resets())
    _check_name("--preset", names["preset"], presets(names["algo"]))
    return names, origins


def _options_in_name(reset: str, options: Mapping[str, Option]) -> dict[str, Value]:
    """Return the options behind a reset's name, by path: ``fire:scale=unit,include=q.*+k.*``.

    Those without a dot are the reset's; several values of one option are joined by ``+``.
    """
    found: dict[str, Any] = {}
    _, colon, text = reset.partition(":")
    for pair in text.split(",") if colon else []:
        key, equals, value = pair.partition("=")
        if not equals or not value:
            raise ConfigError(f"--reset {reset}: {pair!r} is not option=value")
        path = (key if "." in key else f"reset.{key}").replace("-", "_")
        found[path] = value.split("+") if path in options and options[path].is_list else value
    flagged = {path: option for path, option in options.items() if path not in UNFLAGGED}
    return _checked(found, flagged, f"--reset {reset}")


def build(values: Mapping[str, Value]) -> Config:
    """Build the configuration from checked values by dotted path; options left out keep their defaults.

    Raises:
        ConfigError: options that do not go together.
    """
    return _rebuilt(_with_chosen_sections(values), values, "")


def flatten_config(config: Config) -> dict[str, Value]:
    """Return every option of ``config`` by its dotted path."""
    return {path: option.default for path, option in options_of(config).items()}


def dump(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """Return ``config`` as YAML that ``--config`` reads back; comments name the ``origins`` of values."""
    return to_yaml(flatten_config(config), origins)


def read_config(path: Path) -> Config:
    """Read a complete configuration written by ``dump``.

    Raises:
        ConfigError: the file is missing or does not fit this version's options.
    """
    values = read_yaml(path)
    for chosen in CHOSEN_SECTIONS.values():
        if chosen.option not in values:
            raise ConfigError(f"{path}: {chosen.option} is missing")
    options = options_of(_with_chosen_sections(values))
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
    if env.startswith(OFFICIAL_PREFIX):  # robots with hands too: h1hand, h1strong, g1
        names.append("h1")
    if game := find_game(env):
        names += [game_names()[game], "atari"]
    spellings = [name.replace("/", "_") for name in names]

    def first_existing(pattern: str) -> list[Path]:
        paths = [CONFIG_DIR / pattern.format(name) for name in spellings]
        return [p for p in paths if p.exists()][:1]

    return [
        CONFIG_DIR / "algo" / f"{algo}.yaml",
        *first_existing("env/{}.yaml"),
        CONFIG_DIR / "reset" / f"{reset.partition(':')[0]}.yaml",
        CONFIG_DIR / "preset" / preset / f"{algo}.yaml",
        *first_existing(f"preset/{preset}/{algo}-{{}}.yaml"),
    ]


# Options and the sections they stand in


def options_of(config: Config) -> dict[str, Option]:
    """Return every option of ``config`` by its dotted path; defaults are its values."""
    found: dict[str, Option] = {}
    for path, option in _walk(config, ""):
        if path in found:
            raise TypeError(f"option {path} is defined twice")
        found[path] = option
    return found


def _walk(section: DataclassInstance, prefix: str) -> Iterator[tuple[str, Option]]:
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if _is_section(value):
            yield from _walk(value, _section_prefix(prefix, field))
        else:
            yield prefix + field.name, describe(hints[field.name], value, field.metadata)


def _rebuilt(section: Section, values: Mapping[str, Value], prefix: str) -> Section:
    """Return ``section`` and all below it with ``values``, by dotted path, in place of its own."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if _is_section(value):
            changes[field.name] = _rebuilt(value, values, _section_prefix(prefix, field))
        elif prefix + field.name in values:
            changes[field.name] = values[prefix + field.name]
    try:
        return dataclasses.replace(section, **changes)
    except ValueError as error:
        raise ConfigError(f"{prefix}{error}") from error


def _is_section(value: object) -> TypeGuard[DataclassInstance]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _section_prefix(prefix: str, field: dataclasses.Field[Any]) -> str:
    return prefix if field.metadata.get("inline") else f"{prefix}{field.name}."


def _with_chosen_sections(values: Mapping[str, object]) -> Config:
    """Return the default configuration with sections of the classes that ``values`` choose."""
    config = Config()
    for section, (option, classes) in CHOSEN_SECTIONS.items():
        name = values.get(option, attrgetter(option)(config))
        _check_name(option, name, classes)
        config = _with_section(config, section.split("."), classes[str(name)]())
    return config


def _with_section(parent: Section, attributes: Sequence[str], section: DataclassInstance) -> Section:
    first, *rest = attributes
    if rest:
        section = _with_section(getattr(parent, first), rest, section)
    return dataclasses.replace(parent, **{first: section})


def _checked(values: Mapping[str, Any], options: Mapping[str, Option], origin: str) -> dict[str, Value]:
    checked = {}
    for path, value in values.items():
        if path in options:
            checked[path] = coerce(value, options[path], f"{origin}: {path}")
        elif not (value in ({}, None) and any(name.startswith(f"{path}.") for name in options)):
            raise ConfigError(f"{origin}: unknown option {path!r}{_nearest(path, options)}")
    return checked


def _check_name(where: str, name: object, valid: Iterable[str]) -> None:
    if not isinstance(name, str) or name not in valid:
        raise ConfigError(f"{where} {name}: unknown; valid: {', '.join(sorted(valid))}")


def _nearest(path: str, valid: Iterable[str]) -> str:
    matches = difflib.get_close_matches(path, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else f"; valid: {', '.join(valid)}"
