"""Nearest isometries: the polar factor of batches of matrices, to a promised accuracy, and its
approximations.

For W = U S V^T the polar factor is Q = U V^T, the closest matrix to W (in Frobenius norm) whose short side is
orthonormal: the orthogonal Procrustes problem, FIRE (arXiv 2602.08040) eq. 4 and 5.

``method="polar"`` computes Q in float64, Q = W (W^T W)^(-1/2). For float32 input with condition number up
to 1e6: relative defect ||Q^T Q - I||_F / sqrt(n) <= 1e-5 and distance to the float64 SVD's polar factor /
sqrt(n) <= 1e-4 (n is the short side). Matrices the fast route cannot certify go through a float64 SVD on
the host, which also decides what happens to directions the matrix does not have (``null``).

``method="newton_schulz"`` is the published iteration (FIRE algorithm 1), ``"muon"`` the quintic of the Muon
optimizer. Neither converges in its usual number of steps, so both are different interventions from the
polar factor.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fire.options import METHODS, NULL_POLICIES

BACKENDS = ("auto", "eigh", "poly")

# Coefficients (a, b, c) of one step X <- X (a I + b A + c A^2), A = X^T X.
NEWTON_SCHULZ = (1.5, -0.5, 0.0)  # FIRE algorithm 1
MUON = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon (2024); tuned for slope at zero, does not end at 1

EPS64 = torch.finfo(torch.float64).eps
# Rounding the Gram matrix costs about eps * cond^2 of orthogonality. Below the first bound the result is
# already more accurate than float32 can store; above the second the direction itself is in doubt and the
# SVD decides.
POLISH_ABOVE = 1e-8
SVD_ABOVE = 1e-3
# Smallest singular value, relative to the bound on the largest, that the polynomial schedule is built for.
# float64 can carry 1e-14 in the Gram matrix; below, the SVD decides.
LOWEST = 1e-7
# float64 work space per chunk of slices, small on CPU to stay in cache; a chunk holds at least one slice.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}


def polar_factor(
    matrices: Tensor,
    *,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    name: str = "matrices",
) -> Tensor:
    """Return the polar factor of every matrix in ``matrices`` (shape (..., m, n), any real floating dtype).

    See :func:`polar_factors` for the options, the behaviour on special input and the errors.
    """
    return polar_factors(
        [matrices],
        names=[name],
        method=method,
        num_iters=num_iters,
        null=null,
        generator=generator,
        backend=backend,
    )[0]


@torch.no_grad()
def polar_factors(
    tensors: Sequence[Tensor],
    *,
    names: Sequence[str] | None = None,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> list[Tensor]:
    """Return the polar factors of several tensors of matrices, all slices of one shape solved as one batch.

    Args:
        tensors: each (..., m, n), float16, bfloat16, float32 or float64; wide matrices are handled
            transposed.
        names: how errors call each tensor (default ``matrices[i]``).
        method: ``"polar"`` (exact), ``"newton_schulz"`` (``num_iters`` cubic steps) or ``"muon"`` (quintic
            steps).
        num_iters: steps of the two iterations; ``"polar"`` ignores it.
        null: what ``"polar"`` does with directions whose singular value is zero in float64: ``"random"``
            completes the isometry with a Haar-random one, ``"zero"`` leaves zeros (the limit of the
            iteration), ``"error"`` raises.
        generator: CPU generator of the random completion. One number per tensor is always drawn, so the
            stream advances the same whatever the weights. Default: a generator of its own with seed 0.

    Returns:
        New tensors with the shapes, dtypes and devices of the input. Empty input gives empty output. The
        result of a slice does not depend on what else is in the batch, bit for bit on CPU. The global random
        state is not used.

    Raises:
        ValueError: NaN or infinity in a tensor, rank deficiency under ``null="error"`` (both name the
            tensor), fewer than two dimensions, or an unknown option.
        TypeError: a dtype that is not real floating point.
    """
    _check_options(method, num_iters, null, backend)
    names = [f"matrices[{i}]" for i in range(len(tensors))] if names is None else list(names)
    for name, tensor in zip(names, tensors, strict=True):
        _check_tensor(name, tensor)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**31, (len(tensors),), generator=generator).tolist()

    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        rows, columns = tensor.shape[-2:]
        is_double = tensor.dtype == torch.float64
        if tensor.numel():
            groups[tensor.device, is_double, max(rows, columns), min(rows, columns)].append(index)

    results = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
    for members in groups.values():
        tall = [_as_tall_batch(tensors[i]) for i in members]
        slices = [(i, k) for i, batch in zip(members, tall, strict=True) for k in range(batch.shape[0])]
        labels = [f"{names[i]} (slice {k})" if tensors[i].ndim > 2 else names[i] for i, k in slices]
        slice_seeds = [seeds[i] + k for i, k in slices]
        batch = torch.cat(tall) if len(tall) > 1 else tall[0]
        solved = _solve_group(batch, labels, slice_seeds, method, num_iters, null, backend)
        for i, factor in zip(members, solved.split([len(part) for part in tall]), strict=True):
            rows, columns = tensors[i].shape[-2:]
            results[i].view(-1, rows, columns).copy_(factor.mT if rows < columns else factor)
    return results


def _check_options(method: str, num_iters: int, null: str, backend: str) -> None:
    for option, value, choices in (
        ("method", method, METHODS),
        ("null", null, NULL_POLICIES),
        ("backend", backend, BACKENDS),
    ):
        if value not in choices:
            raise ValueError(f"{option} {value!r} is not one of {', '.join(choices)}")
    if num_iters < 1:
        raise ValueError(f"num_iters must be at least 1, got {num_iters}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be real floating point, got {tensor.dtype}")
    if tensor.ndim < 2:
        raise ValueError(f"{name} must have at least two dimensions, got shape {tuple(tensor.shape)}")


def _as_tall_batch(tensor: Tensor) -> Tensor:
    """View or copy (..., m, n) as (slices, long, short), in float32 unless the input is float64."""
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if tensor.device.type not in CHUNK_BYTES:  # a device without float64
        tensor = tensor.cpu()
    batch = tensor.reshape(-1, *tensor.shape[-2:])
    return batch if batch.shape[-2] >= batch.shape[-1] else batch.mT


def _solve_group(
    batch: Tensor,
    labels: Sequence[str],
    seeds: Sequence[int],
    method: str,
    num_iters: int,
    null: str,
    backend: str,
) -> Tensor:
    """Return the factors of ``batch`` (slices, m, n), m >= n, in its dtype."""
    largest = torch.linalg.vector_norm(batch, ord=math.inf, dim=(-2, -1), keepdim=True)
    finite = largest.isfinite().flatten()
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(f"{labels[bad]} holds NaN or infinity; nothing was orthogonalized")

    if backend == "auto":
        backend = "poly" if batch.is_cuda else "eigh"
    inverse_root = inverse_root_poly if backend == "poly" else inverse_root_eigh
    # On CUDA a float32 product may be a TF32 one.
    polish_dtype = torch.float64 if batch.is_cuda else batch.dtype
    bytes_per_slice = 8 * batch.shape[-2] * batch.shape[-1]
    size = max(1, CHUNK_BYTES[batch.device.type] // bytes_per_slice)
    result = torch.empty_like(batch)
    for start in range(0, batch.shape[0], size):
        part = slice(start, start + size)
        # Scaling by the largest entry changes no polar factor and keeps squares in the range of the dtype.
        scale = torch.where(largest[part] == 0, 1, largest[part])
        if method == "polar":
            scaled = batch[part].to(torch.float64, copy=True).div_(scale)
            result[part] = _exact(scaled, labels[part], seeds[part], null, inverse_root, polish_dtype).to(
                batch.dtype
            )
        else:
            coefficients = NEWTON_SCHULZ if method == "newton_schulz" else MUON
            result[part] = _iterate(batch[part] / scale, coefficients, num_iters)
    return result


def _exact(
    batch: Tensor,
    labels: Sequence[str],
    seeds: Sequence[int],
    null: str,
    inverse_root: Callable[[Tensor], tuple[Tensor, Tensor | None, Tensor | None]],
    polish_dtype: torch.dtype,
) -> Tensor:
    """Polar factors of ``batch`` (slices, m, n), float64, m >= n, entries at most 1 in size.

    A result with defect d has 0.625 d^3 + O(d^4) after the polish (the Taylor polynomial of x^(-1/2) at 1),
    which certifies it; where d is too large, the SVD decides.
    """
    root, rough, in_doubt = inverse_root(batch.mT @ batch)
    factors = batch @ root
    if rough is None:
        factors, defect = _polish(factors, polish_dtype)
        in_doubt = ~(defect <= SVD_ABOVE)
    elif len(chosen := rough.nonzero().flatten()):
        factors[chosen], defect = _polish(factors[chosen], polish_dtype)
        in_doubt[chosen] |= ~(defect <= SVD_ABOVE)
    for index in in_doubt.nonzero().flatten().tolist():
        factors[index] = _complete(batch[index], labels[index], seeds[index], null)
    return factors


def inverse_root_eigh(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """G^(-1/2) of symmetric (slices, n, n) float64 by eigendecomposition.

    Returns:
        The roots; which of them are rough, so that the factor needs a polish; which are in doubt.
    """
    tiny = torch.finfo(torch.float64).tiny
    eigenvalues, vectors = torch.linalg.eigh(gram)
    smallest, rounding = eigenvalues[:, 0], EPS64 * eigenvalues[:, -1]
    in_doubt = rounding >= SVD_ABOVE * smallest  # true for a zero matrix
    root = (vectors * eigenvalues.clamp(min=tiny).rsqrt().unsqueeze(-2)) @ vectors.mT
    return root, ~in_doubt & (rounding > POLISH_ABOVE * smallest), in_doubt


def inverse_root_poly(gram: Tensor) -> tuple[Tensor, None, None]:
    """The same by composing the polynomials of ``minimax_schedule`` on G itself: matrix products only, and no
    synchronisation with the host. All roots are rough; the polish tells which are in doubt.

    With p(x) = x q(x^2) a step is Z = q(R), P <- P Z, R <- R Z^2, from R = G / bound, P = I; R goes to I
    and P to R_0^(-1/2) (the Gram form of Polar Express, arXiv 2505.16932).
    """
    size = gram.shape[-1]
    identity = torch.eye(size, dtype=gram.dtype, device=gram.device)
    # The largest eigenvalue is below every matrix norm.
    bound = torch.minimum(torch.linalg.matrix_norm(gram), torch.linalg.matrix_norm(gram, ord=torch.inf))
    bound = torch.where(bound == 0, 1, bound)[:, None, None]
    rest = gram / bound
    root = identity / bound.sqrt()
    for a, b, c in minimax_schedule():
        step = a * identity + torch.baddbmm(rest, rest, rest, beta=b, alpha=c)
        root = root @ step
        rest = step @ rest @ step
        rest = (rest + rest.mT) / 2
    return root, None, None


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
    """(a, b, c) and error of the odd quintic a x + b x^3 + c x^5 closest to 1 on [low, high], by Remez
    exchange.

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


def _polish(factors: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One quintic step towards the isometry, and the relative defect ||A - I||_F / sqrt(n) before it.

    Written as X + X D with small D, so that products in ``dtype`` leave their rounding in D alone.
    """
    x = factors.to(dtype)
    excess = x.mT @ x
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    defect = torch.linalg.matrix_norm(excess) / math.sqrt(excess.shape[-1])
    step = torch.baddbmm(excess, excess, excess, beta=-0.5, alpha=0.375)
    return factors.add_(x @ step), defect


def _complete(matrix: Tensor, label: str, seed: int, null: str) -> Tensor:
    """Polar factor of one (m, n) matrix by SVD on the host; missing directions are treated as ``null`` says.

    Every Q = U_r V_r^T + U_0 V_0^T with orthonormal U_0 orthogonal to U_r is equally close to the matrix; a
    Haar-random U_0 is the one that prefers no direction. A zero matrix becomes a random isometry, like a
    fresh orthogonal layer.
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
        factor += (
            basis * triangle.diagonal().sign()
        ) @ missing  # this sign makes the QR factor Haar distributed
    return factor.to(matrix.device)


def _iterate(batch: Tensor, coefficients: tuple[float, float, float], num_iters: int) -> Tensor:
    """``num_iters`` steps X <- X (a I + b A + c A^2) from X_0 = W / ||W||_F; a zero matrix stays zero."""
    a, b, c = coefficients
    norm = torch.linalg.matrix_norm(batch, keepdim=True)
    x = batch / torch.where(norm == 0, 1, norm)
    for _ in range(num_iters):
        gram = x.mT @ x
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) if c else b * gram
        x = torch.baddbmm(x, x, update, beta=a)
    return x
