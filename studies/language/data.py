"""Text as bytes: the built-in corpora, files and folders of one's own, and minibatches of crops.

Without a path corpus A is the English documentation of Python's language (``pydoc_data``), corpus B the source of the
standard library: both come with every Python, so that a study runs without a download.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from studies.chunks import Batch, Chunk

VOCABULARY = 256
BLOCK = 4_096  # bytes; every tenth block is held out
HOLD_OUT = 10
MAX_BYTES = 2**31


@dataclass(frozen=True)
class Corpus:
    """A text as bytes, uint8, to train and to validate on; ``digest`` is the start of its SHA-256."""

    name: str
    train: Tensor
    validation: Tensor
    digest: str

    def to(self, device: torch.device) -> Corpus:
        """The same text on another device."""
        return Corpus(self.name, self.train.to(device), self.validation.to(device), self.digest)


def documentation() -> bytes:
    """The language reference as ``pydoc`` shows it, in the order of its topics."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def standard_library() -> bytes:
    """The modules of Python's standard library that are single files, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"\n\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))


def read_text(path: Path) -> bytes:
    """A file, or all files of a folder and the folders below it in the order of their paths, hidden ones left out.

    Raises:
        ConfigError: nothing there, or more than 2 GiB.
    """
    if not path.exists():
        raise ConfigError(f"corpus {path} does not exist")
    files = [path]
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(path))]
    size = sum(file.stat().st_size for file in files)
    if size > MAX_BYTES:
        raise ConfigError(f"corpus {path} has {size / 2**30:.1f} GiB, more than {MAX_BYTES / 2**30:.0f}")
    return b"\n\n".join(file.read_bytes() for file in files)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def make_corpus(name: str, text: bytes, context: int) -> Corpus:
    """Split a text into blocks, of which every tenth is held out.

    Raises:
        ConfigError: less than a validation block of the model's context.
    """
    if len(text) < HOLD_OUT * BLOCK or context >= BLOCK:
        raise ConfigError(
            f"corpus {name} has {len(text)} bytes; it takes {HOLD_OUT * BLOCK}, and a context below {BLOCK}"
        )
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    blocks = data.split(BLOCK)
    held_out = [block for index, block in enumerate(blocks) if index % HOLD_OUT == HOLD_OUT - 1]
    kept = [block for index, block in enumerate(blocks) if index % HOLD_OUT != HOLD_OUT - 1]
    return Corpus(name, torch.cat(kept), torch.cat(held_out), hashlib.sha256(text).hexdigest()[:12])


def crops(data: Tensor, starts: Tensor, context: int) -> Batch:
    """Inputs and next tokens, each (len(starts), context) int64."""
    rows = data[starts.unsqueeze(1) + torch.arange(context + 1, device=data.device)].long()
    return rows[:, :-1], rows[:, 1:]


def chunk_of(
    name: str,
    corpora: tuple[Corpus, Corpus],
    share_of_a: float,
    num_updates: int,
    *,
    batch_size: int,
    context: int,
    validation_crops: int,
) -> Chunk:
    """Training on crops of the two corpora, from the first with probability ``share_of_a``.

    ``evaluate`` gives the loss on each corpus' held-out text in nats per byte, on evenly spaced crops, the same each
    time.
    """
    a, b = corpora

    def batches(generator: torch.Generator) -> Iterator[Batch]:
        while True:
            from_a = int((torch.rand(batch_size, generator=generator) < share_of_a).sum())
            parts = [
                crops(corpus.train, _starts(corpus.train, count, context, generator), context)
                for corpus, count in ((a, from_a), (b, batch_size - from_a))
            ]
            yield torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def evaluate(module: nn.Module) -> dict[str, float]:
        losses = {}
        for key, corpus in (("a", a), ("b", b)):
            last = len(corpus.validation) - context - 1
            starts = torch.linspace(0, last, validation_crops).long().to(corpus.validation.device)
            losses[f"loss_{key}"] = mean_loss(module, corpus.validation, starts, context)
        return losses

    return Chunk(name, num_updates, batches, evaluate)


def _starts(data: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(data) - context, (count,), generator=generator).to(data.device)


def mean_loss(module: nn.Module, data: Tensor, starts: Tensor, context: int) -> float:
    """Mean cross-entropy of the next byte, in nats, over crops."""
    total = torch.zeros((), device=data.device)
    for part in starts.split(32):
        total += loss_of(module, crops(data, part, context)) * len(part)
    return float(total) / len(starts)


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token, in nats."""
    return nn.functional.cross_entropy(module(batch[0]).flatten(0, 1).float(), batch[1].flatten())
