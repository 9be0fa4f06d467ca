"""The one place that says in one line what went wrong outside the program: files, disks, memory, what was asked for."""

from __future__ import annotations

import re

import torch

from common.checkpoint import CheckpointError
from common.files import RunFileError
from common.video import VideoError
from configs.errors import ConfigError
from envs import EnvError
from training.due import UnknownMetric

# Their messages are lines for the user already.
OURS = (CheckpointError, ConfigError, EnvError, RunFileError, UnknownMetric, VideoError)
# How PyTorch, which has no class for it, says that a tensor is too large for this machine or for any.
_TOO_LARGE = re.compile(
    r"allocate memory|alloc_cpu|out of memory|overflow|too large|Invalid (size|buffer)", re.IGNORECASE
)


def one_line(error: Exception) -> str | None:
    """Return what a user should read about ``error``; None where it is a fault of ours, which needs its traceback."""
    said = " ".join(str(error).split())
    if isinstance(error, OURS):
        return said
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"cannot read or write {where}{error.strerror or said}"
    sizes = (RuntimeError, TypeError, ValueError, OverflowError)
    if isinstance(error, MemoryError) or (isinstance(error, sizes) and _TOO_LARGE.search(said)):
        return f"not enough memory for these sizes: {said[:200] or type(error).__name__}"
    return None


def device_failure(error: Exception) -> str | None:
    """Return what a user should read where a GPU ran out of memory or failed; None for all other errors."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, torch.OutOfMemoryError):
        return f"not enough memory on the GPU: {said}"
    if isinstance(error, torch.AcceleratorError):
        return f"the GPU failed: {said}"
    return None
