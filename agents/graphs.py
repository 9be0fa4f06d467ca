"""CUDA graphs: work of many small kernels recorded once and replayed with one launch.

A graph holds addresses, not tensors. What goes in and comes out must stay where it is (``StaticInputs``), and a graph
is recorded anew when a parameter, a buffer or a moment of an optimizer has moved (``Places``), as after a
structural reset or with ``optimizer: rebuild``. Resets that write in place reach a recorded graph by themselves.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from configs.schema import Config

if TYPE_CHECKING:
    from agents.base import Agent

# Runs the function given once or more to make it ready, and returns what runs it again on the same addresses.
Capture = Callable[[Callable[[], Any]], Callable[[], Any]]
# Runs on a side stream before a capture, the number of PyTorch's CUDA semantics notes ("Whole-network capture").
WARM_UP = 3
# Bytes between the starts of packed tensors: the alignment of CUDA's own allocations.
ALIGNMENT = 256


def capture(body: Callable[[], Any]) -> Callable[[], Any]:
    """Record the kernels of ``body`` on the present CUDA device; returns what replays them and hands out its result.

    ``body`` runs a few times first. It must launch the same kernels on the same addresses each time, without waiting
    for the device. The result's tensors are overwritten by the next replay.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        result = body()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


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
    yield
    known = {id(t) for t, _ in before}
    with torch.no_grad():
        for tensor, value in before:
            tensor.copy_(value)
        for tensor in learning_tensors(agents):
            if id(tensor) not in known:
                tensor.zero_()
    for agent, step in zip(agents, steps, strict=True):
        agent.update_step = step


class HostCall:
    """A function of tensors, recorded as a graph, called with arrays of the host and returning one.

    Each combination of shapes becomes a graph: one copy in, one launch, one copy out.

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
        self._recorded: dict[Any, tuple[StaticInputs, Callable[[], Tensor]]] = {}
        self._addresses: list[tuple[Any, ...]] = []

    @torch.inference_mode()
    def __call__(self, *arrays: np.ndarray | Tensor) -> np.ndarray:
        values = [torch.as_tensor(array) for array in arrays]
        now = addresses(self._tensors())
        if now != self._addresses:
            self._recorded.clear()
            self._addresses = now
        key = tuple((value.shape, value.dtype) for value in values)
        if key not in self._recorded:
            static = StaticInputs(values, self._device)
            static.fill(values)
            self._recorded[key] = static, self._capture(lambda: self._function(*static.tensors))
        static, replay = self._recorded[key]
        static.fill(values)
        return replay().cpu().numpy()
