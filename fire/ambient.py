"""PyTorch's ambient modes (autocast, default device, inference mode, ...), kept out of what decides about weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_ambient_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: ``function`` runs without gradients and computes what it would compute outside of every mode.

    Left for the time of the call: inference mode, autocast, default device and other function modes, reduced precision
    of float32 products, compilation of the caller.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():  # the caller is being traced: this call is not
            return torch.compiler.disable(run)(*args, **kwargs)
        with _no_modes():
            return function(*args, **kwargs)

    return run


def changes_weights(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator like :func:`outside_ambient_modes`, for functions that write to weights.

    Raises:
        RuntimeError: inside ``torch.func`` transforms (vmap, grad) and dispatch modes (fake tensors, tracing), where
            tensors may not be what they seem; nothing has been touched then.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(run)(*args, **kwargs)
        name = f"{function.__name__} changes weights and cannot run"
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise RuntimeError(f"{name} inside torch.func transforms (vmap, grad)")
        if (depth := torch._C._len_torch_dispatch_stack()) > 0:
            mode = type(torch._C._get_dispatch_stack_at(depth - 1)).__name__
            raise RuntimeError(f"{name} under the dispatch mode {mode}")
        with _no_modes():
            return function(*args, **kwargs)

    return run


@contextmanager
def _no_modes() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    modes = [torch._C._pop_torch_function_stack() for _ in range(torch._C._len_torch_function_stack())]
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            for device in ("cpu", "cuda", "mps", "xpu"):
                if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
            yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)
        for mode in reversed(modes):
            torch._C._push_on_torch_function_stack(mode)
