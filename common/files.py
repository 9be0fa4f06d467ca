"""Files that a kill, a full disk or a power cut leaves either old or new, on file systems of every kind."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

UNSAFE = re.compile(r"[^\w.+=-]")  # in the name of a file
# What file systems answer that do not know a call: FUSE, network and shared folders.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class RunFileError(ValueError):
    """A file of a run that is missing, or not what the run wrote."""


@contextlib.contextmanager
def reading_run_file(path: Path, line: int | None = None) -> Iterator[None]:
    """Turn whatever comes of reading and parsing ``path`` into a RunFileError that names the file and the ``line``."""
    try:
        yield
    except RunFileError:
        raise
    except FileNotFoundError as error:
        raise RunFileError(f"{path} is missing") from error
    except OSError as error:
        raise RunFileError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, IndexError, TypeError, StopIteration, RecursionError, csv.Error) as error:
        where = f" (line {line})" if line else ""
        raise RunFileError(f"{path} is damaged{where}: it is not what the run wrote") from error


def replace_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step: through ``<name>.tmp`` beside it, on disk before it has the name."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk; a folder that cannot be synced is a warning."""
    is_folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in UNSUPPORTED):
            raise
        warn_once("the file system cannot sync folders: a power cut may cost the newest checkpoint")
    finally:
        os.close(descriptor)


@functools.cache
def warn_once(message: str) -> None:
    """Print a warning on the standard error, once in a program; who reads it may be gone."""
    logging.getLogger("fire").warning("warning: %s", message)


def safe_name(text: str) -> str:
    """Return ``text`` as part of a file's name: ``_`` for all but letters, digits and ``.+=-``."""
    return UNSAFE.sub("_", text)


def to_json(value: Any, indent: int | None = None) -> str:
    """Return ``value`` as JSON, which knows neither NaN nor infinity: they become ``null``."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
