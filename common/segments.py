"""Large tensors as files that checkpoints share: equal content is one file on disk, under a hard link in each of them.

A tensor is cut into segments of whole rows. A segment's file is named by the SHA-256 of its content, so what an earlier
checkpoint holds already is found by name, linked, and not written again. Whoever deletes a checkpoint takes away names,
never content that another one has. No file that exists is ever opened for writing here: new ones are created
exclusively and made read-only. Where the file system has no hard links, every checkpoint has its own copy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.files import sync

SEGMENT_BYTES = 1 << 22
SMALLEST_BYTES = 1 << 18  # a smaller tensor stays where it is
SUFFIX = ".segment"
_KEY = "__segments__"


def detach(value: Any, folder: Path, sources: Sequence[Path]) -> tuple[Any, dict[str, str]]:
    """Store the large tensors in nested dicts and lists as segments.

    Args:
        value: nested dicts and lists of tensors, numbers, text.
        folder: of the checkpoint that is being written.
        sources: checkpoints whose segments may be shared.

    Returns:
        ``value`` with a reference in place of each large tensor, and by file name the SHA-256 of every segment.

    Raises:
        OSError: a segment cannot be written.
    """
    digests: dict[str, str] = {}

    def walk(item: Any) -> Any:
        if isinstance(item, Tensor) and item.dim() and item.nbytes >= SMALLEST_BYTES:
            names = [_store(piece, folder, sources) for piece in _cut(item)]
            digests.update({name: name.removesuffix(SUFFIX) for name in names})
            return {_KEY: names, "dtype": str(item.dtype).removeprefix("torch."), "shape": list(item.shape)}
        if isinstance(item, Mapping):
            return {key: walk(each) for key, each in item.items()}
        return [walk(each) for each in item] if isinstance(item, list) else item

    return walk(value), digests


def attach(value: Any, folder: Path, device: torch.device | str) -> Any:
    """Return what ``detach`` was given, tensors that were segments onto ``device``.

    Raises:
        OSError: a segment cannot be read.
        ValueError: it is damaged; its content is not what its name says.
    """
    if isinstance(value, dict):
        if _KEY in value:
            return _read(value, folder).to(device)
        return {key: attach(item, folder, device) for key, item in value.items()}
    return [attach(item, folder, device) for item in value] if isinstance(value, list) else value


def _cut(tensor: Tensor) -> list[Tensor]:
    """Return its bytes in pieces that end at the same rows however many rows there are."""
    row_bytes = max(1, tensor.nbytes // len(tensor))
    pieces = tensor.detach().split(max(1, SEGMENT_BYTES // row_bytes))
    return [piece.contiguous().view(-1).view(torch.uint8) for piece in pieces]


def _store(piece: Tensor, folder: Path, sources: Sequence[Path]) -> str:
    content = piece.cpu().numpy().data
    name = hashlib.sha256(content).hexdigest() + SUFFIX
    path = folder / name
    if path.exists() or _link(path, len(content), sources):
        return name
    with path.open("xb") as file:
        file.write(content)
    path.chmod(0o444)
    sync(path)
    return name


def _link(path: Path, size: int, sources: Sequence[Path]) -> bool:
    """Give a segment of one of ``sources`` the name ``path`` too, where there is one and the file system can."""
    for source in sources:
        try:
            if (source / path.name).stat().st_size == size:
                os.link(source / path.name, path)
                return True
        except OSError:  # not there, deleted since, no links on this file system or none to it, or too many
            continue
    return False


def _read(reference: Mapping[str, Any], folder: Path) -> Tensor:
    tensor = torch.empty(reference["shape"], dtype=getattr(torch, reference["dtype"]))
    place, begin = tensor.view(-1).view(torch.uint8).numpy().data, 0
    for name in reference[_KEY]:
        with (folder / name).open("rb") as file:
            end = begin + os.fstat(file.fileno()).st_size
            read = file.readinto(place[begin:end])
        if read < end - begin or hashlib.sha256(place[begin:end]).hexdigest() + SUFFIX != name:
            raise ValueError(f"{name} is damaged: its SHA-256 is not its name")
        begin = end
    if begin != len(place):
        raise ValueError(f"its segments have {begin} bytes, not {len(place)}")
    return tensor
