"""The agents of a program, one or several: acting as one, and the gradient updates owed after a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter

import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Agent
from agents.graphs import (
    Capture,
    Places,
    Side,
    StaticInputs,
    agree,
    first_cause,
    pick_capture,
    rollback,
    warn_of_fallback,
)
from agents.numerics import FLOAT32, Numerics
from agents.replay import Batch, Replay
from agents.stack import Stack
from configs.schema import Config

_GROUPS, _PARAMS = attrgetter("param_groups"), itemgetter("params")  # of an optimizer, and of such a group

# Updates after which a single agent is traced: that takes about as long as it saves in so many.
TRACE_FROM = 2000

# The last update's transitions (K, B, ...), and the newest losses (K,) of the block by name.
Learned = tuple[Batch, dict[str, Tensor]]


def run_losses(losses: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The scalar losses of run ``k``."""
    return {name: values[k] for name, values in losses.items()}


class Agents:
    """Agents: K agents of one algorithm that act and learn as one.

    They are stacked (agents/stack.py) where that is faster, and anew when a network's structure has changed: agents
    whose networks differ, because a reset has added parameters to some, form stacks of their own. Networks for frames
    are not stacked: convolutions of several networks at once become grouped ones, which take longer than one network
    after the other (results/throughput.md). One agent computes what it would alone. All arrays and tensors begin with
    K.

    Args:
        agents: at least one, of one class, with equal configurations; their seeds differ. They hold the state they go
            on from (after a checkpoint was loaded): from now on their parameters are views, which in-place changes
            keep.
        numerics: how their losses were prepared.
        trace_from: updates after which a single agent is traced (agents/tracing.py), which changes no value.

    Attributes:
        observes_rewards: whether they keep statistics of rewards.
    """

    def __init__(
        self, agents: Sequence[Agent], numerics: Numerics = FLOAT32, trace_from: int = TRACE_FROM
    ) -> None:
        self.agents = list(agents)
        self._compiled = numerics.compile
        self._trace_from = trace_from
        self.observes_rewards = self.agents[0].reward_normalizer is not None
        self._group()

    def observe(self, obs: np.ndarray) -> None:
        """Take note of the observations ``(K, N, ...)`` about to be acted on (input statistics)."""
        for runs, stacked in self._groups:
            if stacked is None:
                self.agents[runs[0]].observe(obs[runs[0]])
            else:
                stacked.observe(self._of(runs, obs))

    def observe_rewards(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Take note of the rewards ``(K, N)`` of a training step and of which episodes ended there."""
        for runs, stacked in self._groups:
            if stacked is None:
                self.agents[runs[0]].observe_rewards(rewards[runs[0]], ended[runs[0]])
            else:
                stacked.observe_rewards(self._of(runs, rewards), self._of(runs, ended))

    def act(self, obs: np.ndarray, env_step: int) -> np.ndarray:
        """Exploring actions ``(K, N, ...)`` for ``obs (K, N, ...)``, each agent's drawn from its own stream."""
        self.restack()
        started = [
            self.agents[runs[0]].start_act(obs[runs[0]], env_step)[None]
            if stacked is None
            else stacked.start_act(self._of(runs, obs), env_step)
            for runs, stacked in self._groups
        ]
        actions = [each.cpu().numpy() for each in started]  # only now: a GPU is at all of them at once
        return actions[0] if len(actions) == 1 else np.concatenate(actions)[self._order]

    def _of(self, runs: Sequence[int], values: np.ndarray) -> np.ndarray:
        """The rows of ``runs``, without a copy where these are all rows."""
        return values if len(runs) == len(self.agents) else values[runs]

    def draw(self, batch_size: int) -> Tensor:
        """The random numbers of one update ``(K, ...)``, on the CPU, each agent's from its own stream."""
        return torch.stack([agent.draw(batch_size) for agent in self.agents])

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One update of every agent on its own transitions ``(K, B, ...)``; returns losses ``(K,)`` by name.

        ``noise`` is what ``draw`` returned, on the agents' device.
        """
        self.restack()
        found = []
        for runs, stacked in self._groups:
            if stacked is None:
                (k,) = runs
                losses = self.agents[k].learn(batch.run(k), noise[k])
                found.append({name: value.unsqueeze(0) for name, value in losses.items()})
            elif len(runs) == len(self.agents):
                found.append(stacked.update(batch, noise))
            else:
                found.append(stacked.update(Batch(*(tensor[runs] for tensor in batch)), noise[runs]))
        if len(found) == 1:
            return found[0]
        return {name: torch.cat([part[name] for part in found])[self._order_there] for name in found[0]}

    def restack(self) -> None:
        """Stack the agents anew if a structural reset or a checkpoint has changed one since; it moves tensors.

        A single agent becomes a stack when it has made ``trace_from`` updates.
        """
        # Asked before every action and update: without a loop of Python's over the groups of all agents.
        lists = map(_PARAMS, chain.from_iterable(map(_GROUPS, self._optimizers)))
        if self.agents[0].update_step >= self._trace_at or not all(map(is_, lists, self._known)):
            self._group()

    def _group(self) -> None:
        """Stack the agents whose networks have the same parameters."""
        groups: dict[Hashable, list[int]] = {}
        for k, agent in enumerate(self.agents):
            groups.setdefault(k if _has_convolutions(agent) else _structure(agent), []).append(k)
        self._groups = [
            (runs, Stack([self.agents[k] for k in runs]) if self._gains(runs) else None)
            for runs in groups.values()
        ]
        waiting = any(stacked is None and self._traceable(runs) for runs, stacked in self._groups)
        self._trace_at = self._trace_from if waiting else math.inf
        self._order = np.argsort([k for runs, _ in self._groups for k in runs])
        # On the device: in a graph nothing may be sent there.
        self._order_there = torch.as_tensor(self._order, device=self.agents[0].device)
        self._optimizers = [getattr(agent, name) for agent in self.agents for name in agent.optimizers]
        self._known = [group["params"] for optimizer in self._optimizers for group in optimizer.param_groups]

    def _gains(self, runs: Sequence[int]) -> bool:
        """Whether these agents are faster as a stack; a single one is, where tracing it is worth its time."""
        worth_it = self.agents[runs[0]].update_step >= self._trace_from
        return len(runs) > 1 or (worth_it and self._traceable(runs))

    def _traceable(self, runs: Sequence[int]) -> bool:
        """Whether tracing makes one of these agents faster: where Python's share is not done away with otherwise."""
        first = self.agents[runs[0]]
        return first.device.type == "cpu" and not self._compiled and not _has_convolutions(first)


def _structure(agent: Agent) -> Hashable:
    """Names and shapes of all parameters, and which of them learn."""
    return tuple(
        (network, name, tuple(parameter.shape), parameter.requires_grad)
        for network, slot in agent.networks().items()
        for name, parameter in slot.module.named_parameters()
    )


def _has_convolutions(agent: Agent) -> bool:
    return any(
        isinstance(module, nn.Conv2d)
        for slot in agent.networks().values()
        for module in slot.module.modules()
    )


class Learner:
    """Makes updates one after the other.

    Args:
        agents: K agents.
        replay: their transitions.
        generators: the CPU generator of each agent's minibatches.
        batch_size: transitions of a minibatch.
        numerics: precision of the products.
    """

    def __init__(
        self,
        agents: Agents,
        replay: Replay,
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
    ) -> None:
        self.agents = agents
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
                noise = self.agents.draw(self.batch_size).to(self.replay.device)
                losses |= self.agents.update(batch, noise)
        return batch, losses


class GraphLearner(Learner):
    """Makes a whole block of updates as one CUDA graph.

    Minibatch indices and noise are drawn on the CPU, by the generators and in the order of :class:`Learner`, and sent
    in one copy. The graph gathers the transitions and updates all agents. There is a graph for each number of updates
    and each pattern of theirs (``Agent.update_pattern``), and a new one where a reset or a checkpoint has moved a
    tensor. What ``learn`` returns is overwritten by a later call.

    Where a block cannot be recorded, or the first one does not do what the eager updates do, updates are made eagerly
    from then on, with a warning: no run is lost for the sake of speed.

    Args:
        agents, replay, generators, batch_size, numerics: see :class:`Learner`.
        capture: makes a graph of a function.

    Attributes:
        works: whether updates are recorded; False once they are made eagerly.
    """

    def __init__(
        self,
        agents: Agents,
        replay: Replay,
        generators: Sequence[torch.Generator],
        batch_size: int,
        numerics: Numerics,
        capture: Capture,
    ) -> None:
        super().__init__(agents, replay, generators, batch_size, numerics)
        self._capture = capture
        self._side = Side()
        self.works = True
        self._compared = False
        self._inputs: dict[int, StaticInputs] = {}  # by number of updates
        self._blocks: dict[tuple[int, tuple[int, ...]], Callable[[], Learned]] = {}
        self._places: Places | None = None  # of the blocks' tensors

    def learn(self, count: int) -> Learned:
        if not self.works:
            return super().learn(count)
        agents = self.agents.agents
        drawn = self._draw(count)
        if count not in self._inputs:
            self._inputs[count] = StaticInputs(drawn, self.replay.device)
        inputs = self._inputs[count]
        inputs.fill(drawn)
        self.agents.restack()  # here, since it moves tensors
        if self._places is None or not self._places.unmoved():
            self._blocks.clear()
        pattern = count, agents[0].update_pattern(count)
        before = agents[0].update_step

        def block() -> Learned:
            self._count_updates(before)  # every trial and the recording start where the block starts
            return self._block(*inputs.tensors)

        with self.products:
            if pattern not in self._blocks:
                self._record(pattern, block)
            batch, losses = self._blocks.get(pattern, block)()
        self._count_updates(before + count)  # a replay runs no Python
        return batch, dict(losses)

    def _record(self, pattern: tuple[int, tuple[int, ...]], block: Callable[[], Learned]) -> None:
        """Record ``block``, the first one of all for comparison with eager updates too; or give up graphs."""
        agents = self.agents.agents
        try:
            with rollback(agents):
                replay = self._capture(block, self._side)
            # Only now: the first updates create the optimizers' state.
            self._places = Places(agents)
            if self._compared or agree(agents, lambda: block()[1], lambda: replay()[1]):
                self._compared = True
                self._blocks[pattern] = replay
                return
            warn_of_fallback("recorded updates differ from eager ones")
        except RuntimeError as error:
            warn_of_fallback(f"updates cannot be recorded ({first_cause(error)})")
        self.works = False
        self._blocks.clear()

    def _count_updates(self, number: int) -> None:
        for agent in self.agents.agents:
            agent.update_step = number

    def _draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices ``(count, K, B)``, noise ``(count, K, ...)`` and the replay's ``span``, on the CPU."""
        index = [self.replay.draw(self.batch_size, self.generators) for _ in range(count)]
        noise = [self.agents.draw(self.batch_size) for _ in range(count)]
        return torch.stack(index), torch.stack(noise), self.replay.span

    def _block(self, index: Tensor, noise: Tensor, span: Tensor) -> Learned:
        losses: dict[str, Tensor] = {}
        for one_index, one_noise in zip(index, noise, strict=True):
            batch = self.replay.gather(one_index, span)
            losses |= self.agents.update(batch, one_noise)
        return batch, losses


def make_learner(
    agents: Agents, replay: Replay, generators: Sequence[torch.Generator], config: Config
) -> Learner:
    """Return what makes the updates of ``agents``.

    Args:
        agents: of one run each; their configurations differ in seed and reset alone.
        replay: their transitions.
        generators: of each run's minibatches.
        config: of any of them.
    """
    numerics = Numerics(config.precision, config.compile)
    record = pick_capture(config, replay.device)
    parts = (agents, replay, generators, config.replay.batch_size, numerics)
    return Learner(*parts) if record is None else GraphLearner(*parts, record)
