"""Options as YAML, in and out: nested in the file, by dotted path (``agent.critic_width``) here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError
from configs.values import Value

_TAG = "tag:yaml.org,2002:"


class _StrictLoader(yaml.SafeLoader):
    """YAML without its traps: numbers are decimal, a key stands once, nothing refers to another place of the file."""

    # Null and booleans as in YAML 1.1, without octal and sexagesimal numbers, dates, and "<<". Whatever is left is
    # text, of which the option's own type makes a number if it wants one.
    yaml_implicit_resolvers = {  # noqa: RUF012 (PyYAML's own class attribute)
        first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        for what in ("anchor", "tag"):  # an alias has the anchor that it refers to
            if getattr(event, what, None) is not None:
                raise ConfigError(f"{_place(event.start_mark)}: anchors, aliases and tags are not supported")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{_place(key.start_mark)}: a key must be text")
            if key.value in mapping:
                raise ConfigError(f"{_place(key.start_mark)}: key {key.value!r} stands there twice")
            mapping[key.value] = self.construct_object(value, deep)  # as text: there is an option named null
        return mapping


# Python refuses integers of thousands of digits; those of more than a hundred stay text here.
_StrictLoader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"[-+]?(0|[1-9][0-9_]{0,99})$"), list("-+0123456789")
)
_StrictLoader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(r"([-+]?[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


class _Dumper(yaml.SafeDumper):
    """Writes every text on one line."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        f"{_TAG}str", text, style=None if text.isprintable() else '"'
    ),
)


def _place(mark: Any) -> str:
    return f"{mark.name}, line {mark.line + 1}"


def read_yaml(path: Path) -> dict[str, Any]:
    """Return what stands in the file by dotted path; an empty section as an empty dict.

    Raises:
        ConfigError: the file cannot be read, is no YAML mapping, or gives an option twice.
    """
    return flatten(read_nested(path), path)


def read_nested(path: Path) -> dict[str, Any]:
    """Return what stands in the file as it is nested there.

    Raises:
        ConfigError: the file cannot be read, or is no YAML mapping.
    """
    try:
        loader = _StrictLoader(path.read_text(encoding="utf-8"))
        loader.name = str(path)  # for the marks in messages
        content = loader.get_single_data()
    except OSError as error:
        raise ConfigError(f"cannot read configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping of options, got {type(content).__name__}")
    return content


def flatten(mapping: Mapping[str, Any], where: object) -> dict[str, Any]:
    """Return nested options by dotted path; ConfigError, beginning with ``where``, if one is given twice."""
    flat: dict[str, Any] = {}
    _flatten(mapping, "", flat, where)
    return flat


def _flatten(mapping: Mapping[str, Any], prefix: str, flat: dict[str, Any], where: object) -> None:
    for key, value in mapping.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            _flatten(value, f"{path}.", flat, where)
        elif path in flat:
            raise ConfigError(f"{where}: option {path!r} stands there twice")
        else:
            flat[path] = value


def to_yaml(values: Mapping[str, Value], comments: Mapping[str, str] | None = None) -> str:
    """Return values by dotted path as nested YAML, one option a line, with trailing ``comments`` by the same paths."""
    lines: list[tuple[str, str]] = []
    opened: list[str] = []
    for path, value in values.items():
        *sections, name = path.split(".")
        shared = 0
        while sections[: shared + 1] == opened[: shared + 1] and shared < len(sections):
            shared += 1
        lines += [(f"{'  ' * depth}{sections[depth]}:", "") for depth in range(shared, len(sections))]
        opened = sections
        comment = " ".join(comments[path].split()) if comments else ""
        lines.append((f"{'  ' * len(sections)}{_inline(name)}: {_inline(value)}", comment))
    width = max((len(line) for line, _ in lines if len(line) < 60), default=0)
    return "".join(f"{line:{width}}  # {comment}\n" if comment else f"{line}\n" for line, comment in lines)


def _inline(value: Value) -> str:
    """Return ``value`` as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(plain, Dumper=_Dumper, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
