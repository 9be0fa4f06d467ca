"""Three routes to the polar factors of a batch of tall matrices, the certificate they share, and the SVD behind it.

Each route takes float64 matrices (slices, m, n), m >= n, and returns a ``Solution``: their factors and which of them it
cannot vouch for. A certified factor has a relative defect ||Q^T Q - I||_F / sqrt(n) of at most ``CERTIFIED``, plus the
rounding of its dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EPS64 = torch.finfo(torch.float64).eps
# Relative defect that the polish must be proved to leave, rounding aside: the promise for float32.
CERTIFIED = 1e-5
# Rounding the Gram matrix costs about eps * cond^2 of orthogonality. Below the first bound the result is
# already more accurate than float32 can store; above the second the direction itself is in doubt and the
# SVD decides.
POLISH_ABOVE = 1e-8
SVD_ABOVE = 1e-3
# Smallest singular value, relative to the bound on the largest, that the schedules are built for. float64 can
# carry 1e-14 in the Gram matrix; below, the SVD decides.
LOWEST = 1e-7
# On CPU the dynamically weighted iteration beats the eigendecomposition for matrices of at least this short
# side that are nearly square (long side at most so many times the short one), see results/.
QDWH_FROM = 384
QDWH_ASPECT = 1.5
# Short side from which half of a symmetric product is mirrored instead of computed (CPU).
MIRROR_FROM = 512


class Solution(NamedTuple):
    """What a route found for (slices, m, n) matrices.

    Attributes:
        factors: (slices, m, n).
        in_doubt: (slices,) bool, factors that are not certified.
        defect: (slices,) certified bound of the relative defect, without the rounding of the dtype.
        eigenvalues: (slices, n) float64, of the Gram matrix, ascending; None where the route needs none.
    """

    factors: Tensor
    in_doubt: Tensor
    defect: Tensor
    eigenvalues: Tensor | None = None


Route = Callable[[Tensor, torch.dtype], Solution]


def by_eigh(batch: Tensor, dtype: torch.dtype) -> Solution:
    """Q = W (W^T W)^(-1/2) by eigendecomposition of the Gram matrix: the fastest on CPU for most shapes.

    Args:
        batch: (slices, m, n), float64.
        dtype: of the result and of its polish.

    Returns:
        Factors in ``dtype``, with the eigenvalues.
    """
    eigenvalues, vectors = torch.linalg.eigh(gram(batch))
    smallest, rounding = eigenvalues[:, 0], EPS64 * eigenvalues[:, -1]
    defect = rounding / smallest
    in_doubt = rounding >= SVD_ABOVE * smallest  # true for a zero matrix
    roots = eigenvalues.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    factors = times(batch, (vectors * roots.unsqueeze(-2)) @ vectors.mT).to(dtype)
    rough = ~in_doubt & (rounding > POLISH_ABOVE * smallest)
    if rough.all():
        factors, in_doubt, defect, _ = polish(factors, SVD_ABOVE)
    elif len(chosen := rough.nonzero().flatten()):
        factors[chosen], in_doubt[chosen], polished, _ = polish(_rows(factors, chosen), SVD_ABOVE)
        defect[chosen] = polished.to(defect.dtype)
    return Solution(factors, in_doubt, defect, eigenvalues)


def by_polynomials(batch: Tensor, dtype: torch.dtype) -> Solution:
    """The same by polynomials on the Gram matrix: matrix products only, and nothing for which the host waits.

    With p(x) = x q(x^2) from ``minimax_schedule`` a step is Z = q(R), P <- P Z, R <- R Z^2, from R = G / bound,
    P = I / sqrt(bound); R goes to I and P to G^(-1/2) (the Gram form of Polar Express, arXiv 2505.16932).
    """
    rest = gram(batch)
    bound = _largest_eigenvalue_bound(rest)
    rest = rest / bound
    root = torch.eye(rest.shape[-1], dtype=rest.dtype, device=rest.device) / bound.sqrt()
    for a, b, c in minimax_schedule():
        step = torch.baddbmm(rest, rest, rest, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        root = root @ step
        rest = step @ rest @ step
        rest = torch.lerp(rest, rest.mT, 0.5)  # rounding must not grow an antisymmetric part
    return polish(times(batch, root).to(dtype), SVD_ABOVE)


def by_qdwh(batch: Tensor, dtype: torch.dtype) -> Solution:
    """Dynamically weighted Halley iteration by Cholesky factors: the fastest on CPU for large nearly square matrices.

    X <- b/c X + (a - b/c) X (I + c X^T X)^(-1) (Nakatsukasa, Bai and Gygi 2010, SIAM J. Matrix Anal. Appl. 31,
    2700). The first step lifts every singular value above 1e-2, so that the others may run in ``dtype``.
    """
    # float64 results cannot lean on the polish: its Taylor error would show.
    tolerance = 1e-2 if dtype != torch.float64 else 1e-6
    squares = gram(batch)
    bound = _largest_eigenvalue_bound(squares)
    x, squares = batch / bound.sqrt(), squares / bound
    for index, (a, b, c) in enumerate(qdwh_schedule(LOWEST, tolerance)):
        if index > 0:
            squares = gram(x)
        squares.mul_(c).diagonal(dim1=-2, dim2=-1).add_(1)
        triangle = torch.linalg.cholesky_ex(squares)[0]
        solved = torch.cholesky_solve(x.mT, triangle).mT
        x = torch.add(x * (b / c), solved, alpha=a - b / c).to(dtype)
    return polish(x, math.inf)


def polish(x: Tensor, limit: float) -> Solution:
    """One step X + X D towards the isometry, D = -E/2 + 3/8 E^2 with E = X^T X - I, and whether it is certified.

    D is the Taylor polynomial of (I + E)^(-1/2) - I, so the defect afterwards is 5/8 E^3 + O(E^4), and
    ||E^3||_F <= ||E^2||_F^(3/2).

    Args:
        x: (slices, m, n) close to isometries.
        limit: largest relative defect before the step that certifies; larger ones put the direction in doubt
            where they come from rounding instead of an iteration stopped early.

    Returns:
        Polished matrices in the dtype of ``x``; those that are not certified are in doubt.
    """
    excess = gram(x)
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    square = excess @ excess
    size = math.sqrt(excess.shape[-1])
    before = torch.linalg.matrix_norm(excess) / size
    after = 0.625 * torch.linalg.matrix_norm(square) ** 1.5 / size
    step = torch.add(0.375 * square, excess, alpha=-0.5)
    x = torch.baddbmm(x.mT, step, x.mT).mT if _is_wide(x) else torch.baddbmm(x, x, step)
    return Solution(x, ~((before <= limit) & (after <= CERTIFIED)), after)


def resolved(eigenvalues: Tensor) -> Tensor:
    """Which Gram matrices resolve their smallest singular value: (slices, n) eigenvalues, ascending, to (slices,) bool.

    Their rounding is at most about n eps times the largest eigenvalue.
    """
    return eigenvalues[:, 0] > 1e3 * EPS64 * eigenvalues.shape[-1] * eigenvalues[:, -1]


def complete(matrix: Tensor, label: str, seed: int, null: str) -> tuple[Tensor, Tensor]:
    """Polar factor and singular values of one (m, n) float64 matrix by SVD on the host.

    Missing directions, whose singular values are returned as 0, are treated as ``null`` says.

    Every Q = U_r V_r^T + U_0 V_0^T with orthonormal U_0 orthogonal to U_r is equally close to the matrix; a
    Haar-random U_0 is the one that prefers no direction. A zero matrix becomes a random isometry, like a
    fresh orthogonal layer.

    Raises:
        ValueError: a direction is missing and ``null`` is ``"error"``; names ``label``.
    """
    rows, columns = matrix.shape
    left, singular_values, right = torch.linalg.svd(matrix.cpu(), full_matrices=False)
    rank = int((singular_values > max(rows, columns) * EPS64 * singular_values[0]).sum())
    if rank < columns and null == "error":
        raise ValueError(f"{label} has rank {rank} of {columns}; nothing was orthogonalized")
    left, live, missing = left[:, :rank], right[:rank], right[rank:]
    factor = left @ live
    if rank < columns and null == "random":
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(rows, columns - rank, dtype=torch.float64, generator=generator)
        for _ in range(2):  # the second projection removes the rounding of the first
            noise -= left @ (left.mT @ noise)
        basis, triangle = torch.linalg.qr(noise)
        # This sign makes the QR factor Haar distributed.
        factor += (basis * triangle.diagonal().sign()) @ missing
    singular_values[rank:] = 0
    return factor.to(matrix.device), singular_values


def gram(x: Tensor) -> Tensor:
    """X^T X of (slices, m, n); large ones on CPU by blocks, of which those below the diagonal are mirrored."""
    if x.is_cuda or x.shape[-1] < MIRROR_FROM:
        return x.mT @ x
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    corner = left.mT @ right
    top = torch.cat([gram(left), corner], dim=-1)
    return torch.cat([top, torch.cat([corner.mT, gram(right)], dim=-1)], dim=-2)


def times(x: Tensor, symmetric: Tensor) -> Tensor:
    """X S of (slices, m, n) and symmetric (slices, n, n), in the memory layout of X."""
    return (symmetric @ x.mT).mT if _is_wide(x) else x @ symmetric


def _is_wide(x: Tensor) -> bool:
    """Whether a tall matrix is the transposed view of a wide one."""
    return x.mT.is_contiguous() and not x.is_contiguous()


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    """The chosen slices in the memory layout of X, so that their products round alike in every batch."""
    return x.mT[chosen].mT if _is_wide(x) else x[chosen]


def _largest_eigenvalue_bound(gram_matrix: Tensor) -> Tensor:
    """Upper bound of the largest eigenvalue, (slices, 1, 1): it is below every matrix norm. 1 for a zero matrix."""
    bound = torch.minimum(
        torch.linalg.matrix_norm(gram_matrix), torch.linalg.matrix_norm(gram_matrix, ord=torch.inf)
    )
    return torch.where(bound == 0, 1, bound)[:, None, None]


@functools.cache
def qdwh_schedule(lowest: float, tolerance: float) -> list[tuple[float, float, float]]:
    """Weights (a, b, c) that take [lowest, 1] to [1 - tolerance, 1] fastest (Nakatsukasa, Bai and Gygi 2010)."""
    schedule = []
    while 1 - lowest > tolerance:
        square = lowest * lowest
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        a = math.sqrt(1 + d) + 0.5 * math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * math.sqrt(1 + d)))
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        schedule.append((a, b, c))
        lowest *= (a + b * square) / (1 + c * square)
    return schedule


@functools.cache
def minimax_schedule(lowest: float = LOWEST, tolerance: float = 1e-3) -> list[tuple[float, float, float]]:
    """Odd quintics whose composition takes [lowest, 1] to 1 fastest, down to an error of ``tolerance``.

    Each is the best uniform approximation of 1 on the interval its predecessors leave (CANS, arXiv
    2506.10935; Polar Express, arXiv 2505.16932, theorem 3.1).
    """
    schedule, low, high = [], lowest, 1.0
    while True:
        coefficients, error = minimax_quintic(low, high)
        schedule.append(coefficients)
        a, b, c = coefficients
        low = a * low + b * low**3 + c * low**5  # 1 - error, without the cancellation
        high = 2 - low
        if error <= tolerance:
            return schedule


def minimax_quintic(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """(a, b, c) and error of the odd quintic a x + b x^3 + c x^5 closest to 1 on [low, high], by Remez exchange.

    The error takes its largest size with alternating sign at both ends and at the two inner extrema, so the
    exchange only has to find the extrema, the roots of a + 3 b x^2 + 5 c x^4.
    """
    inner = [low + (high - low) * t for t in (0.25, 0.75)]
    for _ in range(100):
        points = torch.tensor([low, *inner, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        system = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(system, torch.ones(4, dtype=torch.float64)).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        moved = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
        if max(abs(m - i) for m, i in zip(moved, inner, strict=True)) <= 1e-14 * high:
            break
        inner = moved
    return (a, b, c), error
