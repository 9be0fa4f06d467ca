"""Tokenizers: bytes, or byte pairs, which are learned from the corpora or read from a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from configs.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Bytes:
    """Every byte is a token."""

    vocabulary = 256
    name = "bytes"

    def encode(self, texts: Sequence[bytes]) -> Tensor:
        """The tokens of the texts one after another, (number of bytes,) uint8."""
        return torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that ``tokens`` spell, with a mark for each byte that is no character."""
        return bytes(tokens).decode(errors="replace")


class BytePairs:
    """Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes as GPT-2), by the ``tokenizers`` package.

    A character that the end of a text cuts in two becomes a mark for an unknown one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocabulary = tokenizer.get_vocab_size()
        digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:12]
        self.name = f"{self.vocabulary} byte pairs, {digest}"

    @classmethod
    def trained(cls, texts: Sequence[bytes], vocabulary: int) -> BytePairs:
        """Learn ``vocabulary`` tokens, the 256 bytes among them, from ``texts``.

        Raises:
            ConfigError: a vocabulary below 257, ``tokenizers`` not installed.
        """
        if vocabulary <= Bytes.vocabulary:
            raise ConfigError(f"--vocabulary must be above the {Bytes.vocabulary} bytes, got {vocabulary}")
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((_characters(text) for text in texts), trainer)
        return cls(tokenizer)

    @classmethod
    def read(cls, path: Path) -> BytePairs:
        """The tokenizer of a ``tokenizer.json``, that of GPT-2 for example.

        Raises:
            ConfigError: no such file, no tokenizer in it, ``tokenizers`` not installed.
        """
        if not path.is_file():
            raise ConfigError(f"--tokenizer must be bytes, bpe or a tokenizer.json; there is no file {path}")
        try:
            return cls(_library().Tokenizer.from_file(str(path)))
        except Exception as error:  # the package raises bare Exceptions
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"--tokenizer {path} is no tokenizer.json: {error}") from error

    def encode(self, texts: Sequence[bytes]) -> Tensor:
        """The tokens of the texts one after another, (number of tokens,) int32."""
        encoded = self._tokenizer.encode_batch_fast(
            [_characters(text) for text in texts], add_special_tokens=False
        )
        return torch.cat([torch.tensor(each.ids, dtype=torch.int32) for each in encoded])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that ``tokens`` spell."""
        return self._tokenizer.decode(list(tokens))


def _characters(text: bytes) -> str:
    return text.decode(errors="replace")


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ConfigError(
            "byte pairs take the tokenizers package; pip install -r requirements-studies.txt"
        ) from error
    return tokenizers


def make_tokenizer(name: str, texts: Sequence[bytes], vocabulary: int) -> Bytes | BytePairs:
    """The tokenizer that ``--tokenizer`` names: ``bytes``, ``bpe`` learned from ``texts``, or that of a file.

    Raises:
        ConfigError: as :class:`BytePairs`.
    """
    if name == "bytes":
        return Bytes()
    if name == "bpe":
        return BytePairs.trained(texts, vocabulary)
    return BytePairs.read(Path(name))
