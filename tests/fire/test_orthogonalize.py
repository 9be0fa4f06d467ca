"""Polar factors against float64 SVDs, on ordinary and adversarial matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fire import fire_reference
from fire.polar.factors import BACKENDS, polar_factor, polar_factors
from fire.polar.routes import minimax_schedule, qdwh_schedule


def with_condition(rows: int, columns: int, condition: float, seed: int = 0, dtype=torch.float64) -> Tensor:
    """A matrix with geometrically spaced singular values from 1 down to 1 / condition."""
    generator = torch.Generator().manual_seed(seed)
    short = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, short, dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(columns, short, dtype=torch.float64, generator=generator))[0]
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), short, dtype=torch.float64)
    return ((left * spectrum) @ right.mT).to(dtype)


def defect(factor: Tensor) -> float:
    """||Q^T Q - I||_F / sqrt(n) on the short side."""
    q = factor.double()
    q = q.mT if q.shape[-2] < q.shape[-1] else q
    identity = torch.eye(q.shape[-1], dtype=torch.float64)
    return float((torch.linalg.matrix_norm(q.mT @ q - identity) / q.shape[-1] ** 0.5).max())


def distance(factor: Tensor, reference: Tensor) -> float:
    short = min(reference.shape[-2:])
    return float((torch.linalg.matrix_norm(factor.double() - reference) / short**0.5).max())


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("shape", [(64, 64), (128, 48), (48, 128), (256, 256), (1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_accuracy_promise(shape: tuple[int, int], condition: float, backend: str) -> None:
    matrix = with_condition(*shape, condition, dtype=torch.float32)
    factor = polar_factor(matrix, backend=backend)
    assert factor.dtype == torch.float32 and factor.shape == matrix.shape
    assert defect(factor) <= 1e-5
    assert distance(factor, fire_reference(matrix, "unit")) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("spectrum", ["one small", "one large", "two clusters", "power law", "random"])
def test_accuracy_promise_on_other_spectra(spectrum: str, backend: str) -> None:
    condition, size = 1e6, 48
    values = {
        "one small": torch.ones(size).index_fill(0, torch.tensor([5]), 1 / condition),
        "one large": torch.full((size,), 1 / condition).index_fill(0, torch.tensor([5]), 1.0),
        "two clusters": torch.ones(size).index_fill(0, torch.arange(size // 2), 1 / condition),
        "power law": torch.arange(1, size + 1).double() ** -3.5,
        "random": torch.rand(size, generator=torch.Generator().manual_seed(1)).double() ** 8 + 1 / condition,
    }[spectrum]
    generator = torch.Generator().manual_seed(3)
    left = torch.linalg.qr(torch.randn(64, size, dtype=torch.float64, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    matrix = ((left * values) @ right).float()
    factor = polar_factor(matrix, backend=backend)
    assert defect(factor) <= 1e-5
    assert distance(factor, fire_reference(matrix, "unit")) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("condition", [1e7, 1e8, 1e10])
def test_beyond_the_gram_route_the_svd_decides(condition: float, backend: str) -> None:
    matrix = with_condition(96, 64, condition)
    factor = polar_factor(matrix, backend=backend)
    assert defect(factor) <= 1e-8  # 0.625 (1e-3)^3 n: what the certificate admits before the SVD
    assert distance(factor, fire_reference(matrix, "unit")) <= 1e-4


@pytest.mark.parametrize("scale", [1e-41, 1e-30, 1e30])
def test_huge_and_tiny_entries(scale: float) -> None:
    matrix = with_condition(32, 24, 10.0).float()
    matrix = (matrix.double() * scale).float()
    assert defect(polar_factor(matrix)) <= 1e-6
    assert distance(polar_factor(matrix), fire_reference(matrix, "unit")) <= 1e-5


@pytest.mark.parametrize(
    "dtype, bound", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-13)]
)
def test_dtypes_keep_their_own_rounding(dtype: torch.dtype, bound: float) -> None:
    matrix = with_condition(40, 30, 10.0, dtype=dtype)
    factor = polar_factor(matrix)
    assert factor.dtype == dtype
    assert defect(factor) <= bound
    assert distance(factor, fire_reference(matrix, "unit")) <= bound


def test_shapes_dimensions_and_strides() -> None:
    stack = torch.stack([with_condition(20, 12, c, seed=i) for i, c in enumerate((1.0, 1e3, 1e6))])
    expected = torch.stack([fire_reference(m, "unit") for m in stack])
    assert distance(polar_factor(stack.reshape(3, 1, 20, 12)).reshape(3, 20, 12), expected) <= 1e-6
    strided = stack.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not strided.is_contiguous()
    assert distance(polar_factor(strided), expected) <= 1e-6
    assert polar_factor(torch.empty(0, 4, 3)).shape == (0, 4, 3)
    assert polar_factor(torch.empty(2, 0, 3)).shape == (2, 0, 3)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_result_does_not_depend_on_the_batch(backend: str) -> None:
    tensors = [with_condition(24, 16, c, seed=i, dtype=torch.float32) for i, c in enumerate((1.0, 1e5, 1e7))]
    tensors.append(with_condition(24, 16, 1e5, seed=1, dtype=torch.float64))
    tensors.append(torch.stack([with_condition(16, 24, 3.0, seed=9, dtype=torch.float32)] * 2))
    together = polar_factors(tensors, backend=backend)
    for tensor, solution in zip(tensors, together, strict=True):
        assert torch.equal(polar_factor(tensor, backend=backend), solution.factors)


@pytest.mark.parametrize("shape", [(512, 512), (400, 520), (700, 512), (512, 700)])
def test_large_matrices_take_routes_and_blocks_of_their_own(shape: tuple[int, int]) -> None:
    stack = torch.stack(
        [with_condition(*shape, c, seed=i, dtype=torch.float32) for i, c in enumerate((3.0, 1e6))]
    )
    (solution,) = polar_factors([stack], spectra=True)
    assert all(
        defect(q) <= bound for q, bound in zip(solution.factors, solution.defect.tolist(), strict=True)
    )
    for matrix, factor in zip(stack, solution.factors, strict=True):
        assert defect(factor) <= 1e-5
        assert distance(factor, fire_reference(matrix, "unit")) <= 1e-4
        assert torch.equal(polar_factor(matrix), factor)


@pytest.mark.parametrize("lowest", [1e-7, 1e-3, 0.3])
def test_halley_weights_take_the_interval_to_one(lowest: float) -> None:
    points = torch.logspace(torch.log10(torch.tensor(lowest)).item(), 0, 10_000, dtype=torch.float64)
    for a, b, c in qdwh_schedule(lowest, 1e-6):
        points = points * (a + b * points**2) / (1 + c * points**2)
    assert points.max() <= 1 + 1e-12
    assert points.min() >= 1 - 1e-6
    # Nakatsukasa, Bai and Gygi 2010: six steps suffice for condition numbers up to 1e16 in double precision.
    assert len(qdwh_schedule(1e-16, 1e-15)) == 6


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_missing_directions_are_completed_from_the_generator(backend: str) -> None:
    matrix = with_condition(30, 20, 10.0)
    left, spectrum, right = torch.linalg.svd(matrix, full_matrices=False)
    deficient = ((left[:, :12] * spectrum[:12]) @ right[:12]).float()
    deficient[:, 0] = deficient[:, 1]

    def solve(seed: int) -> Tensor:
        return polar_factor(
            deficient.double(), generator=torch.Generator().manual_seed(seed), backend=backend
        )

    first = solve(1)
    assert defect(first) <= 1e-12
    assert torch.equal(first, solve(1)) and not torch.allclose(first, solve(2))
    nuclear = torch.linalg.svdvals(deficient.double()).sum()
    assert (first * deficient.double()).sum() == pytest.approx(nuclear.item(), rel=1e-7)


def test_null_policies() -> None:
    deficient = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    assert torch.equal(polar_factor(deficient, null="zero"), torch.diag(torch.tensor([1.0, 1.0, 0.0])))
    with pytest.raises(ValueError, match=r"critic\.head has rank 2 of 3"):
        polar_factor(deficient, null="error", name="critic.head")


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_zero_matrices_become_different_random_isometries(backend: str) -> None:
    factors = polar_factor(torch.zeros(2, 12, 8), backend=backend)
    assert defect(factors) <= 1e-6
    assert not torch.allclose(factors[0], factors[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_input_is_an_error_that_names_the_parameter(value: float) -> None:
    bad = torch.ones(2, 4, 3)
    bad[1, 2, 0] = value
    for method in ("polar", "newton_schulz"):
        with pytest.raises(ValueError, match=r"actor.fc1 \(slice 1\) holds NaN or infinity"):
            polar_factors([torch.ones(4, 3), bad], names=["actor.fc0", "actor.fc1"], method=method)


def test_polynomials_are_the_best_uniform_approximations() -> None:
    # Published first steps: CANS (arXiv 2506.10935) for 1e-3; four equal alternating errors certify
    # optimality.
    assert minimax_schedule(1e-3)[0] == pytest.approx((8.4703, -25.1081, 18.6293), abs=5e-5)
    low, high = 1e-7, 1.0
    for a, b, c in minimax_schedule():
        root = (9 * b * b - 20 * a * c) ** 0.5
        inner = [((-3 * b - root) / (10 * c)) ** 0.5, ((-3 * b + root) / (10 * c)) ** 0.5]
        assert low < inner[0] < inner[1] < high
        errors = [a * x + b * x**3 + c * x**5 - 1 for x in (low, *inner, high)]
        size = -errors[0]
        assert errors == pytest.approx([-size, size, -size, size], rel=1e-6, abs=1e-14)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
    assert size < 1e-3


class KernelCount(TorchDispatchMode):
    """Counts operations that are kernels on a GPU: no views, no allocations, no questions about dtypes."""

    FREE = (
        "view",
        "reshape",
        "transpose",
        "t",
        "slice",
        "select",
        "expand",
        "diagonal",
        "split",
        "unsqueeze",
        "detach",
    )
    FREE += (
        "alias",
        "as_strided",
        "empty",
        "empty_like",
        "promote_types",
        "_unsafe_view",
        "split_with_sizes",
        "permute",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += str(function).split(".")[1] not in self.FREE
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_every_kernel_runs_once_for_all_layers_of_a_shape(backend: str) -> None:
    def kernels(count: int) -> int:
        layers = [with_condition(24, 16, 5.0, seed=i, dtype=torch.float32) for i in range(count)]
        polar_factors(layers, backend=backend)  # schedules are computed once
        with KernelCount() as counter:
            polar_factors(layers, backend=backend)
        return counter.count

    assert kernels(2) == kernels(12) < 200


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="method 'svd'"):
        polar_factor(torch.ones(2, 2), method="svd")
    with pytest.raises(ValueError, match="two dimensions"):
        polar_factor(torch.ones(2))
    with pytest.raises(TypeError, match="floating point"):
        polar_factor(torch.ones(2, 2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(32, 32), (48, 20), (20, 48)])
@pytest.mark.parametrize("num_iters", [1, 5, 10])
def test_newton_schulz_acts_on_singular_values_as_published(shape: tuple[int, int], num_iters: int) -> None:
    matrix = with_condition(*shape, 50.0)
    left, spectrum, right = torch.linalg.svd(matrix, full_matrices=False)
    values = spectrum / spectrum.norm()
    for _ in range(num_iters):
        values = 1.5 * values - 0.5 * values**3
    expected = (left * values) @ right
    assert distance(polar_factor(matrix, method="newton_schulz", num_iters=num_iters), expected) <= 1e-12


def test_muon_quintic_acts_on_singular_values() -> None:
    matrix = with_condition(24, 40, 20.0)
    left, spectrum, right = torch.linalg.svd(matrix, full_matrices=False)
    values = spectrum / spectrum.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = (left * values) @ right
    assert distance(polar_factor(matrix, method="muon", num_iters=5), expected) <= 1e-12


def test_iterations_leave_a_zero_matrix_zero() -> None:
    assert torch.equal(polar_factor(torch.zeros(4, 3), method="newton_schulz"), torch.zeros(4, 3))


def test_global_random_state_is_untouched() -> None:
    state = torch.random.get_rng_state()
    polar_factor(torch.zeros(3, 5, 5))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5, 1e6, 1e9])
def test_singular_values_are_the_svds_and_the_certificate_holds(condition, dtype, backend: str) -> None:
    shapes = [(64, 64), (128, 48), (48, 128), (1, 40), (40, 1), (300, 200)]
    matrices = [with_condition(*shape, condition, dtype=dtype) for shape in shapes]
    for matrix, solution in zip(
        matrices, polar_factors(matrices, backend=backend, spectra=True), strict=True
    ):
        expected = torch.linalg.svdvals(matrix.double())
        # Eigenvalues of the Gram matrix carry eps cond^2; from about 1e5 on the SVD is asked.
        torch.testing.assert_close(solution.singular_values, expected.flip(-1), rtol=1e-5, atol=0)
        measured, bound = defect(solution.factors), solution.defect.item()
        assert measured <= bound <= 1e-5 + 3 * torch.finfo(dtype).eps


def test_without_a_spectrum_nothing_is_computed_for_it_and_iterations_have_none() -> None:
    matrix = with_condition(6, 4, 3.0)
    assert polar_factors([matrix])[0][1:] == (None, None)
    assert polar_factors([matrix], method="newton_schulz", spectra=True)[0][1:] == (None, None)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    matrices = [with_condition(*s, 10.0, seed=i, dtype=torch.float32) for i, s in enumerate([(300, 200)] * 9)]
    matrices += [torch.stack([with_condition(20, 64, 1e6, dtype=torch.float32)] * 700), torch.zeros(9, 5)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(polar_factors(matrices, spectra=True))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    with pytest.raises(ValueError, match=r"matrices\[11\] holds NaN"):
        polar_factors([*matrices, torch.full((5, 9), torch.nan)])
