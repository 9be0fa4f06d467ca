"""A pretended CUDA device, so that CUDA code runs without a card: real values, and a log of what the host waits for.

Tensors "on the device" lie in the CPU's memory, and their storages are remembered. ``tensor.device`` and its like say
``cuda:0`` of them: code takes its branches for CUDA. Every operation below autograd passes a dispatch mode, which

- raises ``DeviceMix`` where tensors of both devices meet and CUDA would not take them,
- counts operations as kernels, and notes with its line whatever makes the host wait, or copies from memory that is not
  pinned,
- records the operations inside ``torch.cuda.graph``, where waits and such copies raise ``NotCapturable``. A replay
  repeats them on the recorded addresses and constants, as a graph does.

It cannot see which kernels exist, what libraries choose, memory, time, or other threads.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import agents.tracing
import fire.ambient

aten = torch.ops.aten
ROOT = str(Path(__file__).parents[1]) + "/"
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Operations whose answer the host needs before it goes on, and linear algebra that reports errors to it.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}
WAITING |= {"_linalg_svd", "_linalg_eigh", "_linalg_solve_ex", "linalg_qr", "linalg_lstsq", "linalg_cholesky"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# Elementwise operations take numbers from CPU tensors without dimensions; these take tensors of one device alone.
ONE_DEVICE = (
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "cat",
    "stack",
    "gather",
    "index_select",
    "index_copy",
    "convolution",
)
# Operations that start no kernel: they look at a tensor's memory, or reserve some.
FREE = {
    "detach",
    "alias",
    "view",
    "_unsafe_view",
    "expand",
    "t",
    "transpose",
    "permute",
    "slice",
    "select",
    "unsqueeze",
}
FREE |= {
    "squeeze",
    "unbind",
    "split",
    "split_with_sizes",
    "as_strided",
    "diagonal",
    "_reshape_alias",
    "lift_fresh",
}
FREE |= {
    "set_",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_local_scalar_dense",
}


class DeviceMix(AssertionError):
    """Tensors of two devices in one operation."""


class NotCapturable(AssertionError):
    """What a graph cannot record."""


class Pretended(contextlib.ExitStack):
    """A CUDA device for the time of the context.

    Attributes:
        waits: what the host waited for, with its line, and how often.
        uploads: copies to the device from memory that is not pinned, likewise.
        kernels: operations started one by one, or replayed graphs, by name.
        graphs: number of operations of each graph recorded.
        streams: number of streams made.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on_device, self._pinned = _Storages(), _Storages()
        self.recording: list | None = None
        self.to_host = False  # the operation now is a copy to the host
        self._mode = _Mode(self)
        self.streams = 0
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.waits, self.uploads, self.kernels = (collections.Counter() for _ in range(3))
        self.graphs: list[int] = []

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor in self._on_device

    def wait(self, what: str) -> None:
        if self.recording is not None:
            raise NotCapturable(f"{what} waits for the device at {_line()}")
        self.waits[f"{what} at {_line()}"] += 1

    def upload(self, tensor: torch.Tensor) -> None:
        if self.recording is not None:
            raise NotCapturable(
                f"{tuple(tensor.shape)} is copied from memory that is not pinned at {_line()}"
            )
        self.uploads[f"{tuple(tensor.shape)} at {_line()}"] += 1

    def __enter__(self) -> Pretended:
        super().__enter__()
        # Recording collects garbage first, which need not go through all that was there before.
        gc.freeze()
        self.callback(gc.unfreeze)
        gpu = self
        plain = torch._C.TensorBase

        def answer(name, value):
            def get(tensor):
                inner = _inner(tensor)
                return (
                    value
                    if type(inner) in _PLAIN and gpu.holds(inner)
                    else getattr(plain, name).__get__(tensor)
                )

            self._patch(torch.Tensor, name, property(get))

        answer("device", CUDA)
        answer("is_cuda", True)
        answer("is_cpu", False)
        cpu, to, numpy, tolist = plain.cpu, plain.to, plain.numpy, plain.tolist
        deepcopy, as_tensor, tensor_of = torch.Tensor.__deepcopy__, torch.as_tensor, torch.tensor

        def moved(tensor, *args, copy=False, **kwargs):
            if args and isinstance(args[0], torch.Tensor):
                args = (args[0].device, args[0].dtype, *args[1:])
            names = (
                2 if args and isinstance(args[0], torch.dtype) else 3
            )  # before the one that _parse_to refuses
            copy, args = copy or any(args[names:]), args[:names]
            device, dtype, asynchronous, layout = torch._C._nn._parse_to(*args, **kwargs)
            dtype, layout = dtype or tensor.dtype, layout or torch.preserve_format
            if device is None or (device.type == "cuda") == gpu.holds(_inner(tensor)):
                return to(tensor, dtype, asynchronous, copy, memory_format=layout)
            options = {"device": device, "non_blocking": asynchronous, "memory_format": layout}
            gpu.to_host = device.type == "cpu"
            try:
                return aten._to_copy(tensor, dtype=dtype, **options)
            finally:
                gpu.to_host = False

        def on_host(read):
            def checked(tensor, *args, **kwargs):
                if gpu.holds(_inner(tensor)):
                    raise TypeError(f"can't convert cuda:0 device type tensor to numpy at {_line()}")
                return read(tensor, *args, **kwargs)

            return checked

        def as_list(tensor):
            if gpu.holds(tensor):
                gpu.wait("tolist")
            return tolist(tensor)

        def made(make):
            def build(data, *args, device=None, **kwargs):
                if device is None or torch.device(device).type != "cuda":
                    return make(data, *args, device=device, **kwargs)
                return make(data, *args, **kwargs).to(CUDA)

            return build

        def copied(tensor, memo):
            with _disable_current_modes():
                result = deepcopy(tensor, memo)
            if gpu.holds(tensor):
                gpu._on_device.add(result)
            return result

        self._patch(torch.Tensor, "to", moved)
        self._patch(
            torch.Tensor, "cpu", lambda tensor: moved(tensor, CPU) if gpu.holds(tensor) else cpu(tensor)
        )
        self._patch(torch.Tensor, "cuda", lambda tensor, device=None: moved(tensor, CUDA))
        self._patch(torch.Tensor, "numpy", on_host(numpy))
        self._patch(torch.Tensor, "__array__", on_host(torch.Tensor.__array__))
        self._patch(torch.Tensor, "tolist", as_list)
        self._patch(torch.Tensor, "__deepcopy__", copied)
        self._patch(torch, "as_tensor", made(as_tensor))
        self._patch(torch, "tensor", made(tensor_of))
        self._patch_cuda()
        self._patch_modes()
        self.enter_context(self._mode)
        return self

    def _patch(self, owner, name, value) -> None:
        self.enter_context(mock.patch.object(owner, name, value))

    def _patch_cuda(self) -> None:
        state = torch.zeros(16, dtype=torch.uint8)
        answers = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda device=None: "pretended",
            "synchronize": lambda device=None: self.wait("synchronize"),
            "mem_get_info": lambda device=None: (80 << 30, 80 << 30),
            "reset_peak_memory_stats": lambda device=None: None,
            "max_memory_allocated": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "get_rng_state": lambda device=None: state,
            "set_rng_state": lambda state, device=None: None,
            "is_current_stream_capturing": lambda: self.recording is not None,
            "current_stream": lambda device=None: mock.MagicMock(),
            "stream": lambda stream: contextlib.nullcontext(),
            "Event": _Event,
            "Stream": self._stream,
            "CUDAGraph": lambda: _Graph(self),
            "graph": lambda graph, stream=None: graph.recorded(),
        }
        for name, value in answers.items():
            self._patch(torch.cuda, name, value)
        # From PyTorch 2.14 on, Adam asks here whether a graph is being recorded.
        stream = mock.MagicMock()
        stream.is_capturing = torch.cuda.is_current_stream_capturing
        self._patch(torch.accelerator, "current_stream", lambda device=None: stream)

    def _stream(self) -> mock.MagicMock:
        self.streams += 1
        return mock.MagicMock()

    def _patch_modes(self) -> None:
        # Autocast to the device's types is the CPU's, since the tensors are.
        cast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype
        self._patch(torch, "autocast", lambda kind, *args, **options: cast("cpu", *args, **options))
        self._patch(torch, "is_autocast_enabled", lambda kind="cpu": enabled("cpu"))
        self._patch(torch, "get_autocast_dtype", lambda kind: dtype("cpu"))
        # A reset refuses to work under a dispatch mode, and this one is no user's.
        depth = torch._C._len_torch_dispatch_stack
        inside = _With(torch._C, _len_torch_dispatch_stack=lambda: depth() - 1)
        self._patch(fire.ambient, "torch", _With(torch, _C=inside))
        # Tracing works on shapes; what it finds runs on the device.
        self._patch(agents.tracing, "make_fx", self._traced(agents.tracing.make_fx))

    def _traced(self, make_fx):
        def make(function, **options):
            def trace(*tensors):
                devices = {
                    name: getattr(torch._C.TensorBase, name) for name in ("device", "is_cuda", "is_cpu")
                }
                with _disable_current_modes(), contextlib.ExitStack() as stack:
                    for name, plain in devices.items():
                        stack.enter_context(mock.patch.object(torch.Tensor, name, plain))
                    module = make_fx(function, **options)(*tensors)
                if not any(map(self.holds, tensors)):
                    return module
                for node in module.graph.nodes:
                    if node.kwargs.get("device") is not None:
                        node.update_kwarg("device", CUDA)
                    if isinstance(seen := node.meta.get("val"), torch.Tensor):
                        node.meta["val"] = SimpleNamespace(shape=seen.shape, dtype=seen.dtype, device=CUDA)
                return module

            return trace

        return make


class _With:
    """A module with some of its names replaced."""

    def __init__(self, module, **names) -> None:
        self._module, self._names = module, names

    def __getattr__(self, name):
        return self._names[name] if name in self._names else getattr(self._module, name)


class _Storages:
    """A set of tensors' storages; weak references keep their addresses from being used twice."""

    def __init__(self) -> None:
        self._known: dict[int, StorageWeakRef] = {}

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        reference = StorageWeakRef(storage)
        self._known[reference.cdata] = reference
        if len(self._known) > 50_000:
            self._known = {key: r for key, r in self._known.items() if not r.expired()}

    def __contains__(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._known


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NUMBERS = {int, float, bool, str, type(None)}


def _inner(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside the wrappers of ``torch.func``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def _line() -> str:
    """The innermost line of the repository that is running, this file aside."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and name != __file__ and "/.venv/" not in name:
            return f"{name.removeprefix(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


class _Mode(TorchDispatchMode):
    def __init__(self, gpu: Pretended) -> None:
        super().__init__()
        self.gpu = gpu
        self._names: dict = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled under this mode, and to keep the compiler out costs more than the mode

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        gpu, kwargs = self.gpu, dict(kwargs or {})
        given = tensors_in((args, kwargs))
        for tensor in given:
            if type(tensor) not in _PLAIN:
                return function(*args, **kwargs)
        if (name := self._names.get(function)) is None:
            name = self._names[function] = function._schema.name.removeprefix("aten::")
        there = [t for t in given if t in gpu._on_device]
        device = kwargs.get("device")
        # Autograd names the CPU for what it makes beside a tensor on the device.
        on_device = bool(there) or (device is not None and torch.device(device).type == "cuda")
        if name in ("copy_", "set_"):
            on_device = gpu.holds(args[0])
        elif gpu.to_host:
            on_device = False
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
        pinned = kwargs.get("pin_memory") and kwargs.pop("pin_memory")
        if there:
            self._check(name, args, kwargs, given, there, on_device)
        elif on_device and name == "_to_copy":
            gpu.upload(args[0])
        result = function(*args, **kwargs)
        for tensor in tensors_in(result):
            if on_device and tensor not in gpu._on_device and not any(tensor is t for t in given):
                gpu._on_device.add(tensor)
            if pinned:
                gpu._pinned.add(tensor)
        if on_device or there:
            if name not in FREE:
                gpu.kernels[name] += 1
            if gpu.recording is not None:
                gpu.recording.append((function, args, kwargs, result))
        return result

    def _check(self, name, args, kwargs, given, there, on_device) -> None:
        gpu = self.gpu
        if name in WAITING:
            gpu.wait(name)
        if name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
            gpu.wait("a boolean index")
        if name in ("_fused_adam_", "_fused_adamw_"):
            self._check_strides(*args[:4])
        if name == "_to_copy" and not on_device:
            gpu.wait("copy to the host")
            return
        if len(there) == len(given):
            return
        here = [t for t in given if not gpu.holds(t)]
        if name in ("copy_", "_foreach_copy_"):
            pairs = [args[:2]] if name == "copy_" else zip(*args[:2], strict=True)
            asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
            for destination, source in pairs:
                if gpu.holds(destination) and not gpu.holds(source):
                    if not (asynchronous and source in gpu._pinned):
                        gpu.upload(source)
                elif gpu.holds(source) and not gpu.holds(destination):
                    gpu.wait("copy to the host")
        elif name in INDEXING and gpu.holds(args[0]):
            gpu.upload(here[0])
        elif any(t.dim() for t in here) or name.removesuffix("_").startswith(ONE_DEVICE):
            shapes = [tuple(t.shape) for t in here]
            raise DeviceMix(f"{name}: tensors {shapes} on the CPU next to others on cuda:0 at {_line()}")

    @staticmethod
    def _check_strides(*lists) -> None:
        """Fused optimizers on CUDA insist on equal strides of a parameter, its gradient and its moments."""
        for group in zip(*lists, strict=True):
            strides = {tuple(s for s, n in zip(t.stride(), t.shape, strict=True) if n != 1) for t in group}
            if len(strides) > 1:
                raise DeviceMix(f"fused optimizer: strides {strides} at {_line()}")


class _Event:
    """What ``torch.cuda.Event`` does on a device that is never behind; it notes no wait, since it is asked late."""

    def __init__(self, **options) -> None:
        self._time = 0.0

    def record(self, stream=None) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end: _Event) -> float:
        return 1e3 * (end._time - self._time)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class _Graph:
    """What ``torch.cuda.CUDAGraph`` does."""

    def __init__(self, gpu: Pretended) -> None:
        self._gpu = gpu

    @contextlib.contextmanager
    def recorded(self):
        gpu = self._gpu
        gpu.recording = self._operations = []
        before = gpu.kernels.total()
        try:
            yield
        finally:
            gpu.recording = None
            gpu.graphs.append(gpu.kernels.total() - before)

    def replay(self) -> None:
        self._gpu.kernels["graph"] += 1
        with _disable_current_modes():
            repeat(self._operations)


def tensors_in(values) -> list[torch.Tensor]:
    """The tensors in an operation's arguments or result, in order."""
    found: list[torch.Tensor] = []
    _gather((values,), found)
    return found


def _gather(values, found: list[torch.Tensor]) -> None:
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            found.append(value)
        elif kind in _NUMBERS:
            continue
        elif isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict):
            _gather(value.values(), found)
        elif isinstance(value, list | tuple):
            _gather(value, found)


def repeat(operations) -> None:
    """Run recorded operations ``(function, args, kwargs, result)`` again, on the same addresses and constants."""
    with torch.no_grad():
        for function, args, kwargs, before in operations:
            given = {t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))}
            now = function(*args, **kwargs)
            for old, new in zip(tensors_in(before), tensors_in(now), strict=True):
                # What shares memory with an argument is a view, or was written in place.
                if old.untyped_storage().data_ptr() not in given:
                    old.copy_(new)
