"""Corpora as bytes: splits, crops, mixtures, losses."""

from __future__ import annotations

import math

import pytest
import torch

from configs.errors import ConfigError
from studies.language.data import (
    BLOCK,
    chunk_of,
    crops,
    documentation,
    make_corpus,
    mean_loss,
    read_text,
    standard_library,
)


def test_the_built_in_corpora_are_documentation_and_source():
    text, source = documentation(), standard_library()
    assert b"The assignment statement" in text or b"Assignment statements" in text
    assert source.count(b"\nimport ") > 300 and len(text) > 3e5 and len(source) > 2e6


def test_a_corpus_is_split_into_blocks():
    text = bytes(block % 251 for block in range(20) for _ in range(BLOCK))
    corpus = make_corpus("x", text, 8)
    assert corpus.validation.unique().tolist() == [9, 19]
    assert corpus.train.unique().tolist() == [i for i in range(20) if i not in (9, 19)]
    assert len(corpus.train) + len(corpus.validation) == len(text)


def test_crops_are_followed_by_the_next_byte():
    data = torch.arange(50, dtype=torch.uint8)
    inputs, targets = crops(data, torch.tensor([0, 40]), 9)
    assert inputs[1].tolist() == list(range(40, 49)) and torch.equal(targets, inputs + 1)


def test_the_mixture_takes_its_share_of_a():
    a, b = (make_corpus(name, bytes([value]) * 12 * BLOCK, 8) for name, value in (("a", 1), ("b", 2)))
    chunk = chunk_of("m", (a, b), 0.25, 1, batch_size=64, context=8, validation_crops=4)
    batches = chunk.batches(torch.Generator().manual_seed(0))
    share = torch.cat([next(batches)[0][:, 0] == 1 for _ in range(50)]).double().mean()
    assert float(share) == pytest.approx(0.25, abs=0.03)
    only = chunk_of("a", (a, b), 1.0, 1, batch_size=8, context=8, validation_crops=4)
    assert bool((next(only.batches(torch.Generator()))[0] == 1).all())


def test_evaluation_is_the_loss_on_each_corpus():
    class Ones(torch.nn.Module):
        """Always expects byte 1, with logit 5 against 255 zeros."""

        def forward(self, tokens):
            return 5.0 * torch.nn.functional.one_hot(torch.ones_like(tokens), 256)

    a, b = (make_corpus(name, bytes([value]) * 12 * BLOCK, 8) for name, value in (("a", 1), ("b", 2)))
    figures = chunk_of("m", (a, b), 0.5, 1, batch_size=4, context=8, validation_crops=40).evaluate(Ones())
    total = math.log(math.exp(5) + 255)
    assert figures == {"loss_a": pytest.approx(total - 5, rel=1e-5), "loss_b": pytest.approx(total, rel=1e-5)}
    mixed = torch.cat([a.validation[:9], b.validation[:9]])
    assert mean_loss(Ones(), mixed, torch.tensor([0, 9]), 8) == pytest.approx(total - 2.5, rel=1e-5)


def test_folders_are_read_in_order_without_hidden_files(tmp_path):
    for name, content in (("b.txt", "second"), ("a/x.txt", "first"), (".git/c", "hidden"), (".d", "hidden")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert read_text(tmp_path) == b"first\n\nsecond"
    assert read_text(tmp_path / "b.txt") == b"second"


def test_a_missing_or_short_corpus_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_text(tmp_path / "none")
    with pytest.raises(ConfigError, match="corpus x has 9 bytes"):
        make_corpus("x", b"too short", 8)
