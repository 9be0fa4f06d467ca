"""K agents that share hyperparameters and an architecture, acting and learning as one batched program; or one agent.

Every tensor of every network gets a leading dimension K: the agents' own parameters and buffers become views into
the stack. The first agent's functions run over the stack with ``torch.vmap``, traced once (agents/tracing.py), and one
fused optimizer step changes all views. Whatever looks at a single agent (resets, metrics, evaluation, checkpoints)
works on its views and needs to know nothing of the others, and each agent keeps its own optimizer state and random
streams, so that it goes on alone wherever it was saved.

One agent keeps its tensors as they are and runs the operations that it would run by itself, bit for bit; it gains what
autograd and Python cost at every update of a small network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agents.base import Agent, Loss
from agents.graphs import HostCall
from agents.replay import Batch
from agents.tracing import Function, trace

Statistics = TypeVar("Statistics", bound=nn.Module)


class Stack:
    """Stack: K agents of equal structure and their stacked tensors; the ``Step`` of their joint update.

    The arrays and tensors of ``observe``, ``act`` and ``update`` begin with K; inside, those of one agent do not.

    Args:
        agents: at least one, of one class, with equal configurations; their seeds differ. They hold the state from
            which they go on: from now on the parameters of several are views, which in-place changes keep.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = agents
        self._alone = len(agents) == 1
        self._first = first = agents[0]
        bundles = [_Bundle({name: getattr(agent, name) for name in first.modules}) for agent in agents]
        self._bundle = bundles[0]
        self._learning = {
            name for name, parameter in self._bundle.named_parameters() if parameter.requires_grad
        }
        self._tensors = _own_tensors(bundles[0]) if self._alone else _stack(bundles)
        self._joint = {
            name: _JointOptimizer(
                [getattr(agent, name) for agent in agents],
                [bundle.get_parameter(n) for n in self._names(module) for bundle in bundles],
            )
            for name, module in first.optimizers.items()
        }
        self._normalizer = first.normalizer
        if first.normalizer is not None and not self._alone:
            self._normalizer = self._stacked_buffers(first.normalizer)
        self._reward_normalizer = first.reward_normalizer
        if first.reward_normalizer is not None and not self._alone:
            self._reward_normalizer = self._stacked_buffers(first.reward_normalizer)
        self._pairs: dict[tuple[str, str, bool], tuple[list[Tensor], list[Tensor]]] = {}
        self._traced: dict[Hashable, tuple[Function, list[pytree.TreeSpec]]] = {}
        self._recorded: HostCall | None = None

    def _stacked_buffers(self, one: Statistics) -> Statistics:
        """The agents' normalisers as one, whose statistics have a leading K."""
        names = {buffer: name for name, buffer in self._bundle.named_buffers()}
        stacked = copy.copy(one)
        stacked._buffers = {leaf: self._tensors[names[buffer]] for leaf, buffer in one.named_buffers()}
        return stacked

    def observe(self, obs: np.ndarray) -> None:
        if self._normalizer is not None:
            obs = obs[0] if self._alone else obs
            self._normalizer.update(self._first.upload(np.asarray(obs, np.float32)))

    def observe_rewards(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        if self._reward_normalizer is not None:
            both = np.stack([rewards, ended], -2).astype(np.float32)
            self._reward_normalizer.update(self._first.upload(both[0] if self._alone else both))

    def start_act(self, obs: np.ndarray, env_step: int) -> Tensor:
        first = self._first
        drawn = [agent.draw_exploration(obs.shape[1], env_step) for agent in self.agents]
        inputs: list[np.ndarray | Tensor] = [np.asarray(obs, first.obs_dtype)]
        inputs += [torch.stack(own) for own in zip(*drawn, strict=True)]
        if first.capture is not None:
            if self._recorded is None:
                self._recorded = HostCall(self._explore, self._tensors.values, first.device, first.capture)
            return self._recorded.launch(*inputs)
        with torch.inference_mode():
            return self._explore(*(torch.as_tensor(x, device=first.device) for x in inputs))

    def _explore(self, *inputs: Tensor) -> Tensor:
        if self._alone:
            return self._run(self._first.explore, None, *(x[0] for x in inputs)).unsqueeze(0)
        return self._run(self._first.explore, None, *inputs)

    def update(self, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        if self._alone:
            found = self._first.update(self, batch.run(0), noise[0])
            losses = {name: value.unsqueeze(0) for name, value in found.items()}
        else:
            losses = self._first.update(self, batch, noise)
        for agent in self.agents:
            agent.update_step += 1
        return losses

    def __call__(self, optimizer: str, loss: Loss, *args: Any) -> tuple[Tensor, ...]:
        *values, gradients = self._run(loss, self._first.optimizers[optimizer], *args)
        self._joint[optimizer].step(gradients)
        return tuple(values)

    def soft_update(self, target: str, source: str, tau: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(*self._pair(target, source, False), tau)

    def hard_update(self, target: str, source: str) -> None:
        with torch.no_grad():
            torch._foreach_copy_(*self._pair(target, source, True))

    @torch.no_grad()
    def write(self, module: str, values: Callable[..., dict[str, Tensor]], *args: Any) -> None:
        found: dict[str, Tensor] = self._run(values, None, *args)
        ours = [self._tensors[f"{module}.{name}"] for name in found]
        torch._foreach_copy_(ours, list(found.values()))

    def _pair(self, target: str, source: str, buffers: bool) -> tuple[list[Tensor], list[Tensor]]:
        """The stacked tensors of two modules, in the same order; one that both share is left out."""
        key = (target, source, buffers)
        if key not in self._pairs:
            of_target = dict(self._bundle.named_parameters()) if not buffers else self._tensors
            names = [n.removeprefix(f"{target}.") for n in of_target if n.startswith(f"{target}.")]
            theirs, ours = ([self._tensors[f"{module}.{n}"] for n in names] for module in (target, source))
            self._pairs[key] = theirs, ours
        return self._pairs[key]

    def _names(self, module: str) -> list[str]:
        """Names of the module's learning parameters."""
        return [name for name in self._tensors if name.startswith(f"{module}.") and name in self._learning]

    def _run(self, function: Callable[..., Any], module: str | None, *args: Any) -> Any:
        """Run the first agent's ``function`` for every agent; with several all shapes begin with K.

        With ``module``, ``function`` is a loss, and a list of the gradients of the module's learning parameters, each
        agent's of the first, each agent's of the second and so on, is returned behind its values.
        """
        flat, inputs = pytree.tree_flatten(args)
        key = (function, module, tuple(tensor.shape for tensor in flat))
        if key not in self._traced:
            self._traced[key] = self._trace(function, module, inputs, flat)
        run, outputs = self._traced[key]
        results = run(*flat)
        return pytree.tree_unflatten(results, outputs[0])

    def _trace(
        self,
        function: Callable[..., Any],
        module: str | None,
        inputs: pytree.TreeSpec,
        flat: Sequence[Tensor],
    ) -> tuple[Function, list[pytree.TreeSpec]]:
        outputs: list[pytree.TreeSpec] = []  # the structure of the results, known once the function has run
        names = [] if module is None else self._names(module)

        def one(tensors: dict[str, Tensor], *args: Any) -> Any:
            # The shared normaliser is one module; tied by name it would be exchanged twice and restored once.
            result = torch.func.functional_call(self._bundle, tensors, (function, *args), tie_weights=False)
            return () if result is None else result

        def all_of_them(*given: Tensor) -> list[Tensor]:
            tensors = dict(zip(self._tensors, given, strict=False))
            args = pytree.tree_unflatten(list(given[len(tensors) :]), inputs)
            learning = {name: tensors[name].detach().requires_grad_() for name in names}
            # What is drawn is an argument, from each agent's own stream.
            with torch.set_grad_enabled(module is not None):
                every = one if self._alone else torch.vmap(one, randomness="error")
                found = every(tensors | learning, *args)
                if module is not None:
                    # The agents share nothing, so the gradient of the sum holds each agent's own. Fused optimizers read
                    # gradients in the parameter's memory order, whatever their strides say.
                    gradients = torch.autograd.grad(found[0].sum(), list(learning.values()))
                    own = [
                        view
                        for gradient in map(Tensor.contiguous, gradients)
                        for view in ((gradient,) if self._alone else gradient.unbind())
                    ]
                    found = (*(value.detach() for value in found), own)
            results, spec = pytree.tree_flatten(found)
            outputs[:] = [spec]
            return results

        with torch.inference_mode(False):
            run = trace(all_of_them, list(self._tensors.values()), flat)
        return run, outputs


class _JointOptimizer:
    """The optimizers that several agents have under one name, stepped as one; each keeps its own state.

    Args:
        optimizers: one of each agent, with equal options.
        parameters: their learning parameters in the order in which ``step`` gets gradients.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor]) -> None:
        self._own = optimizers
        self._parameters = list(parameters)
        groups = [
            {**parts[0], "params": [p for part in parts for p in part["params"]]}
            for parts in zip(*(optimizer.param_groups for optimizer in optimizers), strict=True)
        ]
        kind: Callable[..., torch.optim.Optimizer] = type(optimizers[0])
        self._joint = kind(groups)
        count = len(optimizers)
        self._kernel: Callable[..., None]
        self._owners = [optimizers[index % count] for index in range(len(parameters))]
        self._states: list[dict[str, Tensor]] = []  # of each parameter, as of the newest ordinary step
        self._count: Tensor | None = None  # the step counts of all parameters
        self._options = groups[0]
        self._is_adam = (
            type(optimizers[0]) in (torch.optim.Adam, torch.optim.AdamW)
            and len(groups) == 1
            and bool(self._options["fused"])
            and not self._options["amsgrad"]
            and len(groups[0]["params"]) == len(parameters)
        )

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> None:
        """One step of every optimizer."""
        now = [owner.state.get(p) for owner, p in zip(self._owners, self._parameters, strict=True)]
        if not self._states or any(a is not b for a, b in zip(now, self._states, strict=True)):
            self._ordinary_step(gradients)
            return
        # What the ordinary step comes to, without its search for parameters, gradients and states.
        if self._count is None:
            torch._foreach_add_(self._steps, 1)
        else:
            self._count += 1
        options = self._options
        self._kernel(
            self._parameters,
            gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            lr=options["lr"],
            beta1=options["betas"][0],
            beta2=options["betas"][1],
            weight_decay=options["weight_decay"],
            eps=options["eps"],
            amsgrad=False,
            maximize=options["maximize"],
        )

    def _ordinary_step(self, gradients: Sequence[Tensor]) -> None:
        for owner, parameter, gradient in zip(self._owners, self._parameters, gradients, strict=True):
            parameter.grad = gradient
            # The same dictionary, not a copy: what is written here, the agent's resets and checkpoints see.
            self._joint.state[parameter] = owner.state[parameter]
        self._joint.step()
        self._joint.zero_grad(set_to_none=True)
        if self._is_adam:
            self._states = [o.state[p] for o, p in zip(self._owners, self._parameters, strict=True)]
            self._means, self._squares, self._steps = (
                [state[name] for state in self._states] for name in ("exp_avg", "exp_avg_sq", "step")
            )
            if all(step.is_cpu for step in self._steps):
                # On a CPU adding to 30 tensors costs almost as much as Adam itself, adding to what they view nothing.
                self._count = torch.stack(self._steps)
                self._steps = list(self._count.unbind())
                for state, step in zip(self._states, self._steps, strict=True):
                    state["step"] = step
            decoupled = self._options["decoupled_weight_decay"]
            self._kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_


class _Bundle(nn.ModuleDict):
    """An agent's modules under one root, so that ``torch.func.functional_call`` can exchange all their tensors."""

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def _own_tensors(bundle: _Bundle) -> dict[str, Tensor]:
    return {name: t.detach() for name, t in (*bundle.named_parameters(), *bundle.named_buffers())}


@torch.no_grad()
def _stack(bundles: Sequence[_Bundle]) -> dict[str, Tensor]:
    """Stack the parameters and buffers of all bundles by name and turn theirs into views of the stack."""
    stack = {}
    for name, _ in bundles[0].named_parameters():
        parameters = [bundle.get_parameter(name) for bundle in bundles]
        stack[name] = torch.stack([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, stack[name], strict=True):
            parameter.data = view
    for name, _ in bundles[0].named_buffers():
        path, _, leaf = name.rpartition(".")
        owners = [bundle.get_submodule(path) for bundle in bundles]
        stack[name] = torch.stack([getattr(owner, leaf) for owner in owners])
        for owner, view in zip(owners, stack[name], strict=True):
            owner._buffers[leaf] = view
    return stack
