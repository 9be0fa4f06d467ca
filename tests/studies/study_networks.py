"""The studies' networks, small, in slots for the tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.seeding import torch_generator
from fire.network.slot import NetworkSlot
from studies.chunks import drawn
from studies.language.data import loss_of
from studies.language.gpt import FUSED, GPT, adamw
from studies.vision.networks import ResNet18, ViT

MAKERS = {
    "resnet": lambda: ResNet18(3, 8, 5, width=4),
    "vit": lambda: ViT(3, 8, 5, width=12, depth=2),
    "gpt": lambda: GPT(20, 8, depth=2, width=12, num_heads=3),
}


def batch_of(kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if kind == "gpt":
        tokens = torch.randint(20, (8, 9), generator=generator)
        return tokens[:, :-1], tokens[:, 1:]
    return torch.randn(16, 3, 8, 8, generator=generator), torch.randint(5, (16,), generator=generator)


def loss_for(kind: str, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (
        loss_of(module, batch) if kind == "gpt" else nn.functional.cross_entropy(module(batch[0]), batch[1])
    )


def train_step(slot: NetworkSlot, kind: str, seed: int) -> float:
    slot.optimizer.zero_grad()
    loss = slot.loss(batch_of(kind, seed))
    loss.backward()
    slot.optimizer.step()
    return float(loss.detach())


def make_slot(kind: str, steps: int = 2) -> NetworkSlot:
    """A slot whose network took a few steps."""

    def build(generator: torch.Generator) -> nn.Module:
        return drawn(MAKERS[kind], generator)

    module = build(torch_generator(0, "init"))
    slot = NetworkSlot(
        module=module,
        optimizer=adamw(module, 1e-2),
        build=build,
        initial=lambda: build(torch_generator(0, "init")),
        forward=lambda batch: module(batch[0]),
        loss=lambda batch: loss_for(kind, module, batch),
        fused=FUSED if kind == "gpt" else {},
    )
    for step in range(steps):
        train_step(slot, kind, 100 + step)
    return slot
