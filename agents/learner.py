"""The gradient updates owed after a step, for one agent or for several as one batched program."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agents.base import Agent
from agents.graphs import Capture, Places, StaticInputs, left_as_it_was, pick_capture
from agents.numerics import Numerics
from agents.replay import Batch, Replay
from agents.stack import Together
from configs.schema import Config

# The last update's batches and losses, each by agent.
Learned = tuple[Sequence[Batch], Sequence[dict[str, Tensor]]]


class Learner:
    """Makes updates one after the other.

    Args:
        agents: K agents.
        replays, generators: each agent's replay and the CPU generator of its minibatches.
        batch_size: transitions of a minibatch.
        numerics: precision of the products.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        replays: Sequence[Replay],
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
    ) -> None:
        self.agents = agents
        self.replays = replays
        self.generators = generators
        self.together = Together(agents)
        self.batch_size = batch_size
        self.numerics = numerics

    def learn(self, count: int) -> Learned:
        """Make ``count`` updates, at least one; return each agent's last minibatch and its losses."""
        sources = list(zip(self.replays, self.generators, strict=True))
        with self.numerics.products():
            for _ in range(count):
                batches = [replay.sample(self.batch_size, generator) for replay, generator in sources]
                losses = self.together.update(batches)
        return batches, losses


class GraphLearner(Learner):
    """Makes a whole block of updates as one CUDA graph.

    Minibatch indices and noise are drawn on the CPU, by the generators and in the order of :class:`Learner`, and sent
    in one copy. The graph gathers the transitions and updates all agents. There is a graph for each number of updates
    and each place of a hard target update among them, and a new one where a reset or a checkpoint has moved a tensor.
    What ``learn`` returns is overwritten by a later call.

    Args:
        agents, replays, generators, batch_size, numerics: see :class:`Learner`.
        device: of agents and replays.
        capture: makes a graph of a function.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        replays: Sequence[Replay],
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
        device: torch.device,
        capture: Capture,
    ) -> None:
        super().__init__(agents, replays, generators, batch_size, numerics)
        self._device = device
        self._capture = capture
        self._inputs: dict[int, StaticInputs] = {}  # by number of updates
        self._blocks: dict[tuple[int, tuple[int, ...]], Callable[[], Learned]] = {}
        self._places: Places | None = None  # of the blocks' tensors

    def learn(self, count: int) -> Learned:
        drawn = self._draw(count)
        if count not in self._inputs:
            self._inputs[count] = StaticInputs(drawn, self._device)
        inputs = self._inputs[count]
        inputs.fill(drawn)
        self.together.follow()  # here, since it moves tensors
        if self._places is None or not self._places.hold():
            self._blocks.clear()
        pattern = count, self.agents[0].target_copies(count)
        before = self.agents[0].update_step

        def block() -> Learned:
            self._count_updates(before)  # every trial and the recording start where the block starts
            return self._block(*inputs.tensors)

        with self.numerics.products():
            if pattern not in self._blocks:
                with left_as_it_was(self.agents):
                    self._blocks[pattern] = self._capture(block)
                # Only now: the first updates create the optimizers' state.
                self._places = Places(self.agents)
            learned = self._blocks[pattern]()
        self._count_updates(before + count)  # a replay runs no Python
        return learned

    def _count_updates(self, number: int) -> None:
        for agent in self.agents:
            agent.update_step = number

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(count, K, B)``, noise ``(count, K, ...)`` and spans ``(K, 2)`` of the replays, on the CPU."""
        sources = list(zip(self.replays, self.generators, strict=True))
        index = [torch.stack([r.draw(self.batch_size, g) for r, g in sources]) for _ in range(count)]
        noise = [torch.stack([a.draw(self.batch_size) for a in self.agents]) for _ in range(count)]
        return torch.stack(index), torch.stack(noise), torch.tensor([r.span for r in self.replays])

    def _block(self, index: Tensor, noise: Tensor, span: Tensor) -> Learned:
        for one_index, one_noise in zip(index, noise, strict=True):
            batches = [r.gather(i, s) for r, i, s in zip(self.replays, one_index, span, strict=True)]
            losses = self.together.update(batches, one_noise)
        return batches, losses


def make_learner(
    agents: Sequence[Agent],
    replays: Sequence[Replay],
    generators: Sequence[torch.Generator],
    config: Config,
) -> Learner:
    """Return what makes the updates of ``agents``, which hold the state they go on from.

    Args:
        agents, replays, generators: of one run each; their configurations differ in seed and reset alone.
        config: of any of them.
    """
    parts = (
        agents,
        replays,
        generators,
        config.replay.batch_size,
        Numerics(config.precision, config.compile),
    )
    device = replays[0].device
    record = pick_capture(config, device)
    return Learner(*parts) if record is None else GraphLearner(*parts, device, record)
