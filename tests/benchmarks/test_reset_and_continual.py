"""The rival of the reset benchmark and the parts of the continual-learning study."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import continual
from benchmarks.reset import NETWORKS, accuracy, published, weights_of
from fire.polar.factors import polar_factor
from fire.resets.fire import FireReset


def test_the_published_rival_is_the_librarys_newton_schulz_one_slice_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for shape in ((3, 12, 8), (8, 12))]
    for tensor, factor in zip(tensors, published(tensors), strict=True):
        torch.testing.assert_close(factor, polar_factor(tensor, method="newton_schulz"), atol=1e-5, rtol=0)


def test_accuracy_is_that_of_a_known_error() -> None:
    matrix = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))[0]
    deviation, relative, distance = accuracy([matrix], [1.1 * matrix], checked=1)
    # (1.1^2 - 1)^2 for each of four directions; 0.1 away in each of them
    assert deviation == pytest.approx(4 * 0.21**2, rel=1e-5)
    assert relative == pytest.approx(0.21, rel=1e-5) and distance == pytest.approx(0.1, rel=1e-5)


def test_ill_conditioned_weights_have_the_shapes_and_the_condition_number() -> None:
    ordinary, ill = (weights_of(NETWORKS["nature_cnn"](), flag, "cpu") for flag in (False, True))
    assert [w.shape for w in ordinary] == [w.shape for w in ill]
    values = torch.linalg.svdvals(ill[-1].double())
    assert float(values[0]) == pytest.approx(1.0, rel=1e-5)
    # float32 stores the smallest only to its rounding of the largest.
    assert float(values[-1]) == pytest.approx(1e-6, rel=0.5)


def test_seeds_share_no_gradient() -> None:
    network = continual.make_network(2, torch.Generator().manual_seed(0))
    labels = torch.zeros(2, 5, dtype=torch.long)
    gradients = []
    for other in (1.0, -3.0):
        images = torch.ones(2, 5, 64)
        images[1] *= other
        loss = continual.cross_entropy(network(images), labels)
        gradients.append(torch.autograd.grad(loss, network[0].weight)[0])
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_a_seeded_layer_is_one_linear_layer_for_each_seed() -> None:
    layer = continual.SeededLinear(3, 4, 5, torch.Generator().manual_seed(0))
    nn.init.normal_(layer.bias)
    x = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([nn.functional.linear(x[e], layer.weight[e], layer.bias[e]) for e in range(3)])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", continual.TASKS)
def test_a_short_study_is_reproducible(kind: str) -> None:
    scores, metrics = continual.run(kind, FireReset(), num_seeds=2, num_tasks=2, steps=3)
    again, _ = continual.run(kind, FireReset(), num_seeds=2, num_tasks=2, steps=3)
    assert scores.shape == (2, 2) and np.array_equal(scores, again)
    assert "plasticity/net/srank" in metrics


def test_bootstrap_interval_of_a_binomial_mean() -> None:
    values = np.repeat([0.0, 1.0], 50)
    low, high = continual.bootstrap_interval(values)
    # The mean of 100 draws of 0 or 1 has standard deviation 0.05.
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_the_command_writes_table_figure_and_scores(tmp_path, monkeypatch, capsys) -> None:
    output = tmp_path / "study"
    argv = ["continual", "--methods", "none", "FIRE", "--num-seeds", "2", "--num-tasks", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*argv, "--output", str(output)])
    continual.main()
    scores = json.loads(output.with_suffix(".json").read_text())
    assert set(scores) == set(continual.TASKS) and set(scores["permuted"]) == {"none", "FIRE"}
    assert output.with_suffix(".png").stat().st_size > 1000
    assert output.with_suffix(".md").read_text().split() == capsys.readouterr().out.split()
