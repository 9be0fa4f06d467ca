"""Small networks in slots for the tests: an MLP, a convolutional network, batched twin critics."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fire.network.slot import NetworkSlot
from fire.options import OPTIONS
from fire.resets.registry import Reset, make_reset


def strategy(name: str, **options) -> Reset:
    """Reset strategy ``name``, with some of its options set."""
    return make_reset(name, OPTIONS[name](**options))


class BatchedLinear(nn.Module):
    """E linear layers applied to (E, B, in)."""

    def __init__(self, ensemble_size: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(ensemble_size, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(ensemble_size, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.mT)


class Twin(nn.Module):
    """Two critics as one batched module behind a shared normaliser with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.normaliser = nn.BatchNorm1d(6, affine=False)
        self.fc1 = BatchedLinear(2, 6, 16)
        self.relu = nn.ReLU()
        self.fc2 = BatchedLinear(2, 16, 12)
        self.relu2 = nn.ReLU()
        self.head = BatchedLinear(2, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normaliser(x).expand(2, *x.shape)
        return self.head(self.relu2(self.fc2(self.relu(self.fc1(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )


def initialise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw every weight from ``generator``; norms to one, other vectors small but not zero."""
    with torch.no_grad():
        for child in module.modules():
            for name, parameter in child.named_parameters(recurse=False):
                if isinstance(child, nn.LayerNorm | nn.BatchNorm2d):
                    parameter.fill_(1.0 if name == "weight" else 0.0)
                else:
                    fan_in = parameter[0].numel() if name == "weight" else 100
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return module


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (32, 5)),
    "conv": (conv, (16, 3, 8, 8)),
    "twin": (Twin, (32, 6)),
}


def batch_for(kind: str, seed: int = 5) -> Tensor:
    return torch.randn(ARCHITECTURES[kind][1], generator=torch.Generator().manual_seed(seed))


def make_slot(kind: str, seed: int = 0, train_steps: int = 3, learning_rate: float = 1e-2) -> NetworkSlot:
    """A slot whose network took a few training steps, with an out-of-date target and optimizer moments."""
    make, _ = ARCHITECTURES[kind]

    def build(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            return initialise(make(), generator)

    module = build(torch.Generator().manual_seed(seed))
    first = copy.deepcopy(module)
    slot = NetworkSlot(
        module=module,
        optimizer=torch.optim.AdamW(module.parameters(), lr=learning_rate),
        build=build,
        initial=lambda: copy.deepcopy(first),
        forward=lambda batch: module(batch),
        loss=lambda batch: (module(batch) - batch.flatten(1)[:, :1]).square().mean(),
        predicts_values=True,
        target=copy.deepcopy(module),
        preserve=("normaliser",) if kind == "twin" else (),
        ensemble_size=2 if kind == "twin" else None,
    )
    for step in range(train_steps):
        train_step(slot, batch_for(kind, seed=100 + step))
    return slot


def train_step(slot: NetworkSlot, batch: Tensor) -> float:
    loss = slot.loss(batch)
    slot.optimizer.zero_grad()
    loss.backward()
    slot.optimizer.step()
    return float(loss.detach())
