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

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..options import METHODS, NULL_POLICIES
from . import routes as polar

# Coefficients (a, b, c) of one step X <- X (a I + b A + c A^2), A = X^T X.
NEWTON_SCHULZ = (1.5, -0.5, 0.0)  # FIRE algorithm 1
MUON = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon (2024); tuned for slope at zero, does not end at 1

ROUTES = {"eigh": polar.by_eigh, "poly": polar.by_polynomials, "qdwh": polar.by_qdwh}
BACKENDS = ("auto", *ROUTES)
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
        # On CUDA wide matrices join the tall ones, for fewer kernels; on CPU transposing costs more than it saves.
        is_wide = rows < columns and not tensor.is_cuda
        if tensor.numel():
            groups[tensor.device, tensor.dtype, max(rows, columns), min(rows, columns), is_wide].append(index)

    results = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
    for (_, dtype, long, short, is_wide), members in groups.items():

        def tall(batch: Tensor, keep: bool = is_wide) -> Tensor:
            return batch.mT if batch.shape[-2] < batch.shape[-1] and not keep else batch

        inputs = [tall(_as_batch(tensors[i])).contiguous() for i in members]
        outputs = [tall(results[i].view(-1, *results[i].shape[-2:])) for i in members]
        size = max(1, CHUNK_BYTES[inputs[0].device.type] // (8 * long * short))
        for chunk in _chunks([len(batch) for batch in inputs], size):
            parts = [inputs[run][start:stop] for run, start, stop in chunk]
            batch = torch.cat(parts) if len(parts) > 1 else parts[0]
            slices = [(members[run], k) for run, start, stop in chunk for k in range(start, stop)]
            factors = _solve(
                batch.mT if is_wide else batch,
                [f"{names[i]} (slice {k})" if tensors[i].ndim > 2 else names[i] for i, k in slices],
                [seeds[i] + k for i, k in slices],
                method,
                num_iters,
                null,
                backend,
            )
            factors = (factors.mT if is_wide else factors).to(dtype)
            places = [outputs[run][start:stop] for run, start, stop in chunk]
            torch._foreach_copy_(places, list(factors.split([len(part) for part in parts])))
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


def _as_batch(tensor: Tensor) -> Tensor:
    """View or copy (..., m, n) as contiguous (slices, m, n), in float32 unless the input is float64."""
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if tensor.device.type not in CHUNK_BYTES:  # a device without float64
        tensor = tensor.cpu()
    return tensor.reshape(-1, *tensor.shape[-2:]).contiguous()


def _chunks(counts: Sequence[int], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Split runs of ``counts`` slices into chunks of at most ``size``, each a list of (run, start, stop)."""
    chunk, room = [], size
    for run, count in enumerate(counts):
        start = 0
        while start < count:
            stop = min(count, start + room)
            chunk.append((run, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _solve(
    batch: Tensor,
    labels: Sequence[str],
    seeds: Sequence[int],
    method: str,
    num_iters: int,
    null: str,
    backend: str,
) -> Tensor:
    """Return the factors of ``batch`` (slices, m, n), m >= n."""
    largest = batch.abs().amax(dim=(-2, -1), keepdim=True)
    finite = largest.isfinite().flatten()
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(f"{labels[bad]} holds NaN or infinity; nothing was orthogonalized")
    # Scaling by the largest entry changes no polar factor and keeps squares in the range of the dtype.
    largest = torch.where(largest == 0, 1, largest)
    if method != "polar":
        coefficients = NEWTON_SCHULZ if method == "newton_schulz" else MUON
        return _iterate(batch / largest, coefficients, num_iters)

    scaled = batch.to(torch.float64, copy=True).div_(largest)
    # On CUDA a float32 product may be a TF32 one.
    polish_dtype = torch.float64 if batch.is_cuda else batch.dtype
    factors, in_doubt = _route(backend, batch)(scaled, polish_dtype)
    for index in in_doubt.nonzero().flatten().tolist():
        factors[index] = polar.complete(scaled[index], labels[index], seeds[index], null)
    return factors


def _route(backend: str, batch: Tensor) -> polar.Route:
    """The route of ``backend``; ``"auto"`` chooses by device, dtype and shape, never by values or batch size."""
    if backend != "auto":
        return ROUTES[backend]
    if batch.is_cuda:
        return polar.by_polynomials
    long, short = batch.shape[-2:]
    nearly_square = short >= polar.QDWH_FROM and long <= polar.QDWH_ASPECT * short
    return polar.by_qdwh if nearly_square and batch.dtype != torch.float64 else polar.by_eigh


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
