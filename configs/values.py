"""One option and its value: the type it is declared with, its range, and what text or YAML must be to become it."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple

from configs.errors import ConfigError

Scalar = bool | int | float | str | None
Value = Scalar | tuple[Scalar, ...]

KIND_NAMES = {int: "int", float: "float", bool: "true/false", str: "text"}
# YAML 1.1's spellings.
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Option(NamedTuple):
    """An option of a run: the values it takes, and its documentation (see ``fire.fields.option``)."""

    kind: type  # int, float, bool or str: of the value, or of each value of a list
    is_list: bool
    nullable: bool
    default: Value
    help: str
    unit: str
    choices: tuple[Scalar, ...] | None
    minimum: float | None
    maximum: float | None


def describe(annotation: Any, default: Value, metadata: Mapping[str, Any]) -> Option:
    """Return the option that a dataclass field declares by its type hint and its metadata.

    Raises:
        TypeError: the hint is none of int, float, bool, str, one of these ``| None``, ``tuple[one of these, ...]``.
    """
    is_list, nullable = typing.get_origin(annotation) is tuple, isinstance(annotation, types.UnionType)
    kind, *rest = typing.get_args(annotation) if is_list or nullable else (annotation,)
    if kind not in KIND_NAMES or rest != ([...] if is_list else [types.NoneType] if nullable else []):
        raise TypeError(f"no option can have the type {annotation}")
    return Option(kind, is_list, nullable, default, **metadata)


def coerce(value: object, option: Option, where: str) -> Value:
    """Return ``value``, text from the command line or what a YAML file holds, as the option's type.

    Raises:
        ConfigError: the type, the range or the choices do not admit it; the message begins with ``where``.
    """
    if option.nullable and (value is None or (isinstance(value, str) and value.lower() in ("null", "none"))):
        return None
    if not option.is_list:
        return _coerce_one(value, option, where)
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} must be a list of {KIND_NAMES[option.kind]}, got {value!r}")
    return tuple(_coerce_one(each, option, where) for each in value)


def _coerce_one(value: object, option: Option, where: str) -> Scalar:
    converted = _convert(value, option.kind)
    if converted is None:
        raise ConfigError(f"{where} must be {KIND_NAMES[option.kind]}, got {value!r}")
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ConfigError(f"{where} must be a finite number, got {value!r}")
    if option.choices is not None and converted not in option.choices:
        valid = ", ".join(map(str, option.choices))
        raise ConfigError(f"{where} must be one of {valid}; got {converted!r}")
    if not isinstance(converted, str):
        if option.minimum is not None and converted < option.minimum:
            raise ConfigError(f"{where} must be at least {option.minimum}, got {converted!r}")
        if option.maximum is not None and converted > option.maximum:
            raise ConfigError(f"{where} must be at most {option.maximum}, got {converted!r}")
    return converted


def _convert(value: object, kind: type) -> bool | int | float | str | None:
    """Return ``value`` as ``kind``; None where it is nothing of the kind."""
    if kind is str:
        return value if isinstance(value, str) else None
    if kind is bool:
        if isinstance(value, str):
            return BOOLEANS.get(value.lower())
        return value if isinstance(value, bool) else None
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind is float:
        try:
            return float(value)
        except OverflowError:  # an int beyond the largest float
            return math.inf
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _number(text: str) -> int | float | None:
    """Return the decimal number that ``text`` spells, leading zeros and 1e6 included; None where it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
