"""Corpora: files, splits, tokens, crops, mixtures, losses."""

from __future__ import annotations

import math

import pyarrow
import pytest
import torch
from pyarrow import parquet

from configs.errors import ConfigError
from studies.language.data import (
    BLOCK,
    chunk_of,
    crops,
    documentation,
    make_corpus,
    mean_loss,
    read_text,
    split,
    standard_library,
)
from studies.language.tokens import BytePairs, Bytes, make_tokenizer


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
    assert figures == {
        "loss_a": pytest.approx(total - 5, rel=1e-5),
        "loss_b": pytest.approx(total, rel=1e-5),
        "perplexity_a": pytest.approx(math.exp(total - 5), rel=1e-4),
        "perplexity_b": pytest.approx(math.exp(total), rel=1e-4),
    }
    mixed = torch.cat([a.validation[:9], b.validation[:9]])
    assert mean_loss(Ones(), mixed, torch.tensor([0, 9]), 8) == pytest.approx(total - 2.5, rel=1e-5)


def test_a_diverged_network_has_an_infinite_perplexity_and_no_traceback():
    class Wrong(torch.nn.Module):
        """Is sure of byte 0, wrongly."""

        def forward(self, tokens):
            return 1e4 * torch.nn.functional.one_hot(torch.zeros_like(tokens), 256)

    corpus = make_corpus("x", bytes([1]) * 12 * BLOCK, 8)
    chunk = chunk_of("x", (corpus, corpus), 1.0, 1, batch_size=4, context=8, validation_crops=4)
    figures = chunk.evaluate(Wrong())
    assert figures["perplexity_a"] == math.inf and figures["loss_a"] == pytest.approx(1e4)


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
    with pytest.raises(ConfigError, match="has 4096 held-out tokens; it takes more than the context of 5000"):
        make_corpus("x", bytes(10 * BLOCK), 5_000)


def write_parquet(path, texts, column="text"):
    parquet.write_table(pyarrow.table({"id": list(range(len(texts))), column: texts}), path, row_group_size=2)
    return path


def test_parquet_files_are_read_row_by_row(tmp_path):
    texts = ["first", "", None, "größer", "last"]
    path = write_parquet(tmp_path / "train-00000.parquet", texts)
    assert read_text(path) == "first\n\n\n\n\n\ngrößer\n\nlast".encode()
    (tmp_path / "z.txt").write_text("plain")
    assert read_text(tmp_path).endswith(b"last\n\nplain")


def test_a_corpus_ends_where_max_bytes_says(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["abc"] * 5_000)
    whole = read_text(path)
    assert read_text(path, 7) == b"abc\n\nab" == whole[:7] and read_text(path, len(whole) + 1) == whole
    (tmp_path / "b.txt").write_text("x" * 100)
    assert read_text(tmp_path / "b.txt", 30) == b"x" * 30


def test_wrong_parquet_files_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="has no column 'text'; its columns are id, content"):
        read_text(write_parquet(tmp_path / "a.parquet", ["x"], column="content"))
    (tmp_path / "b.parquet").write_text("no table")
    with pytest.raises(ConfigError, match=r"b\.parquet is no Parquet file"):
        read_text(tmp_path / "b.parquet")


def test_byte_pairs_spell_the_text_and_are_fewer():
    text = documentation()[:200_000]
    kept, _ = split(text)
    pairs = BytePairs.trained(kept, 512)
    assert pairs.vocabulary == 512
    tokens = pairs.encode([text])
    assert pairs.decode(tokens.tolist()) == text.decode()
    assert len(tokens) < len(text) / 1.8 and int(tokens.max()) < 512
    assert BytePairs.trained(kept, 512).name == pairs.name, "learned anew they are the same"
    anything = bytes(range(32, 127)) + "é, 漢字, 🤖".encode()
    assert pairs.decode(pairs.encode([anything]).tolist()).encode() == anything


def test_byte_pairs_merge_the_most_frequent_pair_first():
    pairs = BytePairs.trained([b"abab abab abac"], 257)
    assert [len(pairs.encode([text])) for text in (b"abac", b"abab", b"ac")] == [3, 2, 2]


def test_the_loss_of_byte_pairs_is_that_of_the_bytes_they_spell():
    class Uniform(torch.nn.Module):
        """Every token is as likely."""

        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 512)

    text = documentation()[: 40 * BLOCK]
    pairs = BytePairs.trained(split(text)[0], 512)
    corpus = make_corpus("x", text, 8, pairs)
    figures = chunk_of("x", (corpus, corpus), 1.0, 1, batch_size=4, context=8, validation_crops=16).evaluate(
        Uniform()
    )
    held_out = b"".join(split(text)[1])
    per_byte = len(pairs.encode(split(text)[1])) / len(held_out)
    assert figures["loss_a"] == pytest.approx(math.log(512) * per_byte, rel=1e-5)
    assert figures["perplexity_a"] == pytest.approx(512, rel=1e-4)
    assert 0.3 < per_byte < 0.7


def test_a_tokenizer_comes_from_a_file(tmp_path):
    from tokenizers import Tokenizer, models

    pairs = BytePairs.trained([documentation()[:50_000]], 300)
    path = tmp_path / "tokenizer.json"
    pairs._tokenizer.save(str(path))
    again = make_tokenizer(str(path), [], 0)
    assert again.name == pairs.name and again.encode([b"while"]).tolist() == pairs.encode([b"while"]).tolist()
    assert isinstance(make_tokenizer("bytes", [], 0), Bytes)
    for name, message in ((str(tmp_path / "none.json"), "there is no file"), ("bpe", "above the 256 bytes")):
        with pytest.raises(ConfigError, match=message):
            make_tokenizer(name, [b"x"], 256)
    Tokenizer(models.BPE()).save(str(path))
    path.write_text(path.read_text()[:40])
    with pytest.raises(ConfigError, match=r"is no tokenizer\.json"):
        make_tokenizer(str(path), [], 0)
