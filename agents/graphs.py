"""CUDA graphs: work of many small kernels recorded once and replayed with one launch.

A graph holds addresses, not tensors. What goes in and comes out must stay where it is (``StaticInputs``), and a graph
is recorded anew when a parameter, a buffer or a moment of an optimizer has moved (``Places``), as after a
structural reset or with ``optimizer: rebuild``. Resets that write in place reach a recorded graph by themselves.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from common.files import warn_once
from configs.schema import Config

if TYPE_CHECKING:
    from agents.base import Agent

# Runs on a side stream before a capture, the number of PyTorch's CUDA semantics notes ("Whole-network capture").
WARM_UP = 3
# Bytes between the starts of packed tensors: the alignment of CUDA's own allocations.
ALIGNMENT = 256
# How far a graph may be from the eager calls, of a tensor's change and of losses and actions: libraries may choose
# other kernels while recording, and Adam's first steps are of full size however small the gradient, rounding included.
CHANGE_TOLERANCE, VALUE_TOLERANCE = 0.1, 1e-2


class Side:
    """Side: the stream on which one owner of graphs records all of them; it exists once something is recorded.

    A graph that is destroyed takes the cuBLAS workspaces of its stream along (PyTorch 2.13), so whoever shares a stream
    must drop all graphs together. A stream for each graph would run out: PyTorch deals out 32 of them in turn.
    """

    @functools.cached_property
    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream()


# Runs the function given once or more to make it ready, and returns what runs it again on the same addresses.
Capture = Callable[[Callable[[], Any], Side], Callable[[], Any]]


def capture(body: Callable[[], Any], side: Side) -> Callable[[], Any]:
    """Record the kernels of ``body`` on the present CUDA device; returns what replays them and hands out its result.

    ``body`` runs a few times first. It must launch the same kernels on the same addresses each time, without waiting
    for the device. The result's tensors are overwritten by the next replay.

    Args:
        body: the function.
        side: of the owner of the graph.

    Raises:
        RuntimeError: ``body`` does what a graph cannot hold, or memory runs out.
    """
    stream = side.stream
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with _no_garbage_collection(), torch.cuda.graph(graph, stream=stream):
        result = body()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collect garbage now and not inside: destroying another graph would break the recording."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def warn_of_fallback(reason: str) -> None:
    """Say, once for each reason, that a run goes on without graphs."""
    warn_once(f"CUDA graphs: {reason}; the run goes on kernel by kernel, as with --cuda-graphs false")


def first_cause(error: BaseException) -> str:
    """The first line of the error behind ``error``: ending a broken recording raises another one."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pick_capture(config: Config, device: torch.device) -> Capture | None:
    """What records CUDA graphs in a run on ``device``; None for a run without."""
    return capture if config.cuda_graphs and device.type == "cuda" else None


class StaticInputs:
    """Tensors at fixed addresses on a device, filled from the host in one copy of pinned memory.

    Args:
        examples: CPU tensors of the shapes and types to come.
        device: where ``tensors`` live.
    """

    def __init__(self, examples: Sequence[Tensor], device: torch.device) -> None:
        starts, size = [], 0
        for example in examples:
            starts.append(size)
            size += -(-example.nbytes // ALIGNMENT) * ALIGNMENT
        on_cuda = device.type == "cuda"
        self._source = torch.empty(size, dtype=torch.uint8, pin_memory=on_cuda)
        self._destination = torch.empty(size, dtype=torch.uint8, device=device)
        self._sent = torch.cuda.Event() if on_cuda else None

        def views(memory: Tensor) -> list[Tensor]:
            parts = [memory[start : start + e.nbytes] for start, e in zip(starts, examples, strict=True)]
            return [part.view(e.dtype).view(e.shape) for part, e in zip(parts, examples, strict=True)]

        self._host = views(self._source)
        self.tensors = views(self._destination)

    def fill(self, values: Sequence[Tensor]) -> None:
        """Copy ``values`` into ``tensors``, in the order of the present stream."""
        if self._sent is not None:
            self._sent.synchronize()  # the copy before may not have read the pinned memory yet
        for host, value in zip(self._host, values, strict=True):
            host.copy_(value)
        self._destination.copy_(self._source, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


def learning_tensors(agents: Iterable[Agent]) -> list[Tensor]:
    """Everything that an update of ``agents`` may read or write between two calls: networks and optimizers."""
    found: dict[int, Tensor] = {}
    for agent in agents:
        for module in (getattr(agent, name) for name in agent.modules):
            found.update((id(t), t) for t in (*module.parameters(), *module.buffers()))
        for optimizer in (getattr(agent, name) for name in agent.optimizers):
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                found.update((id(t), t) for t in optimizer.state.get(parameter, {}).values())
    return list(found.values())


def addresses(tensors: Iterable[Tensor]) -> list[tuple[Any, ...]]:
    """Where tensors lie and what an operation on them depends on beside their values."""
    return [(t.data_ptr(), t.shape, t.requires_grad) for t in tensors]


class Places:
    """Where everything lies that an update of ``agents`` may read or write, as it is now.

    Asked before every block of updates, so it does not search all modules again, which takes the host as long as the
    block takes a GPU: structural resets show in the optimizers' lists of parameters, all else in addresses.
    """

    def __init__(self, agents: Iterable[Agent]) -> None:
        agents = list(agents)
        self._optimizers = [getattr(agent, name) for agent in agents for name in agent.optimizers]
        self._lists = self._parameter_lists()
        # Held, so that no other tensor can come to lie where one of these did.
        self._tensors = learning_tensors(agents)
        self._addresses = self._look()

    def unmoved(self) -> bool:
        """Whether all of it still lies there."""
        lists = self._parameter_lists()
        same = len(lists) == len(self._lists) and all(map(operator.is_, lists, self._lists))
        return same and self._look() == self._addresses

    def _parameter_lists(self) -> list[list[Tensor]]:
        return [group["params"] for optimizer in self._optimizers for group in optimizer.param_groups]

    def _look(self) -> list[int]:
        states = (
            state
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for state in map(optimizer.state.get, group["params"])
            if state
        )
        moments = [tensor.data_ptr() for state in states for tensor in state.values()]
        return [tensor.data_ptr() for tensor in self._tensors] + moments


@contextlib.contextmanager
def rollback(agents: Sequence[Agent]) -> Iterator[None]:
    """Undo what updates inside do to ``agents``; optimizer state that they create stays, at its start of zero."""
    before = [(t, t.detach().clone()) for t in learning_tensors(agents)]
    steps = [agent.update_step for agent in agents]
    try:
        yield
    finally:
        known = {id(t) for t, _ in before}
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
            for tensor in learning_tensors(agents):
                if id(tensor) not in known:
                    tensor.zero_()
        for agent, step in zip(agents, steps, strict=True):
            agent.update_step = step


def agree(
    agents: Sequence[Agent],
    eager: Callable[[], Mapping[str, Tensor]],
    replay: Callable[[], Mapping[str, Tensor]],
) -> bool:
    """Whether the same updates change ``agents`` alike eagerly and as a graph, rounding aside; both are undone.

    Args:
        agents: with all their optimizer state.
        eager, replay: make the updates and return their losses.
    """
    tensors = learning_tensors(agents)
    before = [tensor.detach().clone() for tensor in tensors]
    seen = []
    for updates in (eager, replay):
        with rollback(agents):
            losses = [value.detach().clone() for value in updates().values()]
            seen.append((losses, [tensor.detach().clone() for tensor in tensors]))
    (losses, after), (other_losses, other_after) = seen
    close = [
        (b - a).abs().max() <= VALUE_TOLERANCE * (1 + a.abs().max())
        for a, b in zip(losses, other_losses, strict=True)
    ]
    for old, a, b in zip(before, after, other_after, strict=True):
        if a.is_floating_point() and a.numel():
            rounding = torch.finfo(a.dtype).eps * _norm(a)
            close.append(_norm(b - a) <= CHANGE_TOLERANCE * _norm(a - old) + rounding)
    return bool(torch.stack(close).all())


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


class HostCall:
    """A function of tensors, recorded as a graph, called with arrays of the host and returning one.

    Each combination of shapes becomes a graph: one copy in, one launch, one copy out. Where one cannot be recorded, or
    does not compute what the function does, calls go on without graphs.

    Args:
        function: of tensors on the device, returning one tensor; without gradient or random numbers.
        tensors: returns all others that the function reads.
        device: where they live.
        capture: makes a graph of a function.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        tensors: Callable[[], Iterable[Tensor]],
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._function = function
        self._tensors = tensors
        self._device = device
        self._capture = capture
        self._side = Side()
        self._recorded: dict[Any, tuple[StaticInputs, Callable[[], Tensor]]] = {}
        self._addresses: list[tuple[Any, ...]] = []
        self._works = True

    def __call__(self, *arrays: np.ndarray | Tensor) -> np.ndarray:
        return self.launch(*arrays).cpu().numpy()

    @torch.inference_mode()
    def launch(self, *arrays: np.ndarray | Tensor) -> Tensor:
        """What the call returns, on the device and perhaps still to come; the next launch overwrites it."""
        values = [torch.as_tensor(array) for array in arrays]
        now = addresses(self._tensors())
        if now != self._addresses:
            self._recorded.clear()
            self._addresses = now
        key = tuple((value.shape, value.dtype) for value in values)
        if self._works and key not in self._recorded:
            self._works = self._record(key, values)
        if not self._works:
            self._recorded.clear()
            return self._function(*(value.to(self._device) for value in values))
        static, replay = self._recorded[key]
        static.fill(values)
        return replay()

    def _record(self, key: Any, values: Sequence[Tensor]) -> bool:
        """Record the function for inputs like ``values``; False where the graph cannot be used."""
        static = StaticInputs(values, self._device)
        static.fill(values)
        try:
            replay = self._capture(lambda: self._function(*static.tensors), self._side)
        except RuntimeError as error:
            warn_of_fallback(f"acting cannot be recorded ({first_cause(error)})")
            return False
        expected, found = self._function(*static.tensors).double(), replay().double()
        if not torch.allclose(found, expected, rtol=VALUE_TOLERANCE, atol=VALUE_TOLERANCE):
            warn_of_fallback("recorded acting differs from acting")
            return False
        self._recorded[key] = static, replay
        return True
