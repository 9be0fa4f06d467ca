"""The error every part of this package raises for an environment that cannot be used."""

from __future__ import annotations


class EnvError(ValueError):
    """An environment that cannot be used; the message is one line that names the value and what would do."""
