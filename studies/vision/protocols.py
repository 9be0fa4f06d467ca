"""Protocols: which training images each chunk holds (FIRE, arXiv 2602.08040, section 4.1).

| protocol | chunks |
|---|---|
| ``warm_start`` | a tenth of the data, then all of it; the first is trained ten times as many epochs |
| ``continual`` | ten, each with another tenth of the data added |
| ``class_incremental`` | twenty, each with more classes added; as many as there are classes where these are fewer |

Data stay: a chunk holds all images of the chunks before it. In class-incremental learning the test images are those of
the classes seen so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.seeding import torch_generator
from studies.chunks import Batch, Chunk
from studies.vision.data import ImageData

PROTOCOLS = ("warm_start", "continual", "class_incremental")
NUM_PARTS = 10
NUM_PHASES = 20
FIRST_CHUNK_EPOCHS = 10  # times as many, in warm_start
EVALUATED_TRAINING_IMAGES = 2_000


@dataclass(frozen=True)
class Portion:
    """Indices of the training and test images of one chunk, and how many times as many epochs it is trained."""

    name: str
    train: Tensor
    test: Tensor
    epochs_factor: int = 1


def portions(protocol: str, data: ImageData, seed: int) -> list[Portion]:
    """The chunks of ``protocol``; which images or classes come first is drawn from ``seed``."""
    generator = torch_generator(seed, "data")
    everything = torch.arange(len(data.test_labels))
    if protocol == "class_incremental":
        order = torch.randperm(data.num_classes, generator=generator)
        phases = torch.tensor_split(order, min(NUM_PHASES, data.num_classes))
        found = []
        for index in range(len(phases)):
            seen = torch.cat(phases[: index + 1])
            train, test = (
                torch.isin(labels.cpu(), seen).nonzero()[:, 0] for labels in (data.labels, data.test_labels)
            )
            found.append(Portion(f"{len(seen)} classes", train, test))
        return found
    order = torch.randperm(len(data.labels), generator=generator)
    shares = [1, NUM_PARTS] if protocol == "warm_start" else range(1, NUM_PARTS + 1)
    return [
        Portion(
            f"{100 * share // NUM_PARTS} %",
            order[: math.ceil(len(order) * share / NUM_PARTS)],
            everything,
            FIRST_CHUNK_EPOCHS if protocol == "warm_start" and share == 1 else 1,
        )
        for share in shares
    ]


def chunk_of(portion: Portion, data: ImageData, epochs: int, batch_size: int) -> Chunk:
    """The portion as a chunk of ``epochs`` passes in shuffled minibatches of nearly equal size.

    ``evaluate`` gives accuracy and loss on the test images and the accuracy on (at most 2,000) training images.
    """
    device = data.images.device
    num_batches = math.ceil(len(portion.train) / batch_size)
    train, test = portion.train.to(device), portion.test.to(device)

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        while True:
            order = torch.randperm(len(train), generator=generator).to(device)
            for rows in torch.tensor_split(train[order], num_batches):
                yield data.normalised(data.images[rows]), data.labels[rows]

    def evaluate(module: nn.Module) -> dict[str, float]:
        some = train[:EVALUATED_TRAINING_IMAGES]
        accuracy, loss = score(module, data, data.test_images, data.test_labels, test)
        train_accuracy, _ = score(module, data, data.images, data.labels, some)
        return {"test_accuracy": accuracy, "test_loss": loss, "train_accuracy": train_accuracy}

    return Chunk(portion.name, epochs * portion.epochs_factor * num_batches, batches, evaluate)


def score(
    module: nn.Module, data: ImageData, images: Tensor, labels: Tensor, rows: Tensor
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy (nats) of ``module`` on the images ``rows``."""
    correct = torch.zeros((), device=images.device)
    loss = torch.zeros((), device=images.device)
    for part in rows.split(1_000):
        logits = module(data.normalised(images[part]))
        correct += (logits.argmax(-1) == labels[part]).sum()
        loss += nn.functional.cross_entropy(logits, labels[part], reduction="sum")
    return float(correct) / len(rows), float(loss) / len(rows)
