"""Study, Chunk, Recipe and Learner: a network trained on one chunk of data after another.

Every random draw is a function of seed, chunk and purpose, so that a study that goes on after an interrupt draws what
the uninterrupted one draws.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from common.seeding import torch_generator
from configs.errors import ConfigError
from fire.metrics.cheap import measure
from fire.network.slot import NetworkSlot
from fire.regularizers import Regularizer
from fire.resets.injection import restore_structure
from fire.resets.none import NoReset
from fire.resets.registry import reset_networks
from studies.arms import Arm
from studies.ewc import NUM_SAMPLES, Anchor, consolidate

NETWORK = "net"
SCHEDULES = ("constant", "cosine")
PRECISIONS = ("float32", "bf16")
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Chunk:
    """What a network trains on between two borders.

    Attributes:
        name: for tables.
        num_updates: gradient updates.
        batches: endless minibatches, ``(inputs, targets)`` on the study's device, drawn from a CPU generator.
        evaluate: figures of the network, which is in evaluation mode, by name.
    """

    name: str
    num_updates: int
    batches: Callable[[torch.Generator], Iterator[Batch]]
    evaluate: Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on a chunk.

    Attributes:
        optimizer: makes the optimizer of a network; its learning rate is the largest of the schedule.
        schedule: after the linear warm-up ``constant``, or ``cosine`` down to a tenth.
        warmup: share of a chunk's updates.
        max_warmup: most updates of a warm-up.
        clip: largest Euclidean norm of the gradient.
        fresh_optimizer: whether every chunk begins with a new optimizer, whatever the reset says.
        evaluations: evaluations in each chunk, beside the one right after its border.
        precision: ``float32``, or ``bf16`` for autocast in the updates.
        compile: whether updates run through ``torch.compile``.
    """

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: str = "constant"
    warmup: float = 0.1
    max_warmup: int = 2**62
    clip: float = 0.5
    fresh_optimizer: bool = True
    evaluations: int = 10
    precision: str = "float32"
    compile: bool = False


@dataclass(frozen=True)
class Study:
    """A network, its loss and its chunks.

    Attributes:
        settings: every option that results depend on, for the results and for the check on resuming.
        build: a network on the CPU with weights drawn from a CPU generator.
        loss: mean loss of a network on a batch.
        chunks: the chunks of a seed.
        recipe: how to train.
        metrics: the figures that arms are compared by, with a label for each.
        device: where networks and batches live.
        fused: matrices of fused projections, see :class:`NetworkSlot`.
        sample: what a trained network says, for the reader.
    """

    settings: Mapping[str, Any]
    build: Callable[[torch.Generator], nn.Module]
    loss: Callable[[nn.Module, Batch], Tensor]
    chunks: Callable[[int], Sequence[Chunk]]
    recipe: Recipe
    metrics: Mapping[str, str]
    device: torch.device
    fused: Mapping[str, int] = field(default_factory=dict)
    sample: Callable[[nn.Module], str] | None = None


def drawn(make: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Return ``make()`` with PyTorch's initial weights drawn from ``generator`` instead of the global state."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def learning_rate_factor(recipe: Recipe, update: int, num_updates: int) -> float:
    """Share of the largest learning rate in update ``update`` of 1 to ``num_updates``."""
    warmup = min(math.ceil(recipe.warmup * num_updates), recipe.max_warmup)
    if update <= warmup:
        return update / warmup
    if recipe.schedule == "constant":
        return 1.0
    progress = (update - warmup) / (num_updates - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))


class Learner:
    """A network under one arm: it trains on chunks, is reset at borders, and has a state to save."""

    def __init__(self, study: Study, arm: Arm, seed: int) -> None:
        self.study, self.arm, self.seed = study, arm, seed
        module = self._build(torch_generator(seed, "init"))
        self.slot = NetworkSlot(
            module=module,
            optimizer=study.recipe.optimizer(module),
            build=self._build,
            initial=lambda: self._build(torch_generator(seed, "init")),
            forward=lambda batch: module(batch[0]),
            loss=lambda batch: study.loss(module, batch),
            fused=study.fused,
        )
        # A compiled function reads weights in place, so it sees what resets do to them.
        self._trained: nn.Module = module
        if study.recipe.compile:
            self._trained = torch.compile(module)  # type: ignore[assignment]
        self.regularizer = Regularizer(arm.l2_init, arm.parseval, self.slot)
        self.tracker = arm.reset.tracker()
        self.anchor: Anchor | None = None

    def _build(self, generator: torch.Generator) -> nn.Module:
        return self.study.build(generator).to(self.study.device)

    def cross_border(self, index: int, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """Reset before chunk ``index`` (1 or later) and return what it did: report, metrics before and after."""
        chunk = chunks[index]
        if self.arm.ewc:
            self.anchor = self._consolidated(index, chunks[index - 1])
        reset = self.arm.reset if self.arm.resets_at(index) else NoReset()
        slots, probes = {NETWORK: self.slot}, chunk.batches(torch_generator(self.seed, "metrics", index))
        batch = joined([next(probes) for _ in range(reset.num_minibatches)])
        probe = next(probes)
        before = measure(slots, probe)
        report = reset_networks(slots, reset, batch, torch_generator(self.seed, "reset", index), probe)
        if self.study.recipe.fresh_optimizer:
            self.slot.rebuild_optimizer_state()
        return {"report": report.scalars(), "before": before, "after": measure(slots, probe)}

    def _consolidated(self, index: int, chunk: Chunk) -> Anchor:
        generator = torch_generator(self.seed, "metrics", index, 1)
        samples, count = [], 0
        for inputs, _ in chunk.batches(generator):
            samples.append(inputs)
            count += len(inputs)
            if count >= NUM_SAMPLES:
                break
        return consolidate(self.slot.module, torch.cat(samples)[:NUM_SAMPLES], generator)

    def train(self, index: int, chunk: Chunk, progress: Callable[[int], object]) -> list[dict[str, float]]:
        """Train on chunk ``index`` and return the evaluations, the first one before any update.

        Args:
            progress: called with the number of updates since it was last called.

        Raises:
            ConfigError: the loss is not finite any more.
        """
        recipe, slot = self.study.recipe, self.slot
        batches = chunk.batches(torch_generator(self.seed, "replay", index))
        recycling = torch_generator(self.seed, "update", index)
        rates = [group.setdefault("initial_lr", group["lr"]) for group in slot.optimizer.param_groups]
        evaluated = {
            round(chunk.num_updates * i / recipe.evaluations) for i in range(1, recipe.evaluations + 1)
        }
        rows = [{"update": 0} | self._evaluate(chunk)]
        slot.module.train()
        last = recycled = 0
        for update in range(1, chunk.num_updates + 1):
            factor = learning_rate_factor(recipe, update, chunk.num_updates)
            for group, rate in zip(slot.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            batch = next(batches)
            loss = self._update(batch)
            if self.tracker is not None:
                recycled += self.tracker.after_update({NETWORK: slot}, batch, recycling).get(NETWORK, 0)
            if update in evaluated:
                value = float(loss)
                if not math.isfinite(value):
                    raise ConfigError(
                        f"arm {self.arm.spec}, seed {self.seed}: the loss is {value} in chunk {chunk.name}; "
                        "try a smaller --learning-rate"
                    )
                figures = {"update": update, "train_loss": value} | self._evaluate(chunk)
                rows.append(figures if self.tracker is None else figures | {"recycled_units": recycled})
                progress(update - last)
                last = update
        return rows

    def _update(self, batch: Batch) -> Tensor:
        recipe, optimizer = self.study.recipe, self.slot.optimizer
        with self._autocast():
            loss = self.study.loss(self._trained, batch)
        extra = self.regularizer(self.slot.module)
        if self.anchor is not None:
            extra = extra + self.anchor.penalty(self.slot.module, self.arm.ewc)
        optimizer.zero_grad()
        (loss + extra).backward()
        nn.utils.clip_grad_norm_(self.slot.module.parameters(), recipe.clip)
        optimizer.step()
        return loss.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.study.recipe.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.study.device.type, torch.bfloat16)

    def _evaluate(self, chunk: Chunk) -> dict[str, float]:
        self.slot.module.eval()
        with torch.no_grad():
            figures = chunk.evaluate(self.slot.module)
        self.slot.module.train()
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer and what a tracker has counted."""
        return {
            "module": copy.deepcopy(self.slot.module.state_dict()),
            "optimizer": copy.deepcopy(self.slot.optimizer.state_dict()),
            "tracker": {} if self.tracker is None else self.tracker.state_dict(),
            "anchor": {} if self.anchor is None else dataclasses.asdict(self.anchor),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, that of a plain arm included."""
        restore_structure(self.slot, state["module"])
        self.slot.module.load_state_dict(state["module"])
        # PyTorch takes over the tensors of an optimizer's state, and other arms start from the same state.
        self.slot.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.tracker is not None:
            self.tracker.load_state_dict(state["tracker"], self.study.device)
        if state["anchor"]:
            on_device = {
                kind: {name: tensor.to(self.study.device) for name, tensor in tensors.items()}
                for kind, tensors in state["anchor"].items()
            }
            self.anchor = Anchor(**on_device)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch out of several, cut to the size of the smallest each, so that it splits evenly again."""
    size = min(len(inputs) for inputs, _ in batches)
    return torch.cat([b[0][:size] for b in batches]), torch.cat([b[1][:size] for b in batches])
