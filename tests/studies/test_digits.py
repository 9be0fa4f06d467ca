"""Continual learning on digits: what seeds do not share, arms, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from fire.options import FireOptions
from fire.resets.fire import FireReset
from fire.resets.registry import REGISTRY
from studies import digits
from studies.arms import parse_arm
from studies.command import main


def test_seeds_share_no_gradient() -> None:
    network = digits.make_network(2, torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 5, dtype=torch.long)
    gradients = []
    for other in (1.0, -3.0):
        images = torch.ones(2, 5, 64)
        images[1] *= other
        loss = digits.cross_entropy(network(images), labels)
        gradients.append(torch.autograd.grad(loss, network[0].weight)[0])
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_a_seeded_layer_is_one_linear_layer_for_each_seed() -> None:
    layer = digits.SeededLinear(3, 4, 5, torch.Generator().manual_seed(0))
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([nn.functional.linear(x[e], layer.weight[e], layer.bias[e]) for e in range(3)])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", digits.TASKS)
def test_a_short_study_is_reproducible(kind: str) -> None:
    scores, metrics = digits.scores_of(kind, FireReset(), num_seeds=2, num_tasks=2, steps=3)
    again, _ = digits.scores_of(kind, FireReset(), num_seeds=2, num_tasks=2, steps=3)
    assert scores.shape == (2, 2) and np.array_equal(scores, again)
    assert "plasticity/net/srank" in metrics


def test_each_arm_is_a_reset_with_the_options_of_the_figures_in_results() -> None:
    """Tables of 21 November 2026 were made with the options' defaults, not with those of configs/reset/."""
    arms = [parse_arm(spec).reset for spec in (*digits.ARMS, "fire_paper:scale=preserve_norm")]
    expected = [
        *(REGISTRY[name]() for name in digits.ARMS[:6]),
        REGISTRY["fire"](FireOptions(method="newton_schulz")),
        REGISTRY["fire"](),
        REGISTRY["fire"](FireOptions(scale="mean_singular_value")),
        REGISTRY["fire"](FireOptions(scale="preserve_norm")),
    ]
    assert [(type(arm), vars(arm)) for arm in arms] == [(type(reset), vars(reset)) for reset in expected]


def test_the_command_writes_table_figure_and_scores(tmp_path, capsys) -> None:
    argv = ["--arms", "none", "fire_paper:scale=unit", "--seeds", "2", "--num-tasks", "2", "--steps", "2"]
    assert main(digits.parse, digits.run, [*argv, "--output", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == set(digits.TASKS) and set(scores["permuted"]) == {"none", "fire_paper:scale=unit"}
    assert (tmp_path / "figure.png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "summary.md").read_text() + f"results in {tmp_path}\n"


@pytest.mark.parametrize(
    "words",
    [
        "--arms fier",
        "--arms fire fire",
        "--seeds 0",
        "--tasks sorted",
        "--arms cbp",
        "--arms fire@1",
        "--arms none:ewc=1",
        "--arms l2_init",
    ],
)
def test_wrong_words_are_one_line(words, capsys) -> None:
    assert main(digits.parse, digits.run, words.split()) == 2
    assert capsys.readouterr().err.count("\n") == 1
