"""What can only be checked on a GPU: the promise of the CUDA route, TF32, and captured graphs."""

from __future__ import annotations

import pytest
import torch

from fire import fire_reference
from fire.polar.factors import polar_factor, polar_factors
from fire.resets.registry import reset_networks
from tests.fire.fire_networks import make_slot, strategy
from tests.fire.test_orthogonalize import defect, distance, with_condition

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


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


def test_a_reset_reaches_a_captured_graph() -> None:
    slot = make_slot("mlp")
    slot.module.cuda()
    slot.target.cuda()
    slot.optimizer = torch.optim.AdamW(slot.module.parameters())
    batch = torch.randn(16, 5, device="cuda")
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        slot.module(batch)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = slot.module(batch)
    reset_networks({"q": slot}, strategy("fire"), batch, torch.Generator())
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(output, slot.module(batch))
