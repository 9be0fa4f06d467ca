"""NetworkSlot: all that a reset or a metric may know of an agent's network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .layers import WeightLayer, is_below, weight_layers
from .memory import obstacle

# Optimizers of torch.optim whose state for a parameter can be put back to its start in place, and what does not start
# at zero there: a number, or the option of the parameter's group that holds it. LBFGS has one state for all parameters.
OPTIMIZERS: dict[type[torch.optim.Optimizer], dict[str, float | str]] = {
    torch.optim.Adam: {},
    torch.optim.Adadelta: {},
    torch.optim.Adafactor: {},
    torch.optim.Adagrad: {"sum": "initial_accumulator_value"},
    torch.optim.Adamax: {},
    torch.optim.ASGD: {"eta": "lr", "mu": 1.0},
    torch.optim.Muon: {},
    torch.optim.NAdam: {"mu_product": 1.0},
    torch.optim.RAdam: {},
    torch.optim.RMSprop: {},
    torch.optim.Rprop: {"step_size": "lr"},
    torch.optim.SGD: {},
    torch.optim.SparseAdam: {},
}


# Greedy actions (samples,) as integers, deterministic actions (samples, dimensions), or mean and log standard deviation
# of a Gaussian, (samples, dimensions) each.
Policy = Tensor | tuple[Tensor, Tensor]


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
        policy: what the network does on a batch, if it is a policy, see ``Policy``.
        predicts_values: whether the outputs of ``forward`` are predicted values.
        target: slowly following copy of ``module``, if the agent has one.
        heads: names of the output layers inside ``module``; empty means the last weight layer.
        injected: names of the submodules that plasticity injection doubles; empty means the output layers.
        preserve: names of submodules that no reset touches, such as a shared input normaliser.
        ensemble_size: leading dimension E of weights (E, out, in) and activations (E, B, ...), if batched.
        fused: how many matrices fused projections hold, by shell pattern of their names, such as ``{"*.qkv": 3}``.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    build: Callable[[torch.Generator], nn.Module]
    initial: Callable[[], nn.Module]
    forward: Callable[[Any], Tensor]
    loss: Callable[[Any], Tensor]
    forward_next: Callable[[Any], Tensor] | None = None
    policy: Callable[[Any], Policy] | None = None
    predicts_values: bool = False
    target: nn.Module | None = None
    heads: tuple[str, ...] = ()
    injected: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    ensemble_size: int | None = None
    fused: Mapping[str, int] = field(default_factory=dict)

    def layers(self, conv_form: str = "slices") -> list[WeightLayer]:
        """Weight layers that resets may touch, in order of registration; ``conv_form`` as in ``WeightLayer``."""
        return weight_layers(
            self.module, heads=self.heads, preserve=self.preserve, conv_form=conv_form, fused=self.fused
        )

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
        if ours:
            torch._foreach_copy_(theirs, ours)

    def check_target(self) -> None:
        """Raise where :meth:`sync_target` would fail, ValueError for another structure, TypeError for its memory."""
        if self.target is None:
            return
        ours = [*self.module.parameters(), *self.module.buffers()]
        theirs = [*self.target.named_parameters(), *self.target.named_buffers()]
        if [tensor.shape for tensor in ours] != [tensor.shape for _, tensor in theirs]:
            raise ValueError(
                "the target network has another structure than the network that would be copied into it"
            )
        for name, tensor in theirs:
            if (reason := obstacle(tensor)) is not None:
                raise TypeError(f"target {name} {reason}")

    @torch.no_grad()
    def zero_optimizer_state(self) -> None:
        """Put the optimizer's state of the touched parameters back to its start, in place: moments and step count to
        zero, what starts elsewhere (NAdam's product of momenta, Rprop's step sizes) to there.

        Raises:
            TypeError: see :meth:`check_zeroable`.
        """
        self.check_zeroable()
        starts = next(starts for kind, starts in OPTIMIZERS.items() if isinstance(self.optimizer, kind))
        zeros = []
        for parameter, group in self._optimized():
            state = self.optimizer.state.get(parameter, {})
            for key, value in state.items():
                start = starts.get(key, 0.0)
                start = group[start] if isinstance(start, str) else start
                if isinstance(value, Tensor) and start == 0:
                    zeros.append(value)
                elif isinstance(value, Tensor):
                    value.fill_(start)
                elif isinstance(value, int | float):
                    state[key] = type(value)(start)
        if zeros:
            torch._foreach_zero_(zeros)

    def rebuild_optimizer_state(self) -> None:
        """Drop the optimizer's state of the touched parameters: the next step creates it as in a new optimizer.

        Adagrad, which creates its state only when it is made itself, has it put back to its start in place.
        """
        if isinstance(self.optimizer, torch.optim.Adagrad):
            return self.zero_optimizer_state()
        for _, parameter in self.named_parameters():
            self.optimizer.state.pop(parameter, None)

    def check_zeroable(self) -> None:
        """Raise TypeError where :meth:`zero_optimizer_state` would not give the state of a new optimizer."""
        if not isinstance(self.optimizer, tuple(OPTIMIZERS)):
            known = ", ".join(kind.__name__ for kind in OPTIMIZERS)
            raise TypeError(
                f"cannot zero the state of {type(self.optimizer).__name__}; known: {known} and subclasses; "
                "use optimizer: rebuild or keep"
            )
        for parameter, group in self._optimized():
            if group.get("momentum") and group.get("dampening"):
                raise TypeError(
                    f"cannot zero the state of SGD with dampening {group['dampening']}, since a new optimizer does not "
                    "dampen its first gradient; use optimizer: rebuild or keep"
                )
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and (reason := obstacle(value)) is not None:
                    raise TypeError(f"optimizer {key} {reason}")

    def check_rebuildable(self) -> None:
        """Raise TypeError where :meth:`rebuild_optimizer_state` would not give the state of a new optimizer."""
        if isinstance(self.optimizer, torch.optim.LBFGS):  # keeps one state for all, with its first parameter
            touched = {parameter for parameter, _ in self._optimized()}
            if any(p not in touched for group in self.optimizer.param_groups for p in group["params"]):
                raise TypeError(
                    "cannot rebuild the state of LBFGS for a part of its parameters; use optimizer: keep"
                )
        elif isinstance(self.optimizer, torch.optim.Adagrad):
            self.check_zeroable()

    def _optimized(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """The touched parameters that the optimizer holds, with their groups."""
        touched = {parameter for _, parameter in self.named_parameters()}
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in touched:
                    yield parameter, group
