"""How an agent's losses are computed: in which precision, and by which compiler.

Parameters and optimizers are float32 whatever is chosen; acting, resets and metrics never see any of it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.errors import ConfigError


@dataclass(frozen=True)
class Numerics:
    """Precision of the losses' products, and whether they are compiled.

    Attributes:
        precision: ``float32``: IEEE products; ``tf32``: TensorFloat-32 products on CUDA (10 bits of mantissa);
            ``bf16``: the losses run under autocast to bfloat16 (7 bits), output layers and all behind them in float32.
        compile: whether ``torch.compile`` fuses the operations of each loss and of its gradient.
    """

    precision: str = "float32"
    compile: bool = False

    def check(self, device: torch.device) -> None:
        """Raise ConfigError where ``device`` does not have the precision, or a compiler is asked for and missing."""
        if self.compile and (missing := missing_compiler(device)):
            raise ConfigError(f"--compile true: torch.compile needs {missing}; leave it at false")
        if self.precision == "tf32" and device.type != "cuda":
            raise ConfigError(
                f"--precision tf32: TensorFloat-32 is a format of CUDA devices, not of {device.type}; "
                "valid here: float32, bf16"
            )

    def prepare(self, loss: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        """Return ``loss`` as updates call it; with the default options that is ``loss`` itself."""
        if self.compile:
            # Not "reduce-overhead", which would add CUDA graphs of its own inside ours.
            loss = torch.compile(loss, dynamic=False)
        return _in_bfloat16(loss, device.type) if self.precision == "bf16" else loss

    def products(self) -> contextlib.AbstractContextManager[None]:
        """What lets float32 products be those of ``precision``, the gradients' included; to be entered repeatedly."""
        return _TensorFloat32() if self.precision == "tf32" else contextlib.nullcontext()


class _TensorFloat32(contextlib.AbstractContextManager[None]):
    def __enter__(self) -> None:
        set_products("tf32")

    def __exit__(self, *error: object) -> None:  # the flags belong to the process
        set_products("ieee")


FLOAT32 = Numerics()


def missing_compiler(device: torch.device) -> str | None:
    """What ``torch.compile`` lacks to generate code for ``device``; None if nothing."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"the C++ compiler {compiler} (or another one in the environment variable CXX)"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return f"Python's headers in {sysconfig.get_paths()['include']}"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    return None


def set_products(precision: str) -> None:
    """Compute float32 products on CUDA as ``ieee`` or ``tf32``, PyTorch's own choice for convolutions.

    PyTorch has two generations of flags for it. Its compiler reads the older ones, which raise where only the newer
    were set, so all are set.
    """
    is_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = is_tf32
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]  # set at run time by PyTorch


def _in_bfloat16(loss: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    @functools.wraps(loss)
    def lowered(*args: Any) -> Any:
        # Without the cache: a weight cast under no_grad must not come back where its gradient is wanted.
        with torch.autocast(device_type, torch.bfloat16, cache_enabled=False):
            return loss(*args)

    return lowered
