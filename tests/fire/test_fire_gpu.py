"""What can only be checked on a GPU: the promise of the CUDA route, TF32, and captured graphs."""

from __future__ import annotations

import pytest
import torch

from agents.graphs import Side, capture
from fire import fire_reference
from fire.polar.factors import polar_factor, polar_factors
from fire.resets.registry import reset_networks
from fire.resets.report import extreme_eigenvalues
from tests.fire.fire_networks import make_slot, strategy
from tests.fire.test_orthogonalize import defect, distance, with_condition

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("tf32", ["highest", "high"])
@pytest.mark.parametrize("condition", [1.0, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(64, 64), (512, 128), (18, 512)])
def test_accuracy_promise_on_cuda_whatever_float32_products_do(shape, condition: float, tf32: str) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(tf32)
    try:
        matrix = with_condition(*shape, condition, dtype=torch.float32)
        factor = polar_factor(matrix.cuda())
    finally:
        torch.set_float32_matmul_precision(before)
    assert factor.is_cuda
    assert defect(factor.cpu()) <= 1e-5
    assert distance(factor.cpu(), fire_reference(matrix, "unit")) <= 1e-4


def test_missing_directions_do_not_depend_on_the_device() -> None:
    matrices = [torch.zeros(12, 8), torch.diag(torch.tensor([3.0, 2.0, 0.0]))]
    here, there = polar_factors(matrices), polar_factors([m.cuda() for m in matrices])
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(a.factors, b.factors.cpu(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["polar", "newton_schulz"])
def test_nan_is_refused_by_name_after_one_question_for_all_matrices(method, gpu) -> None:
    good, bad = torch.randn(3, 6, 4).cuda(), torch.randn(2, 5, 5).cuda()
    polar_factors([good, bad], method=method)
    if gpu is not None:
        gpu.forget()
        polar_factors([good, bad, torch.zeros(4, 4).cuda()], method=method)
        assert gpu.waits.total() <= (3 if method == "polar" else 1)  # the zero matrix is solved on the host
    bad[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"worst \(slice 1\) holds NaN or infinity"):
        polar_factors([good, bad], names=["first", "worst"], method=method)


@pytest.mark.parametrize("size", [1, 2, 5, 48])
@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
def test_extreme_eigenvalues_are_those_of_the_svd(size: int, condition: float) -> None:
    matrix = 7 * with_condition(size + 3, size, condition, dtype=torch.float64)
    matrices = torch.stack([matrix, matrix.flip(0) * 0.1, torch.randn(size + 3, size, dtype=torch.float64)])
    values = torch.linalg.svdvals(matrices)
    expected = torch.stack([values[:, -1], values[:, 0]], -1).square()
    found = extreme_eigenvalues((matrices.mT @ matrices).cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=0)


def test_singular_matrices_have_no_extreme_eigenvalues() -> None:
    assert extreme_eigenvalues(torch.zeros(2, 3, 3, dtype=torch.float64).cuda()).cpu().isnan().all()


@pytest.mark.parametrize("kind", ["mlp", "twin"])
@pytest.mark.parametrize("name", ["fire", "full"])
def test_a_report_is_the_cpus(kind: str, name: str) -> None:
    reports = []
    for device in ("cpu", "cuda"):
        slot = make_slot(kind)
        slot.module.to(device)
        slot.target = None
        reports.append(reset_networks({"q": slot}, strategy(name), None, torch.Generator()).scalars())
    rounding = {
        "residual": 1e-5,
        "dfi_scaled_after": 1e-9,
        "dfi_any_scale_after": 1e-9,
    }  # of an isometry, what is left of its arithmetic
    for key, value in reports[0].items():
        bound = next((rounding[part] for part in key.split("/") if part in rounding), None)
        if name == "fire" and bound is not None:
            assert max(value, reports[1][key]) < bound, key
        elif not key.startswith("reset/seconds"):
            assert reports[1][key] == pytest.approx(value, rel=1e-4, abs=1e-9), key


def test_a_reset_reaches_a_captured_graph() -> None:
    slot = make_slot("mlp")
    slot.module.cuda()
    slot.target.cuda()
    slot.optimizer = torch.optim.AdamW(slot.module.parameters())
    batch = torch.randn(16, 5, device="cuda")
    with torch.no_grad():
        replay = capture(lambda: slot.module(batch), Side())
    reset_networks({"q": slot}, strategy("fire"), batch, torch.Generator())
    with torch.no_grad():
        torch.testing.assert_close(replay(), slot.module(batch))
