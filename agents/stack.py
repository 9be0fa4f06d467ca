"""Several agents that share hyperparameters and an architecture, trained as one batched program.

Every tensor of every network gets a leading dimension K: the agents' own parameters and buffers become views into
the stack. An update runs the first agent's loss functions over the stack with ``torch.vmap`` and takes one fused
optimizer step over all views. Whatever looks at a single agent (acting, resets, metrics, evaluation, checkpoints)
works on its views and needs to know nothing of the others, and each agent keeps its own optimizer state and
random streams, so that it goes on alone wherever it was saved.

Agents whose networks differ, because a reset has added parameters to some, form stacks of their own. Networks for
frames are not stacked: convolutions of several networks at once become grouped ones, which take longer than one
network after the other (results/throughput.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agents.base import Agent
from agents.replay import Batch
from agents.sac import SAC


class Population(ABC):
    """K agents and their stacked tensors.

    Build it when the agents hold the state they start from (after a checkpoint was loaded): from then on their
    parameters are views, which in-place changes keep; after a structural reset build it anew.

    Args:
        agents: at least one, of one class, with equal configurations and structures; their seeds differ.
    """

    def __init__(self, agents: Sequence[Any]) -> None:
        self.agents = list(agents)
        self.optimizers = self.agents[0].optimizers
        modules = self.agents[0].modules
        bundles = [_Bundle({name: getattr(agent, name) for name in modules}) for agent in self.agents]
        self._bundle = bundles[0]
        self._stack = _stack(bundles)
        self._joint = {name: self._join(name) for name in self.optimizers}

    @abstractmethod
    def update(self, batches: Sequence[Batch], noise: Tensor | None = None) -> list[dict[str, Tensor]]:
        """One update of every agent on its own batch; returns what each agent's ``update`` would return.

        ``noise (K, ...)`` is what the agents' ``draw`` returned; None: drawn here.
        """

    def _learn(
        self, optimizer: str, loss: Callable[..., tuple[Tensor, Tensor]], *args: Any
    ) -> tuple[Tensor, Tensor]:
        """One step of ``optimizer`` on the first agent's ``loss``, run for every agent: all shapes begin with K."""
        module = self.optimizers[optimizer]
        learning = {n: t for n, t in self._stack.items() if n.startswith(f"{module}.") and t.requires_grad}
        tensors = {n: learning.get(n, t.detach()) for n, t in self._stack.items()}

        def one(tensors: dict[str, Tensor], *args: Any) -> tuple[Tensor, Tensor]:
            # The shared normaliser is one module; tied by name it would be exchanged twice and restored once.
            return torch.func.functional_call(self._bundle, tensors, (loss, *args), tie_weights=False)

        # Loss functions draw nothing: the noise is an argument, from each agent's own stream.
        value, logged = torch.vmap(one, randomness="error")(tensors, *args)
        # The agents share nothing, so the gradient of the sum holds each agent's own.
        gradients = torch.autograd.grad(value.sum(), list(learning.values()))
        names = [name.removeprefix(f"{module}.") for name in learning]
        # Fused optimizers read gradients in the parameter's memory order, whatever their strides say.
        ordered = [gradient.contiguous() for gradient in gradients]
        self._descend(optimizer, dict(zip(names, ordered, strict=True)))
        return value.detach(), logged.detach()

    def _descend(self, optimizer: str, gradients: dict[str, Tensor]) -> None:
        """Step on ``gradients (K, ...)`` of the parameters of the optimizer's module, by name."""
        joint = self._joint[optimizer]
        for index, agent in enumerate(self.agents):
            own, module = getattr(agent, optimizer), getattr(agent, self.optimizers[optimizer])
            for name, gradient in gradients.items():
                parameter = module.get_parameter(name)
                parameter.grad = gradient[index]
                # The same dictionary, not a copy: what is written here, the agent's resets and checkpoints see.
                joint.state[parameter] = own.state[parameter]
        joint.step()
        joint.zero_grad(set_to_none=True)

    def _join(self, name: str) -> torch.optim.Optimizer:
        """One optimizer over the parameters of all agents' optimizers ``name``, with their options."""
        own = [getattr(agent, name) for agent in self.agents]
        groups = [
            {**parts[0], "params": [p for part in parts for p in part["params"]]}
            for parts in zip(*(optimizer.param_groups for optimizer in own), strict=True)
        ]
        return type(own[0])(groups)


class SACPopulation(Population):
    """SAC agents; the order of steps is that of :meth:`agents.sac.SAC.update`."""

    def update(self, batches: Sequence[Batch], noise: Tensor | None = None) -> list[dict[str, Tensor]]:
        first, batch = self.agents[0], _stacked(batches)
        if noise is None:
            noise = torch.stack([agent.draw(batch.reward.shape[1]) for agent in self.agents])
        actor_noise, critic_noise = noise.to(first.device).unbind(1)
        actor_loss, entropy = self._learn("actor_optimizer", first.actor_loss, batch, actor_noise)
        alpha_loss, _ = self._learn("alpha_optimizer", first.temperature_loss, entropy)
        critic_loss, q_mean = self._learn("critic_optimizer", first.critic_loss, batch, critic_noise)
        with torch.no_grad():
            names = [f"critic.{name}" for name, _ in first.critic.named_parameters()]
            targets = [self._stack[f"target_{name}"] for name in names]
            torch._foreach_lerp_(targets, [self._stack[name] for name in names], first.config.target_tau)
        for agent in self.agents:
            agent.update_step += 1
        return _unstacked(
            {
                "actor_loss": actor_loss,
                "critic_loss": critic_loss,
                "ent_coef_loss": alpha_loss,
                "ent_coef": self._stack["temperature.log_alpha"].detach().exp(),
                "entropy": entropy,
                "q_mean": q_mean,
            }
        )


class DQNPopulation(Population):
    """DQN agents; the order of steps is that of :meth:`agents.dqn.DQN.update`."""

    def update(self, batches: Sequence[Batch], noise: Tensor | None = None) -> list[dict[str, Tensor]]:
        first = self.agents[0]
        loss, q_mean = self._learn("optimizer", first.loss, _stacked(batches))
        for agent in self.agents:
            agent.update_step += 1
        if first.update_step % first.config.target_update_period == 0:
            for agent in self.agents:
                agent.networks()["q"].sync_target()
        return _unstacked({"loss": loss, "q_mean": q_mean})


class _Bundle(nn.ModuleDict):
    """An agent's modules under one root, so that ``torch.func.functional_call`` can exchange all their tensors."""

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


@torch.no_grad()
def _stack(bundles: Sequence[_Bundle]) -> dict[str, Tensor]:
    """Stack the parameters and buffers of all bundles by name and turn theirs into views of the stack."""
    stack = {}
    for name, parameter in bundles[0].named_parameters():
        members = [bundle.get_parameter(name) for bundle in bundles]
        stacked = torch.stack([member.detach() for member in members])
        for member, view in zip(members, stacked, strict=True):
            member.data = view
        stack[name] = stacked.requires_grad_(parameter.requires_grad)
    for name, _ in bundles[0].named_buffers():
        path, _, leaf = name.rpartition(".")
        owners = [bundle.get_submodule(path) for bundle in bundles]
        stack[name] = torch.stack([getattr(owner, leaf) for owner in owners])
        for owner, view in zip(owners, stack[name], strict=True):
            owner._buffers[leaf] = view
    return stack


def _stacked(batches: Sequence[Batch]) -> Batch:
    return Batch(*(torch.stack(tensors) for tensors in zip(*batches, strict=True)))


def _unstacked(logged: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    columns = [value.detach().unbind() for value in logged.values()]
    return [dict(zip(logged, row, strict=True)) for row in zip(*columns, strict=True)]


class Together:
    """Updates agents of one algorithm, stacked where that is faster, and stacks them anew when a network has changed.

    Args:
        agents: at least one, of one class, with equal configurations; they hold the state they go on from.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = list(agents)
        self._group()

    def update(self, batches: Sequence[Batch], noise: Tensor | None = None) -> list[dict[str, Tensor]]:
        """One update of every agent on its own batch; returns what each agent's ``update`` would return.

        ``noise (K, ...)`` is what the agents' ``draw`` returned; None: drawn here.
        """
        self.follow()
        logged: list[dict[str, Tensor]] = [{} for _ in self.agents]
        for indices, update in self._groups:
            given = None if noise is None else torch.stack([noise[index] for index in indices])
            results = update([batches[index] for index in indices], given)
            for index, result in zip(indices, results, strict=True):
                logged[index] = result
        return logged

    def follow(self) -> None:
        """Stack the agents anew if a structural reset has changed one since."""
        if self._changed():
            self._group()

    def _group(self) -> None:
        """Stack the agents whose networks have the same parameters."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, agent in enumerate(self.agents):
            alone = (index,) if _has_convolutions(agent) else ()
            groups.setdefault((*alone, *_structure(agent)), []).append(index)
        self._groups = [(indices, self._updater(indices)) for indices in groups.values()]
        optimizers = [slot.optimizer for agent in self.agents for slot in agent.networks().values()]
        self._held = [(optimizer, [g["params"] for g in optimizer.param_groups]) for optimizer in optimizers]

    def _changed(self) -> bool:
        """Whether a structural reset has given an optimizer another list of parameters since they were stacked."""
        return any(
            group["params"] is not held
            for optimizer, lists in self._held
            for group, held in zip(optimizer.param_groups, lists, strict=True)
        )

    def _updater(
        self, indices: Sequence[int]
    ) -> Callable[[Sequence[Batch], Tensor | None], Sequence[dict[str, Tensor]]]:
        agents = [self.agents[index] for index in indices]
        if len(agents) == 1:
            return lambda batches, noise: [agents[0].update(batches[0], None if noise is None else noise[0])]
        kind = SACPopulation if isinstance(agents[0], SAC) else DQNPopulation
        return kind(agents).update


def _structure(agent: Agent) -> tuple[object, ...]:
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
