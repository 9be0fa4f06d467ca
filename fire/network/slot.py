"""NetworkSlot: all that a reset or a metric may know of an agent's network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import WeightLayer, is_below, weight_layers

# Optimizers of torch.optim whose state starts at zero in every tensor (RMSprop and SGD: an absent momentum
# buffer acts as zero unless SGD dampens).
ZERO_STATE_OPTIMIZERS = (
    torch.optim.Adam,
    torch.optim.Adadelta,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.SGD,
)


@dataclass
class NetworkSlot:
    """One network of an agent, its optimizer and target, and how to rebuild and probe it.

    Attributes:
        module: the network that is trained. Its parameters keep their storage for the whole run.
        optimizer: holds the parameters of ``module``, perhaps among others.
        build: returns a fresh network, same architecture and device, weights drawn from the given CPU
            generator only.
        initial: returns the network with the run's first weights, for resets that rewind.
        forward: runs ``module`` once on a batch as in training, so that hooks see its activations.
        loss: scalar training loss on a batch, the same for the same batch; gradients reach ``module`` only.
        forward_next: like ``forward`` on the next states and the policy's actions there, for co-adaptation.
        target: slowly following copy of ``module``, if the agent has one.
        heads: names of the output layers inside ``module``; empty means the last weight layer.
        injected: names of the submodules that plasticity injection doubles; empty means the output layers.
        preserve: names of submodules that no reset touches, such as a shared input normaliser.
        ensemble_size: leading dimension E of weights (E, out, in) and activations (E, B, ...), if batched.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    build: Callable[[torch.Generator], nn.Module]
    initial: Callable[[], nn.Module]
    forward: Callable[[Any], Tensor]
    loss: Callable[[Any], Tensor]
    forward_next: Callable[[Any], Tensor] | None = None
    target: nn.Module | None = None
    heads: tuple[str, ...] = ()
    injected: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    ensemble_size: int | None = None

    def layers(self, conv_form: str = "slices") -> list[WeightLayer]:
        """Weight layers that resets may touch, in order of registration; ``conv_form`` as in ``WeightLayer``."""
        return weight_layers(self.module, heads=self.heads, preserve=self.preserve, conv_form=conv_form)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that resets may touch."""
        return ((n, p) for n, p in self.module.named_parameters() if not is_below(n, self.preserve))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers that resets may touch."""
        return ((n, b) for n, b in self.module.named_buffers() if not is_below(n, self.preserve))

    @torch.no_grad()
    def sync_target(self) -> None:
        """Copy parameters and buffers of ``module`` into ``target``, in place; nothing without a target."""
        if self.target is None:
            return
        ours = [*self.module.parameters(), *self.module.buffers()]
        theirs = [*self.target.parameters(), *self.target.buffers()]
        for source, destination in zip(ours, theirs, strict=True):
            destination.copy_(source)

    @torch.no_grad()
    def zero_optimizer_state(self) -> None:
        """Put the optimizer's state of the touched parameters back to its start, moments and step count, in
        place.

        Raises:
            TypeError: an optimizer whose initial state is not zero.
        """
        self.check_zeroable()
        for _, parameter in self.named_parameters():
            for value in self.optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor):
                    value.zero_()

    def rebuild_optimizer_state(self) -> None:
        """Drop the optimizer's state of the touched parameters: the next step creates it as in a new optimizer."""
        for _, parameter in self.named_parameters():
            self.optimizer.state.pop(parameter, None)

    def check_zeroable(self) -> None:
        """Raise TypeError where :meth:`zero_optimizer_state` would not give the state of a new optimizer."""
        if not isinstance(self.optimizer, ZERO_STATE_OPTIMIZERS):
            known = ", ".join(kind.__name__ for kind in ZERO_STATE_OPTIMIZERS)
            raise TypeError(
                f"cannot zero the state of {type(self.optimizer).__name__}; known: {known} and subclasses; "
                "use optimizer: rebuild or keep"
            )
