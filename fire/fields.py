"""Dataclass fields that document themselves: one source for ``--help``, YAML validation and the docs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def option(
    default: Any,
    help: str,
    unit: str = "",
    choices: Sequence[Any] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Return a dataclass field with a default, a sentence of help, a unit and the valid values.

    ``choices`` lists a closed set; ``minimum`` and ``maximum`` (inclusive) bound numbers and the numbers of a tuple.
    The configuration loader checks them.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "choices": tuple(choices) if choices is not None else None,
        "minimum": minimum,
        "maximum": maximum,
    }
    return dataclasses.field(default=default, metadata=metadata)
