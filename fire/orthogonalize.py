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

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

METHODS = ("polar", "newton_schulz", "muon")
NULL_POLICIES = ("random", "zero", "error")

# Coefficients (a, b, c) of one step X <- X (a I + b A + c A^2), A = X^T X.
NEWTON_SCHULZ = (1.5, -0.5, 0.0)  # FIRE algorithm 1
MUON = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon (2024); tuned for slope at zero, does not end at 1
POLISH = (1.875, -1.25, 0.375)  # Taylor polynomial of x^(-1/2) at 1: a defect d becomes 0.625 d^3 + O(d^4)

EPS64 = torch.finfo(torch.float64).eps
# Rounding the Gram matrix costs about eps * cond^2 of orthogonality. Below the first bound the result is
# already more accurate than float32 can store; above the second the direction itself is in doubt and the
# SVD decides.
POLISH_ABOVE = 1e-8
SVD_ABOVE = 1e-3
# float64 work space per chunk of slices; a chunk always holds at least one slice.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}


def polar_factor(
    matrices: Tensor,
    *,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    generator: torch.Generator | None = None,
    name: str = "matrices",
) -> Tensor:
    """Return the polar factor of every matrix in ``matrices`` (shape (..., m, n), any real floating dtype).

    See :func:`polar_factors` for the options, the behaviour on special input and the errors.
    """
    return polar_factors(
        [matrices], names=[name], method=method, num_iters=num_iters, null=null, generator=generator
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
        result of a slice does not depend on what else is in the batch. The global random state is not used.

    Raises:
        ValueError: NaN or infinity in a tensor, rank deficiency under ``null="error"`` (both name the
            tensor), fewer than two dimensions, or an unknown option.
        TypeError: a dtype that is not real floating point.
    """
    _check_options(method, num_iters, null)
    names = [f"matrices[{i}]" for i in range(len(tensors))] if names is None else list(names)
    for name, tensor in zip(names, tensors, strict=True):
        _check_tensor(name, tensor)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**31, (len(tensors),), generator=generator).tolist()

    groups: dict[tuple[torch.device, int, int], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        rows, columns = tensor.shape[-2:]
        if tensor.numel():
            groups[tensor.device, max(rows, columns), min(rows, columns)].append(index)

    results = [torch.empty_like(tensor) for tensor in tensors]
    for members in groups.values():
        tall = [_as_tall_batch(tensors[i]) for i in members]
        slices = [(i, k) for i, batch in zip(members, tall, strict=True) for k in range(batch.shape[0])]
        labels = [f"{names[i]} (slice {k})" if tensors[i].ndim > 2 else names[i] for i, k in slices]
        slice_seeds = [seeds[i] + k for i, k in slices]
        solved = _solve_group(torch.cat(tall), labels, slice_seeds, method, num_iters, null)
        for i, factor in zip(members, solved.split([batch.shape[0] for batch in tall]), strict=True):
            wide = tensors[i].shape[-2] < tensors[i].shape[-1]
            results[i].copy_((factor.mT if wide else factor).reshape(tensors[i].shape))
    return results


def _check_options(method: str, num_iters: int, null: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    if null not in NULL_POLICIES:
        raise ValueError(f"null {null!r} is not one of {', '.join(NULL_POLICIES)}")
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
    batch = tensor.reshape(-1, *tensor.shape[-2:])
    return batch if batch.shape[-2] >= batch.shape[-1] else batch.mT


def _solve_group(
    batch: Tensor, labels: Sequence[str], seeds: Sequence[int], method: str, num_iters: int, null: str
) -> Tensor:
    """Return the factors of ``batch`` (slices, m, n), m >= n, in its dtype."""
    largest = batch.abs().amax(dim=(-2, -1), keepdim=True)
    finite = largest.isfinite().flatten()
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(f"{labels[bad]} holds NaN or infinity; nothing was orthogonalized")

    bytes_per_slice = 8 * batch.shape[-2] * batch.shape[-1]
    size = max(1, CHUNK_BYTES.get(batch.device.type, CHUNK_BYTES["cpu"]) // bytes_per_slice)
    result = torch.empty_like(batch)
    for start in range(0, batch.shape[0], size):
        part = slice(start, start + size)
        # Scaling by the largest entry changes no polar factor and keeps squares inside the range of the
        # dtype.
        scale = torch.where(largest[part] == 0, 1, largest[part])
        if method == "polar":
            scaled = batch[part].double() / scale.double()
            result[part] = _exact(scaled, labels[part], seeds[part], null).to(batch.dtype)
        else:
            coefficients = NEWTON_SCHULZ if method == "newton_schulz" else MUON
            result[part] = _iterate(batch[part] / scale, coefficients, num_iters)
    return result


def _exact(batch: Tensor, labels: Sequence[str], seeds: Sequence[int], null: str) -> Tensor:
    """Polar factors of ``batch`` (slices, m, n), float64, m >= n, entries at most 1 in size."""
    eigenvalues, vectors = torch.linalg.eigh(batch.mT @ batch)
    smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
    rounding = EPS64 * largest / smallest.clamp(min=torch.finfo(torch.float64).tiny)
    in_doubt = (smallest <= 0) | (rounding > SVD_ABOVE)
    roots = eigenvalues.clamp(min=torch.finfo(torch.float64).tiny).rsqrt()
    factors = batch @ ((vectors * roots.unsqueeze(-2)) @ vectors.mT)

    rough = (~in_doubt & (rounding > POLISH_ABOVE)).nonzero().flatten()
    if len(rough):
        polished, defect = _polish(factors[rough])
        factors[rough] = polished
        in_doubt[rough] = defect > SVD_ABOVE
    for index in in_doubt.nonzero().flatten().tolist():
        factors[index] = _complete(batch[index], labels[index], seeds[index], null)
    return factors


def _polish(factors: Tensor) -> tuple[Tensor, Tensor]:
    """One quintic step towards the isometry, and the relative defect ||A - I||_F / sqrt(n) before it."""
    size = factors.shape[-1]
    gram = factors.mT @ factors
    identity = torch.eye(size, dtype=factors.dtype, device=factors.device)
    defect = torch.linalg.matrix_norm(gram - identity) / math.sqrt(size)
    a, b, c = POLISH
    return factors @ (a * identity + b * gram + c * (gram @ gram)), defect


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
