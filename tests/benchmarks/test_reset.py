"""The rival of the reset benchmark, and its measures of accuracy."""

from __future__ import annotations

import pytest
import torch

from benchmarks.reset import NETWORKS, accuracy, published, weights_of
from fire.polar.factors import polar_factor


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
