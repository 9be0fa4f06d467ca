"""The memory of tensors: whether it can be written to, which tensors share it, and their way to the host."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)


def region(tensor: Tensor) -> Hashable:
    """A key that tensors have in common when they are the same elements in memory, whatever the order of dimensions.

    Only as good as the tensor lives: memory that was given back is used again. Tensors without memory of their own
    (lazy, traced, without elements) are keyed as objects.
    """
    if isinstance(tensor, nn.parameter.UninitializedParameter) or torch.compiler.is_compiling():
        return id(tensor)
    try:
        start = tensor.data_ptr()
    except RuntimeError:  # inside vmap, or a fake tensor
        return id(tensor)
    if not start:
        return id(tensor)
    return (str(tensor.device), start, tensor.element_size(), *_merged(tensor))


def obstacle(tensor: Tensor) -> str | None:
    """Why ``tensor`` cannot be written to in place; None if it can."""
    if isinstance(tensor, nn.parameter.UninitializedParameter):
        return "is a lazy module without weights yet; run it once on a batch first"
    if tensor.is_meta:
        return "is on the meta device and has no values yet; materialise it first"
    if tensor.is_inference():
        return "was made under inference_mode and cannot be written to; clone it outside"
    if type(tensor.detach()) is not Tensor:
        return f"is a {type(tensor.detach()).__name__}, which cannot be written to as an ordinary tensor"
    if tensor.layout is not torch.strided:
        return f"has the layout {tensor.layout} instead of torch.strided"
    if not tensor.numel():
        return None
    if tensor.untyped_storage().nbytes() < tensor.element_size() * (
        tensor.storage_offset() + _length(tensor)
    ):
        return "has no memory behind it (its storage was freed)"
    if _overlaps_itself(tensor):
        return "is expanded or overlaps itself in memory; clone it first"
    return None


def first_overlap(tensors: Iterable[tuple[str, Tensor]]) -> tuple[str, str] | None:
    """The names of the first two of ``tensors`` that share some elements in memory, if any do."""
    spans = []
    for name, tensor in tensors:
        if tensor.numel() and isinstance(region(tensor), tuple):
            start = tensor.data_ptr()
            stop = start + tensor.element_size() * _length(tensor)
            spans.append((str(tensor.device), start, stop, name, tensor))
    spans.sort(key=lambda span: span[:2])
    active: list[tuple[str, int, int, str, Tensor]] = []
    for span in spans:
        active = [other for other in active if other[0] == span[0] and other[2] > span[1]]
        for other in active:
            if bool(torch.isin(_addresses(span[4]), _addresses(other[4])).any()):
                return other[3], span[3]
        active.append(span)
    return None


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, all those of one GPU in one transfer: float64 there, where that holds their values."""
    host = list(tensors)
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        there = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        flat = torch.cat([tensors[i].flatten().double() for i in there]).cpu()
        for i, part in zip(there, flat.split([tensors[i].numel() for i in there]), strict=True):
            host[i] = part.reshape(tensors[i].shape)
    return host


def as_numbers(figures: Mapping[Key, Tensor]) -> dict[Key, float]:
    """Tensors of one element as numbers, those of one device in one transfer."""
    by_device: dict[torch.device, list[Key]] = defaultdict(list)
    for key, value in figures.items():
        by_device[value.device].append(key)
    numbers: dict[Key, float] = {}
    for keys in by_device.values():
        values = torch.stack([figures[key].double() for key in keys]).tolist()
        numbers |= dict(zip(keys, values, strict=True))
    return {key: numbers[key] for key in figures}


def _merged(tensor: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of the dimensions from the innermost, neighbours that are one run of memory merged."""
    merged: list[tuple[int, int]] = []
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = (merged[-1][0], merged[-1][1] * size)
        else:
            merged.append((stride, size))
    return merged


def _length(tensor: Tensor) -> int:
    """Elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _overlaps_itself(tensor: Tensor) -> bool:
    merged = _merged(tensor)
    if all(size * stride <= outer for (stride, size), (outer, _) in itertools.pairwise(merged)):
        return any(stride == 0 for stride, _ in merged)
    return len(_addresses(tensor).unique()) < tensor.numel()


def _addresses(tensor: Tensor) -> Tensor:
    """Address of every element, int64 on the CPU."""
    places = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + torch.arange(size) * stride * tensor.element_size()
    return places.flatten() + tensor.data_ptr()
