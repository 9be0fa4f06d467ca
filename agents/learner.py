"""The gradient updates owed after a step, for one agent or for several as one batched program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from agents.graphs import Capture, Places, StaticInputs, pick_capture, rollback
from agents.numerics import Numerics
from agents.replay import Batch, Replay
from agents.stack import Stack
from configs.schema import Config

# The last update's transitions (K, B, ...), and the newest losses (K,) of the block by name.
Learned = tuple[Batch, dict[str, Tensor]]


def run_losses(losses: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The scalar losses of run ``k``."""
    return {name: values[k] for name, values in losses.items()}


class Learner:
    """Makes updates one after the other.

    Args:
        stack: K agents.
        replay: their transitions.
        generators: the CPU generator of each agent's minibatches.
        batch_size: transitions of a minibatch.
        numerics: precision of the products.
    """

    def __init__(
        self,
        stack: Stack,
        replay: Replay,
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
    ) -> None:
        self.stack = stack
        self.replay = replay
        self.generators = generators
        self.batch_size = batch_size
        self.products = numerics.products()

    def learn(self, count: int) -> Learned:
        """Make ``count`` updates, at least one; return the last minibatches and the losses.

        An update that has no loss of some name (a delayed policy's) leaves that of an earlier one in the block.
        """
        losses: dict[str, Tensor] = {}
        with self.products:
            for _ in range(count):
                batch = self.replay.gather(self.replay.draw(self.batch_size, self.generators))
                noise = self.stack.draw(self.batch_size).to(self.replay.device)
                losses |= self.stack.update(batch, noise)
        return batch, losses


class GraphLearner(Learner):
    """Makes a whole block of updates as one CUDA graph.

    Minibatch indices and noise are drawn on the CPU, by the generators and in the order of :class:`Learner`, and sent
    in one copy. The graph gathers the transitions and updates all agents. There is a graph for each number of updates
    and each pattern of theirs (``Agent.update_pattern``), and a new one where a reset or a checkpoint has moved a
    tensor. What ``learn`` returns is overwritten by a later call.

    Args:
        stack, replay, generators, batch_size, numerics: see :class:`Learner`.
        capture: makes a graph of a function.
    """

    def __init__(
        self,
        stack: Stack,
        replay: Replay,
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
        capture: Capture,
    ) -> None:
        super().__init__(stack, replay, generators, batch_size, numerics)
        self._capture = capture
        self._inputs: dict[int, StaticInputs] = {}  # by number of updates
        self._blocks: dict[tuple[int, tuple[int, ...]], Callable[[], Learned]] = {}
        self._places: Places | None = None  # of the blocks' tensors

    def learn(self, count: int) -> Learned:
        agents = self.stack.agents
        drawn = self._draw(count)
        if count not in self._inputs:
            self._inputs[count] = StaticInputs(drawn, self.replay.device)
        inputs = self._inputs[count]
        inputs.fill(drawn)
        self.stack.restack()  # here, since it moves tensors
        if self._places is None or not self._places.unmoved():
            self._blocks.clear()
        pattern = count, agents[0].update_pattern(count)
        before = agents[0].update_step

        def block() -> Learned:
            self._count_updates(before)  # every trial and the recording start where the block starts
            return self._block(*inputs.tensors)

        with self.products:
            if pattern not in self._blocks:
                with rollback(agents):
                    self._blocks[pattern] = self._capture(block)
                # Only now: the first updates create the optimizers' state.
                self._places = Places(agents)
            batch, losses = self._blocks[pattern]()
        self._count_updates(before + count)  # a replay runs no Python
        return batch, dict(losses)

    def _count_updates(self, number: int) -> None:
        for agent in self.stack.agents:
            agent.update_step = number

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(count, K, B)``, noise ``(count, K, ...)`` and the replay's ``span``, on the CPU."""
        index = [self.replay.draw(self.batch_size, self.generators) for _ in range(count)]
        noise = [self.stack.draw(self.batch_size) for _ in range(count)]
        return torch.stack(index), torch.stack(noise), self.replay.span

    def _block(self, index: Tensor, noise: Tensor, span: Tensor) -> Learned:
        losses: dict[str, Tensor] = {}
        for one_index, one_noise in zip(index, noise, strict=True):
            batch = self.replay.gather(one_index, span)
            losses |= self.stack.update(batch, one_noise)
        return batch, losses


def make_learner(
    stack: Stack, replay: Replay, generators: Sequence[torch.Generator], config: Config
) -> Learner:
    """Return what makes the updates of ``stack``.

    Args:
        stack: agents of one run each; their configurations differ in seed and reset alone.
        replay: their transitions.
        generators: of each run's minibatches.
        config: of any of them.
    """
    numerics = Numerics(config.precision, config.compile)
    record = pick_capture(config, replay.device)
    parts = (stack, replay, generators, config.replay.batch_size, numerics)
    return Learner(*parts) if record is None else GraphLearner(*parts, record)
