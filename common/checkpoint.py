"""Atomic checkpoints: a folder appears under its final name only when it is complete and on disk.

A checkpoint ``<kind>_<env step>/`` holds one ``.pt`` file per part, readable with ``torch.load(weights_only=True)``,
and ``manifest.json`` with the format version, the step and a SHA-256 of every file. Large tensors of parts that are to
be shared lie beside them as ``.segment`` files (``common.segments``): one on disk, whichever checkpoints have it.

A run that has saved nothing yet is marked: ``begin`` makes ``.first.partial/``, and the first ``step`` checkpoint is
that very folder, filled and renamed. So at every moment there is either the mark or a checkpoint, and a folder with
neither has lost its checkpoints. Only the process that has claimed a run writes here; ``find`` and ``load`` change
nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import segments
from common.files import sync

FORMAT_VERSION = 2
READABLE = (1, 2)  # 1: without segments
_ARRAY_KEY = "__ndarray__"
_MARK = ".first.partial"
_SESSION = "session.txt"
_NAME = re.compile(r"(?:(\w+)_(\d{12})|\.(\w+)_(\d{12})\.replaced)")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or cannot be read; never replaced by a silent fresh start."""


def begin(folder: Path, session: str) -> None:
    """Mark a run as one that has saved nothing, and delete what a dead session has left.

    Args:
        folder: where checkpoints live; created if missing.
        session: of the program that begins the run; its first checkpoint keeps it.
    """
    mark = folder / _MARK
    mark.mkdir(parents=True, exist_ok=True)
    _empty(mark)
    (mark / _SESSION).write_text(session)
    sync(mark / _SESSION)
    sync(mark)
    sync(folder)
    for kind in ("best", "step"):
        discard_after(folder, kind, -1)


def session_of(path: Path) -> str | None:
    """Return the session that a checkpoint is the first of; with a folder of checkpoints, that of its mark, if any."""
    mark = path / _MARK
    if mark.is_dir():
        path = mark
    try:
        return (path / _SESSION).read_text()
    except OSError:  # killed while it began: marked all the same
        return "" if path is mark else None


def save(
    folder: Path,
    kind: str,
    env_step: int,
    parts: Mapping[str, Any],
    shared: Collection[str] = (),
    others: Sequence[Path] = (),
) -> Path:
    """Write ``parts`` (nested dicts and lists of tensors, arrays, numbers, text).

    Args:
        folder: where checkpoints live; created if missing.
        kind: ``step`` or ``best``.
        env_step: environment steps done.
        parts: one file each.
        shared: names of parts whose large tensors are shared with the newest checkpoint of this kind and with
            ``others``.
        others: checkpoints of other runs, which may be gone by now.

    Raises:
        CheckpointError: the disk is full or cannot be written; older checkpoints stay.
    """
    final = folder / f"{kind}_{env_step:012d}"
    partial, replaced = folder / f".{final.name}.partial", folder / f".{final.name}.replaced"
    if kind == "step" and (folder / _MARK).is_dir():
        partial = folder / _MARK
    try:
        _repair(folder)
        partial.mkdir(parents=True, exist_ok=True)
        _empty(partial)
        sources = [*find(folder, kind)[-1:], *others]
        digests = {}
        for name, part in parts.items():
            path, content = partial / f"{name}.pt", _pack(part)
            if name in shared:
                content, found = segments.detach(content, partial, sources)
                digests.update(found)
            torch.save(content, path)
            sync(path)
            digests[path.name] = _digest(path)
        manifest = {"format_version": FORMAT_VERSION, "env_step": env_step, "sha256": digests}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
        sync(partial / "manifest.json")
        sync(partial)
        if final.exists():  # a second one at the same step, such as a better agent right after a reset
            os.replace(final, replaced)
        os.replace(partial, final)
        sync(folder)
    except (OSError, RuntimeError) as error:  # PyTorch's error for a full disk does not say so
        free = _free(folder)
        _empty(partial)
        if partial.name != _MARK:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write checkpoint {final}{free}: {_reason(error)}") from error
    if replaced.exists():
        _delete(replaced)
    return final


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free / 1e6:,.1f} MB were free"
    except OSError:
        return ""


def _empty(partial: Path) -> None:
    """Delete the parts in an incomplete checkpoint; the session of a mark stays."""
    for path in partial.glob("*"):
        if path.name != _SESSION:
            path.unlink(missing_ok=True)


def _repair(folder: Path) -> None:
    """Bring back a checkpoint that a crash left half replaced, delete what it left half written or half deleted."""
    for replaced in folder.glob(".*.replaced"):
        final = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
        if final.exists():
            _delete(replaced)
        else:
            os.replace(replaced, final)
    for leftover in (*folder.glob(".*.partial"), *folder.glob(".*.deleted")):
        if leftover.name != _MARK:
            shutil.rmtree(leftover, ignore_errors=True)


def prune(folder: Path, kind: str, keep: int, for_good: Collection[int] = ()) -> None:
    """Delete all checkpoints of ``kind`` but the ``keep`` newest, at least one, and those of the steps ``for_good``."""
    for old in find(folder, kind)[: -max(keep, 1)]:
        if step_of(old) not in for_good:
            _delete(old)


def discard_after(folder: Path, kind: str, env_step: int) -> None:
    """Delete the checkpoints of ``kind`` beyond ``env_step``, where a resumed run will come again."""
    for path in find(folder, kind):
        if step_of(path) > env_step:
            _delete(path)


def _delete(path: Path) -> None:
    """Delete a checkpoint, which loses its name first: a kill leaves no half of one, and neither does a reader.

    A network file system keeps the files that a reader has open, so the rest may have to wait for the next save.
    """
    doomed = path.with_name(f".{path.name.strip('.')}.deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def find(folder: Path, kind: str) -> list[Path]:
    """Return the checkpoints of ``kind``, oldest first, one that is just being replaced included.

    Raises:
        CheckpointError: the folder may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}") from error
    found: dict[int, Path] = {}
    for name in sorted(names, reverse=True):  # ".best_...replaced" comes last and yields to "best_..."
        match = _NAME.fullmatch(name)
        if match and kind in (match[1], match[3]):
            found.setdefault(step_of(folder / name), folder / name)
    return [found[step] for step in sorted(found)]


def step_of(path: Path) -> int:
    """Return the env step in a checkpoint's name.

    Raises:
        ValueError: it is no checkpoint's name.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no checkpoint: its name must be <kind>_<env step in 12 digits>")
    return int(match[2] or match[4])


def load_newest(
    folder: Path, kinds: Sequence[str], parts: Sequence[str], device: torch.device | str = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """Read the newest checkpoint of the first of ``kinds`` that has any, in a folder that its run may be writing to.

    One that the run deletes or replaces meanwhile is passed over for the next newest.

    Returns:
        its folder, and what ``load`` returns.

    Raises:
        CheckpointError: there is none, or the newest cannot be read.
    """
    for path in _newest_first(folder, kinds):
        before = _identity(path)
        try:
            return path, load(path, parts, device)
        except CheckpointError:
            if before is not None and _identity(path) == before:
                raise
    raise CheckpointError(f"{folder} holds no checkpoint yet")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another that has taken its name since; None: there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _newest_first(folder: Path, kinds: Sequence[str]) -> Iterator[Path]:
    """Yield the candidates of ``load_newest``; those that have appeared since the first look too."""
    for _ in range(10):
        candidates = next(filter(None, (find(folder, kind) for kind in kinds)), [])
        if not candidates:
            return
        yield from reversed(candidates)


def load(path: Path, parts: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the named parts, tensors onto ``device``, and check them against the manifest.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format version.
    """
    manifest = _manifest(path)
    state: dict[str, Any] = {"env_step": manifest["env_step"]}
    for name in parts:
        file = path / f"{name}.pt"
        try:
            if _digest(file) != manifest["sha256"].get(file.name):
                raise CheckpointError(
                    f"checkpoint file {file} is damaged: its SHA-256 is not the one in the manifest"
                )
            content = torch.load(file, map_location=device, weights_only=True)
            state[name] = _unpack(segments.attach(content, path, device))
        except FileNotFoundError as error:
            if file.exists():
                raise CheckpointError(f"checkpoint file {error.filename} is missing") from error
            raise CheckpointError(f"checkpoint {path} has no part {name!r}") from error
        except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"checkpoint file {file} cannot be read: {_reason(error)}") from error
    return state


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn whatever comes of putting a checkpoint's content in its place into a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        said = f"{type(error).__name__} {_reason(error)}" if isinstance(error, KeyError) else _reason(error)
        raise CheckpointError(f"checkpoint {path} does not fit this run: {said[:300]}") from error


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable manifest.json: {_reason(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") not in READABLE:
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise CheckpointError(f"checkpoint {path} has format version {version}, not one of {READABLE}")
    if not (type(manifest.get("env_step")) is int and isinstance(manifest.get("sha256"), dict)):
        raise CheckpointError(f"checkpoint {path}: its manifest.json lacks env_step or sha256")
    return manifest


def _reason(error: Exception) -> str:
    """Return what an error says, in one line and without the file's name."""
    said = error.strerror if isinstance(error, OSError) else None
    return said or " ".join(str(error).split()) or type(error).__name__


def _pack(value: Any) -> Any:
    """Wrap NumPy arrays as tensors, which can be read back without pickled code."""
    if isinstance(value, np.ndarray):
        return {_ARRAY_KEY: torch.from_numpy(value.copy())}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() > value.nbytes:
        return value.clone()  # torch.save writes the whole storage of a view
    if isinstance(value, Mapping):
        return {key: _pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(item) for item in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        if _ARRAY_KEY in value:
            return value[_ARRAY_KEY].cpu().numpy()
        return {key: _unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unpack(item) for item in value]
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
