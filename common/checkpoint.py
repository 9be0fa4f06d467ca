"""Atomic checkpoints: a folder appears under its final name only when it is complete and on disk.

A checkpoint ``<kind>_<env step>/`` holds one ``.pt`` file per part, readable with ``torch.load(weights_only=True)``,
and ``manifest.json`` with the format version, the step and a SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORMAT_VERSION = 1
_ARRAY_KEY = "__ndarray__"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, or cannot be read; never replaced by a silent fresh start."""


def save(folder: Path, kind: str, env_step: int, parts: Mapping[str, Any]) -> Path:
    """Write ``parts`` (nested dicts and lists of tensors, arrays, numbers, text).

    Args:
        folder: where checkpoints live; created if missing.
        kind: ``step`` or ``best``.
        env_step: environment steps done.
        parts: one file each.

    Raises:
        CheckpointError: the disk is full or cannot be written; older checkpoints stay.
    """
    final = folder / f"{kind}_{env_step:012d}"
    partial, replaced = folder / f".{final.name}.partial", folder / f".{final.name}.replaced"
    find(folder, kind)  # brings back what a crash left half replaced
    for leftover in folder.glob(".*.partial"):
        shutil.rmtree(leftover)
    partial.mkdir(parents=True)
    digests = {}
    for name, part in parts.items():
        path = partial / f"{name}.pt"
        try:
            torch.save(_pack(part), path)
            _sync(path)
        except (OSError, RuntimeError) as error:  # PyTorch's error for a full disk does not say so
            free = shutil.disk_usage(folder).free
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"cannot write checkpoint {final}, {free / 1e6:,.1f} MB were free: {str(error).splitlines()[0]}"
            ) from error
        digests[path.name] = _digest(path)
    manifest = {"format_version": FORMAT_VERSION, "env_step": env_step, "sha256": digests}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1))
    _sync(partial / "manifest.json")
    _sync(partial)
    if final.exists():  # a second one at the same step, such as a better agent right after a reset
        os.replace(final, replaced)
    os.replace(partial, final)
    _sync(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return final


def prune(folder: Path, kind: str, keep: int) -> None:
    """Delete all checkpoints of ``kind`` but the ``keep`` newest, at least one."""
    for old in find(folder, kind)[: -max(keep, 1)]:
        shutil.rmtree(old)


def find(folder: Path, kind: str) -> list[Path]:
    """Return the checkpoints of ``kind``, oldest first."""
    for replaced in folder.glob(".*.replaced"):
        final = folder / replaced.name.removeprefix(".").removesuffix(".replaced")
        if final.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, final)
    pattern = re.compile(rf"{kind}_\d{{12}}")
    return sorted(p for p in folder.glob(f"{kind}_*") if pattern.fullmatch(p.name))


def discard_after(folder: Path, kind: str, env_step: int) -> None:
    """Delete the checkpoints of ``kind`` beyond ``env_step``, where a resumed run will come again."""
    for path in find(folder, kind):
        if int(path.name.removeprefix(f"{kind}_")) > env_step:
            shutil.rmtree(path)


def load(path: Path, parts: Iterable[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read the named parts, tensors onto ``device``, and check them against the manifest.

    Raises:
        CheckpointError: a file is missing, damaged, or of another format version.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} has no readable manifest.json: {error}") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {manifest.get('format_version')}, not {FORMAT_VERSION}"
        )
    state: dict[str, Any] = {"env_step": int(manifest["env_step"])}
    for name in parts:
        file = path / f"{name}.pt"
        if not file.exists():
            raise CheckpointError(f"checkpoint {path} has no part {name!r}")
        if _digest(file) != manifest["sha256"].get(file.name):
            raise CheckpointError(
                f"checkpoint file {file} is damaged: its SHA-256 is not the one in the manifest"
            )
        try:
            state[name] = _unpack(torch.load(file, map_location=device, weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"checkpoint file {file} cannot be read: {error}") from error
    return state


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
