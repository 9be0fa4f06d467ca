"""What the training loop, evaluation and checkpoints may ask of an agent, and what all agents have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.graphs import Capture, HostCall, StaticInputs
from agents.networks import ObservationNormalizer, build_seeded
from agents.normalized import RewardNormalizer
from agents.numerics import Numerics
from agents.replay import Batch
from common.seeding import torch_generator
from configs.schema import Config
from fire.network.slot import NetworkSlot
from fire.regularizers import Regularizer
from fire.resets.injection import restore_structure

# Seed of the noise drawn inside probe losses: a metric must depend on the weights and the batch alone.
PROBE_SEED = 0

# The value to descend, then what else the update wants of the same computation. It depends on its arguments and on the
# agent's tensors alone, draws nothing, and never decides by the value of a tensor.
Loss = Callable[..., tuple[Tensor, ...]]


class Step(Protocol):
    """How an update changes parameters: those of one agent, or of K at once with a leading K in every tensor."""

    def __call__(self, optimizer: str, loss: Loss, *args: Any) -> tuple[Tensor, ...]:
        """One step of the named optimizer on ``loss(*args)``, whose detached values are returned."""

    def soft_update(self, target: str, source: str, tau: float) -> None:
        """``target += tau (source - target)`` for all parameters of two modules."""

    def hard_update(self, target: str, source: str) -> None:
        """``target = source`` for all parameters and buffers of two modules."""

    def write(self, module: str, values: Callable[..., dict[str, Tensor]], *args: Any) -> None:
        """Give parameters and buffers of a module the values that ``values(*args)`` returns by name, in place.

        ``values`` is a function as a loss is, without gradient. It serves what an update changes by a rule of its
        own: running statistics, weights that a constraint pulls back.
        """


class Agent(ABC):
    """A learner without logger, buffer or environment inside.

    A subclass builds its modules and optimizers as attributes, in ``__init__``, and lists them; saving, stacking
    (agents/stack.py) and CUDA graphs (agents/graphs.py) need no more.

    Args:
        seed: run seed; networks come from its stream ``init``, exploration and updates draw from streams of their own.
        device: where networks live; random numbers are drawn on the CPU, so that every device sees the same.
        builders: networks with learning parameters, by name, in the order in which their weights are drawn.
        capture: records acting as a CUDA graph; None: no graph.

    Attributes:
        modules: names of attributes that hold modules with a state.
        optimizers: names of attributes that hold optimizers, and the module that each one trains.
        policy: name of the module that acts.
        streams: the agent's random streams (common/seeding.py) by the name of the generator that draws from each.
        resettable: those of ``temperature`` and ``normalizer`` that the agent has, for ``reset_...``.
        gamma: discount factor per transition.
        update_step: updates made.
        normalizer: layer of the networks that keeps statistics of their inputs, if there is one.
        reward_normalizer: scales rewards in the losses by statistics of the returns, if there is one.
        obs_dtype: of observations as the networks read them.
    """

    modules: ClassVar[tuple[str, ...]]
    optimizers: ClassVar[Mapping[str, str]]
    policy: ClassVar[str]
    streams: ClassVar[Mapping[str, str]] = {"explore": "explore"}
    resettable: ClassVar[tuple[str, ...]] = ()
    gamma: float
    regularizers: nn.ModuleDict
    normalizer: ObservationNormalizer | None = None
    reward_normalizer: RewardNormalizer | None = None
    obs_dtype: type[np.generic] = np.float32

    def __init__(
        self,
        seed: int,
        device: torch.device,
        builders: Mapping[str, Callable[[], nn.Module]],
        capture: Capture | None,
    ) -> None:
        self.device = device
        self.capture = capture
        self.update_step = 0
        # On the CPU whatever the device, so that a checkpoint moves between devices and both draw the same noise.
        self.generators = {name: torch_generator(seed, stream) for name, stream in self.streams.items()}
        self._seed = seed
        self._builders = builders
        self._recorded: dict[str, HostCall] = {}
        self._uploads: dict[torch.Size, StaticInputs] = {}
        self._descent = Descent(self)

    @classmethod
    @abstractmethod
    def sizes(
        cls, config: Config, obs_space: spaces.Box, action_space: Any, max_steps: int | None
    ) -> tuple[Any, ...]:
        """The constructor's arguments between the agent's options and the seed.

        The spaces are those of a single environment and fit the agent's row of ``AGENTS``; ``max_steps`` is the episode
        limit in transitions.
        """

    @classmethod
    def from_config(
        cls,
        config: Config,
        obs_space: spaces.Box,
        action_space: spaces.Space,
        max_steps: int | None,
        device: torch.device,
        capture: Capture | None,
    ) -> Self:
        """Build the agent of ``config``; arguments as for ``sizes`` and ``__init__``."""
        build: Callable[..., Self] = cls  # subclasses have constructors of their own
        sizes = cls.sizes(config, obs_space, action_space, max_steps)
        numerics = Numerics(config.precision, config.compile)
        return build(config.agent, *sizes, config.seed, device, numerics, capture)

    # Acting

    def observe(self, obs: np.ndarray) -> None:
        """Take note of the observations ``(N, ...)`` about to be acted on (input statistics), in training only."""
        if self.normalizer is not None:
            self.normalizer.update(self.upload(np.asarray(obs, np.float32)))

    def observe_rewards(self, rewards: np.ndarray, ended: np.ndarray) -> None:
        """Take note of the rewards ``(N,)`` of a training step and of which episodes ended there, in either way."""
        if self.reward_normalizer is not None:
            self.reward_normalizer.update(self.upload(np.stack([rewards, ended], -2).astype(np.float32)))

    def upload(self, array: np.ndarray) -> Tensor:
        """``array`` on the device, by a copy for which nobody waits; the next call with its shape overwrites it."""
        value = torch.as_tensor(array)
        if self.device.type != "cuda":
            return value.to(self.device)
        if value.shape not in self._uploads:
            self._uploads[value.shape] = StaticInputs([value], self.device)
        self._uploads[value.shape].fill([value])
        return self._uploads[value.shape].tensors[0]

    def draw_exploration(self, count: int, env_step: int) -> tuple[Tensor, ...]:
        """The random numbers of exploring actions in ``count`` environments, on the CPU; each begins with ``count``."""
        return ()

    @abstractmethod
    def explore(self, obs: Tensor, *drawn: Tensor) -> Tensor:
        """Exploring actions for ``obs (N, ...)``, a function of the policy's tensors and of ``draw_exploration``."""

    @abstractmethod
    def exploit(self, obs: Tensor) -> Tensor:
        """Deterministic actions for ``obs (N, ...)``, a function of the policy's tensors."""

    def act(self, obs: np.ndarray, env_step: int) -> np.ndarray:
        """Exploring actions for ``obs (N, ...)``: ``(N, A)`` float32 in [-1, 1], or ``(N,)`` int64."""
        return self.start_act(obs, env_step).cpu().numpy()

    def start_act(self, obs: np.ndarray, env_step: int) -> Tensor:
        """What ``act`` returns, on the device and perhaps still to come; the next call overwrites it."""
        drawn = self.draw_exploration(len(obs), env_step)
        inputs: tuple[np.ndarray | Tensor, ...] = (np.asarray(obs, self.obs_dtype), *drawn)
        if self.capture is not None:
            return self._record("explore").launch(*inputs)
        with torch.inference_mode():
            return self.explore(*(torch.as_tensor(x, device=self.device) for x in inputs))

    def act_greedy(self, obs: np.ndarray) -> np.ndarray:
        """Deterministic actions of the same shapes."""
        obs = np.asarray(obs, self.obs_dtype)
        if self.capture is not None:
            return self._record("exploit")(obs)
        with torch.inference_mode():
            return self.exploit(torch.as_tensor(obs, device=self.device)).cpu().numpy()

    def _record(self, name: str) -> HostCall:
        assert self.capture is not None
        if name not in self._recorded:
            self._recorded[name] = HostCall(
                getattr(self, name), self._policy_tensors, self.device, self.capture
            )
        return self._recorded[name]

    def _policy_tensors(self) -> Iterator[Tensor]:
        module = getattr(self, self.policy)
        yield from module.parameters()
        yield from module.buffers()

    # Learning

    def draw(self, batch_size: int) -> Tensor:
        """The random numbers of one update, on the CPU."""
        return torch.empty(0)

    @abstractmethod
    def update(self, step: Step, batch: Batch, noise: Tensor) -> dict[str, Tensor]:
        """One gradient update of every network, in terms of ``step``; returns the losses by name, never synchronised.

        The same lines update one agent or a stack of K: ``batch`` (B, ...), ``noise`` (of ``draw``) and the losses may
        have a leading K, so dimensions are counted from the end. ``update_step`` is the number of updates before.
        """

    def update_pattern(self, count: int) -> tuple[int, ...]:
        """Which of the next ``count`` updates (0: the next) do more than the others, such as copying a target.

        Blocks of updates with equal patterns run the same operations.
        """
        return ()

    def _every(self, period: int, count: int) -> tuple[int, ...]:
        """Those of the next ``count`` updates (0: the next) whose number, counted from 1, ``period`` divides."""
        return tuple(i for i in range(count) if (self.update_step + i + 1) % period == 0)

    def learn(self, batch: Batch, noise: Tensor | None = None) -> dict[str, Tensor]:
        """One update of this agent alone; scalar losses by name. ``noise`` is of ``draw``; None: drawn here."""
        noise = self.draw(len(batch.reward)) if noise is None else noise
        losses = self.update(self._descent, batch, noise.to(self.device))
        self.update_step += 1
        return losses

    # What only some agents have

    def epsilon(self, env_step: int) -> float | None:
        """Share of random actions at ``env_step``; None: the agent explores in another way."""
        return None

    def restart_exploration(self, period: int, duration: int) -> bool:
        """Let exploration begin anew every ``period`` env steps and fall again over ``duration``; False: it cannot."""
        return False

    def reset_temperature(self) -> None:  # noqa: B027
        """Return the entropy coefficient to its initial value; nothing where there is none."""

    def reset_normalizer(self) -> None:
        """Return the observation statistics to those of a new agent; nothing where there are none."""
        if self.normalizer is not None:
            self.normalizer.reset()

    # Resets, metrics, checkpoints

    @abstractmethod
    def networks(self) -> dict[str, NetworkSlot]:
        """The networks that a reset or a metric may touch, by name."""

    def _make_regularizers(self, l2_init: float, parseval: float) -> nn.ModuleDict:
        """The regularizer of each network, for ``_regularized``; none where both strengths are 0."""
        slots = self.networks() if l2_init or parseval else {}
        return nn.ModuleDict({name: Regularizer(l2_init, parseval, slot) for name, slot in slots.items()})

    def _regularized(self, network: str, loss: Tensor) -> Tensor:
        """``loss`` with the terms that are switched on (``_make_regularizers``) for a network."""
        return loss + self.regularizers[network](self.networks()[network].module)

    def _slot(self, name: str, **options: Any) -> NetworkSlot:
        """The slot of a network, with its optimizer and, if there is one, its target ``target_<name>``."""
        (optimizer,) = (key for key, module in self.optimizers.items() if module == name)
        target = f"target_{name}"
        return NetworkSlot(
            module=getattr(self, name),
            optimizer=getattr(self, optimizer),
            build=partial(self._fresh, name),
            initial=partial(self._initial, name),
            target=getattr(self, target) if target in self.modules else None,
            **options,
        )

    def _fresh(self, name: str, generator: torch.Generator) -> nn.Module:
        """A network with weights drawn from ``generator``."""
        return build_seeded(self._builders[name], generator).to(self.device)

    def _initial(self, name: str) -> nn.Module:
        """A network with the run's first weights."""
        # No network may start from another's draws, so each advances the stream by its position.
        generator = torch_generator(self._seed, "init")
        for earlier in self._builders:
            if earlier == name:
                break
            torch.randint(2**62, (), generator=generator)
        return self._fresh(name, generator)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: networks, targets, optimizers, counters, normaliser, generators."""
        return {
            **{name: getattr(self, name).state_dict() for name in (*self.modules, *self.optimizers)},
            **{name: generator.get_state() for name, generator in self.generators.items()},
            "update_step": self.update_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict`` in place."""
        for name, slot in self.networks().items():
            restore_structure(slot, state[name])
        for name in self.modules:
            getattr(self, name).load_state_dict(state[name])
        for name in self.optimizers:
            load_optimizer(getattr(self, name), state[name])
        for name, generator in self.generators.items():
            generator.set_state(state[name].cpu())
        self.update_step = int(state["update_step"])

    def policy_state(self) -> dict[str, Any]:
        """The part of ``state_dict`` that greedy actions need."""
        return {self.policy: getattr(self, self.policy).state_dict()}

    def load_policy(self, state: Mapping[str, Any]) -> None:
        """Restore ``policy_state``, or that part of a ``state_dict``, in place."""
        restore_structure(self.networks()[self.policy], state[self.policy])
        getattr(self, self.policy).load_state_dict(state[self.policy])


class Descent:
    """The ``Step`` of one agent: gradient descent by its own optimizers."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __call__(self, optimizer: str, loss: Loss, *args: Any) -> tuple[Tensor, ...]:
        agent = self._agent
        own: list[Tensor] = []
        frozen: list[Tensor] = []
        for name in agent.optimizers:
            for group in getattr(agent, name).param_groups:
                (own if name == optimizer else frozen).extend(group["params"])
        # Gradients pass through the other networks to their inputs; those of their parameters are not computed.
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            values = loss(*args)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        mine: torch.optim.Optimizer = getattr(agent, optimizer)
        mine.zero_grad(set_to_none=True)
        # With a single network nothing else could get a gradient, and autograd need not search for what to leave out.
        values[0].backward(inputs=own if frozen else None)
        mine.step()
        return tuple(value.detach() for value in values)

    def soft_update(self, target: str, source: str, tau: float) -> None:
        theirs, ours = (list(getattr(self._agent, name).parameters()) for name in (target, source))
        with torch.no_grad():
            torch._foreach_lerp_(theirs, ours, tau)

    def hard_update(self, target: str, source: str) -> None:
        theirs, ours = (
            [*module.parameters(), *module.buffers()]
            for module in (getattr(self._agent, name) for name in (target, source))
        )
        with torch.no_grad():
            torch._foreach_copy_(theirs, ours)

    @torch.no_grad()
    def write(self, module: str, values: Callable[..., dict[str, Tensor]], *args: Any) -> None:
        owner: nn.Module = getattr(self._agent, module)
        tensors = dict(owner.named_parameters()) | dict(owner.named_buffers())
        found = values(*args)
        torch._foreach_copy_([tensors[name] for name in found], list(found.values()))


def discount_from_horizon(max_episode_steps: int | None) -> float:
    """Return SimBa's discount factor for an episode limit of L transitions: ``1 - 5 / L`` in [0.95, 0.995].

    The rule is that of the published SimBa configuration, ``clip((L/5 - 1) / (L/5), 0.95, 0.995)``; 500 transitions
    give 0.99. Without a limit, 0.99.
    """
    if max_episode_steps is None:
        return 0.99
    return float(np.clip(1.0 - 5.0 / max_episode_steps, 0.95, 0.995))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimizer's state, which another kind of device may have saved: how it steps stays this device's."""
    groups = [
        {**saved, "capturable": own["capturable"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})


def probe_noise(shape: torch.Size, device: torch.device) -> Tensor:
    """Standard normal noise that is the same on every call and every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(PROBE_SEED)).to(device)
