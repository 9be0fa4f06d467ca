"""Dataclass fields that document themselves: one source for ``--help``, YAML validation and the docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def option(default: Any, help: str, unit: str = "", choices: Sequence[Any] | None = None) -> Any:
    """Return a dataclass field with a default, a sentence of help, a unit and, if closed, the valid values.

    A mutable default (list, dict) is copied for every instance. The configuration loader checks ``choices``.
    """
    metadata = {"help": help, "unit": unit, "choices": tuple(choices) if choices is not None else None}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
