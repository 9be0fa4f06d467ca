"""Corpora: the built-in ones, texts and Parquet files of one's own, and minibatches of crops.

Without a path corpus A is the English documentation of Python's language (``pydoc_data``), corpus B the source of the
standard library: both come with every Python, so that a study runs without a download.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.errors import ConfigError
from studies.chunks import Batch, Chunk
from studies.language.tokens import BytePairs, Bytes

BLOCK = 4_096  # bytes; every tenth block is held out
HOLD_OUT = 10
MAX_BYTES = 2**31  # unless the user says how much of a corpus to take
TEXT_COLUMN = "text"  # in the Parquet files of OpenWebText, FineWeb-edu and WikiText-103
SEPARATOR = b"\n\n"


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, to train and to validate on.

    Attributes:
        name: for tables and errors.
        train, validation: (number of tokens,), uint8 for bytes, int32 for byte pairs.
        tokens_per_byte: of the held-out text.
        digest: start of the text's SHA-256.
        num_bytes: of the whole text.
    """

    name: str
    train: Tensor
    validation: Tensor
    tokens_per_byte: float
    digest: str
    num_bytes: int

    def to(self, device: torch.device) -> Corpus:
        """The same text on another device."""
        return dataclasses.replace(self, train=self.train.to(device), validation=self.validation.to(device))


def documentation() -> bytes:
    """The language reference as ``pydoc`` shows it, in the order of its topics."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics)).encode()


def standard_library() -> bytes:
    """The modules of Python's standard library that are single files, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"\n\n".join(path.read_bytes() for path in sorted(folder.glob("*.py")))


def read_text(path: Path, max_bytes: int | None = None) -> bytes:
    """A file, or all files of a folder and the folders below it in the order of their paths, hidden ones left out.

    Of a Parquet file the column ``text`` is read, row by row.

    Args:
        path: file or folder.
        max_bytes: take the text from its beginning up to here; None: all of it.

    Raises:
        ConfigError: nothing there, no such column, more than 2 GiB without ``max_bytes``.
    """
    if not path.exists():
        raise ConfigError(f"corpus {path} does not exist")
    files = [path]
    if path.is_dir():
        files = [p for p in sorted(path.rglob("*")) if p.is_file() and not _is_hidden(p.relative_to(path))]
    limit = MAX_BYTES + 1 if max_bytes is None else max_bytes
    text = bytearray()
    for part in _parts(files, limit):
        if text:
            text += SEPARATOR
        text += part
        if len(text) >= limit:
            break
    if max_bytes is None and len(text) > MAX_BYTES:
        raise ConfigError(
            f"corpus {path} has more than {MAX_BYTES / 2**30:.0f} GiB; --max-bytes takes the beginning of it"
        )
    return bytes(text[:limit])


def _parts(files: list[Path], limit: int) -> Iterator[bytes]:
    """The texts of ``files``, of a plain file no more than ``limit`` bytes."""
    for file in files:
        if file.suffix == ".parquet":
            yield from _rows(file)
        else:
            with file.open("rb") as stream:
                yield stream.read(limit)


def _rows(file: Path) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"corpus {file}: Parquet files take pyarrow; pip install -r requirements-studies.txt"
        ) from error
    try:
        table = parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ConfigError(f"corpus {file} is no Parquet file: {error}") from error
    columns = table.schema_arrow.names
    if TEXT_COLUMN not in columns:
        raise ConfigError(
            f"corpus {file} has no column {TEXT_COLUMN!r}; its columns are {', '.join(columns)}"
        )
    for batch in table.iter_batches(columns=[TEXT_COLUMN], batch_size=1_024):
        for row in batch.column(0):
            yield (row.as_py() or "").encode()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def split(text: bytes) -> tuple[list[bytes], list[bytes]]:
    """The stretches to train on, of nine blocks of 4 KiB each, and the blocks between them, which are held out."""
    stride = HOLD_OUT * BLOCK
    kept = [text[start : start + stride - BLOCK] for start in range(0, len(text), stride)]
    held_out = [text[start : start + BLOCK] for start in range(stride - BLOCK, len(text), stride)]
    return kept, held_out


def make_corpus(name: str, text: bytes, context: int, tokenizer: Bytes | BytePairs | None = None) -> Corpus:
    """Split a text into blocks, of which every tenth is held out, and both parts into tokens.

    Args:
        name: for tables and errors.
        text: the whole text.
        context: longest sequence of the model, in tokens.
        tokenizer: None: bytes.

    Raises:
        ConfigError: too short a text to hold out a sequence of the model's context.
    """
    if len(text) < HOLD_OUT * BLOCK:
        raise ConfigError(f"corpus {name} has {len(text)} bytes; it takes {HOLD_OUT * BLOCK}")
    kept, held_out = split(text)
    tokenizer = tokenizer or Bytes()
    validation = tokenizer.encode(held_out)
    if len(validation) <= context:
        raise ConfigError(
            f"corpus {name} has {len(validation)} held-out tokens; it takes more than the context of {context}"
        )
    return Corpus(
        name,
        tokenizer.encode(kept),
        validation,
        len(validation) / sum(map(len, held_out)),
        hashlib.sha256(text).hexdigest()[:12],
        len(text),
    )


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

    ``evaluate`` gives the loss on each corpus' held-out text in nats per byte and the perplexity of a token, on evenly
    spaced crops, the same each time.
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
        figures: dict[str, float] = {}
        for key, corpus in (("a", a), ("b", b)):
            last = len(corpus.validation) - context - 1
            starts = torch.linspace(0, last, validation_crops).long().to(corpus.validation.device)
            loss = mean_loss(module, corpus.validation, starts, context)
            perplexity = float(
                torch.tensor(loss, dtype=torch.float64).exp()
            )  # math.exp raises where a run diverges
            figures |= {f"loss_{key}": loss * corpus.tokens_per_byte, f"perplexity_{key}": perplexity}
        return figures

    return Chunk(name, num_updates, batches, evaluate)


def _starts(data: Tensor, count: int, context: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(data) - context, (count,), generator=generator).to(data.device)


def mean_loss(module: nn.Module, data: Tensor, starts: Tensor, context: int) -> float:
    """Mean cross-entropy of the next token, in nats, over crops."""
    total = torch.zeros((), device=data.device)
    for part in starts.split(32):
        total += loss_of(module, crops(data, part, context)) * len(part)
    return float(total) / len(starts)


def loss_of(module: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next token, in nats."""
    return nn.functional.cross_entropy(module(batch[0]).flatten(0, 1).float(), batch[1].flatten())
