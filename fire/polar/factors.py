"""Polar factors, the nearest isometries, of batches of matrices to a promised accuracy, and their approximations.

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

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from ..ambient import outside_ambient_modes
from ..options import METHODS, NULL_POLICIES
from . import routes

# Coefficients (a, b, c) of one step X <- X (a I + b A + c A^2), A = X^T X.
NEWTON_SCHULZ = (1.5, -0.5, 0.0)  # FIRE algorithm 1
MUON = (3.4445, -4.7750, 2.0315)  # Keller Jordan, Muon (2024); tuned for slope at zero, does not end at 1

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUTES = {"eigh": routes.by_eigh, "poly": routes.by_polynomials, "qdwh": routes.by_qdwh}
BACKENDS = ("auto", *ROUTES)
# Rounding of a factor, in units of its dtype's epsilon: storing it, and the product of the polish. The solvers' own,
# in float64, is at most about the short side times its epsilon.
ROUNDINGS = 2
# float64 work space per chunk of slices, small on CPU to stay in cache; a chunk holds at least one slice.
CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 1 << 30}
_postponed: ContextVar[list[Tensor] | None] = ContextVar("postponed", default=None)


class PolarFactors(NamedTuple):
    """Polar factors of a tensor of matrices, and what their solver knows of them.

    Attributes:
        factors: (..., m, n), in the dtype of the matrices.
        singular_values: of the matrices, (..., k) float64 ascending, k = min(m, n); 0 for directions that are
            completed or left zero.
        defect: (...) float64, upper bound of ||Q^T Q - I||_F / sqrt(k), the rounding of the dtype included and missing
            directions left out.

    The last two are None on GPUs, for approximating methods, and where they were not asked for.
    """

    factors: Tensor
    singular_values: Tensor | None = None
    defect: Tensor | None = None


class _Group(NamedTuple):
    """What tensors must have in common to be solved as one batch; wide matrices are solved as tall ones."""

    device: torch.device
    dtype: torch.dtype
    long: int
    short: int
    is_wide: bool  # stay wide in memory


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
    """Return the polar factor of every matrix in ``matrices``, shape (..., m, n), of a dtype in ``DTYPES``.

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
    )[0].factors


@outside_ambient_modes
def polar_factors(
    tensors: Sequence[Tensor],
    *,
    names: Sequence[str] | None = None,
    method: str = "polar",
    num_iters: int = 10,
    null: str = "random",
    generator: torch.Generator | None = None,
    backend: str = "auto",
    spectra: bool = False,
) -> list[PolarFactors]:
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
        spectra: whether singular values and defects are wanted too.

    Returns:
        For each tensor its factors, new tensors with the shapes, dtypes and devices of the input. Empty input gives
        empty output. The result of a slice does not depend on what else is in the batch, bit for bit on CPU. The
        global random state is not used.

    Raises:
        ValueError: NaN or infinity in a tensor, rank deficiency under ``null="error"`` (both name the
            tensor), fewer than two dimensions, or an unknown option.
        TypeError: any other dtype.
    """
    _check_options(method, num_iters, null, backend)
    names = [f"matrices[{i}]" for i in range(len(tensors))] if names is None else list(names)
    for name, tensor in zip(names, tensors, strict=True):
        _check_tensor(name, tensor)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seeds = torch.randint(2**31, (len(tensors),), generator=generator).tolist()

    groups: dict[_Group, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        rows, columns = tensor.shape[-2:]
        # On CUDA wide matrices join the tall ones, for fewer kernels; on CPU transposing costs more than it saves.
        is_wide = rows < columns and not tensor.is_cuda
        if tensor.numel():
            group = _Group(tensor.device, tensor.dtype, max(rows, columns), min(rows, columns), is_wide)
            groups[group].append(index)

    results = [_empty_result(t, spectra and method == "polar" and not t.is_cuda) for t in tensors]
    alone: list[Callable[[], None]] = []  # each may use all threads
    abreast: list[Callable[[], None]] = []  # each uses one
    doubts: list[tuple[_Doubt, Callable[[], None]]] = []  # of GPUs, and what hands a batch out again
    for group, indices in groups.items():
        route = _route(backend, group)
        inputs = [_tall(_as_batch(tensors[i]), group.is_wide).contiguous() for i in indices]
        outputs = [_tall(_slices(results[i].factors), group.is_wide) for i in indices]

        def solve(
            chunk: list[tuple[int, int, int]],
            group: _Group = group,
            indices: list[int] = indices,
            route: routes.Route = route,
            inputs: list[Tensor] = inputs,
            outputs: list[Tensor] = outputs,
        ) -> None:
            parts = [inputs[run][start:stop] for run, start, stop in chunk]
            batch = torch.cat(parts) if len(parts) > 1 else parts[0]
            slices = [(indices[run], k) for run, start, stop in chunk for k in range(start, stop)]
            own: list[_Doubt] = []
            may_wait = not batch.is_cuda or (route is not routes.by_polynomials and method == "polar")
            solved = _solve(
                batch.mT if group.is_wide else batch,
                [f"{names[i]} (slice {k})" if tensors[i].ndim > 2 else names[i] for i, k in slices],
                [seeds[i] + k for i, k in slices],
                method,
                num_iters,
                null,
                route,
                results[indices[0]].singular_values is not None,
                None if may_wait else own,
            )
            lengths = [stop - start for _, start, stop in chunk]
            places = [outputs[run][start:stop] for run, start, stop in chunk]

            def hand_out() -> None:
                factors = (solved.factors.mT if group.is_wide else solved.factors).to(group.dtype)
                torch._foreach_copy_(places, list(factors.split(lengths)))

            hand_out()
            doubts.extend((doubt, hand_out) for doubt in own)
            if solved.singular_values is not None and solved.defect is not None:
                rounding = ROUNDINGS * torch.finfo(group.dtype).eps + group.short * routes.EPS64
                # Of the polish's Gram matrix: sums of m terms, whose errors grow as sqrt(m) (Higham & Mary 2019).
                rounding += 0.5 * math.sqrt(group.long) * torch.finfo(batch.dtype).eps
                defect = solved.defect + rounding
                found = zip(solved.singular_values.split(lengths), defect.split(lengths), strict=True)
                for (run, start, stop), (values, bounds) in zip(chunk, found, strict=True):
                    result = results[indices[run]]
                    if result.singular_values is not None and result.defect is not None:
                        result.singular_values.view(-1, group.short)[start:stop] = values
                        result.defect.view(-1)[start:stop] = bounds

        size = max(1, CHUNK_BYTES[inputs[0].device.type] // (8 * group.long * group.short))
        jobs = abreast if route is routes.by_eigh and not inputs[0].is_cuda else alone
        jobs += [partial(solve, chunk) for chunk in _chunks([len(batch) for batch in inputs], size)]
    for job in alone:
        job()
    _run_abreast(abreast)
    if (postponed := _postponed.get()) is None:
        _settle(doubts)
    else:
        postponed += [doubt.flags for doubt, _ in doubts]
    return results


@contextlib.contextmanager
def doubts_postponed() -> Iterator[list[Tensor]]:
    """Inside, nothing waits for a GPU to say whether its matrices are solved; yields what it will say.

    These are flags, (slices,) bool, for the caller to ask together with his own questions. Where one is true (a matrix
    without full rank, with NaN or infinity) the results of the calls inside are to be thrown away, and the calls made
    again outside, where the host solves such matrices or names them in an error.
    """
    doubts: list[Tensor] = []
    token = _postponed.set(doubts)
    try:
        yield doubts
    finally:
        _postponed.reset(token)


class _Doubt(NamedTuple):
    """A batch on a GPU that is solved, except for slices that the host may have to solve.

    Attributes:
        factors: what the batch was solved to.
        flags: (slices,) bool, whether the host must look at a slice.
        look: solves a slice on the host, or raises.
    """

    factors: Tensor
    flags: Tensor
    look: Callable[[int], Tensor]


def _settle(doubts: Sequence[tuple[_Doubt, Callable[[], None]]]) -> None:
    """Ask each GPU once about all its batches, and let the host solve what it must."""
    by_device: dict[torch.device, list[tuple[_Doubt, Callable[[], None]]]] = defaultdict(list)
    for doubt, hand_out in doubts:
        by_device[doubt.flags.device].append((doubt, hand_out))
    for batches in by_device.values():
        answers = iter(torch.cat([doubt.flags for doubt, _ in batches]).tolist())
        for doubt, hand_out in batches:
            chosen = [index for index in range(len(doubt.flags)) if next(answers)]
            for index in chosen:
                doubt.factors[index] = doubt.look(index)
            if chosen:
                hand_out()


def _run_abreast(jobs: Sequence[Callable[[], None]]) -> None:
    """Run every job on one thread, as many at a time as PyTorch may use threads.

    MKL's eigensolver takes as long on two threads as on one for matrices of this size, and twice to four times the
    processor time; side by side the matrices do share the cores, and round as they do on one thread.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) < 2:
        for job in jobs:
            job()
        return

    def run(job: Callable[[], None]) -> None:
        with torch.no_grad():  # a setting of each thread
            job()

    try:
        with ThreadPoolExecutor(threads, "polar", torch.set_num_threads, (1,)) as pool:
            list(pool.map(run, jobs))
    finally:
        torch.set_num_threads(threads)  # what the workers set is the default of threads to come


def _empty_result(tensor: Tensor, spectra: bool) -> PolarFactors:
    factors = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    if not spectra:
        return PolarFactors(factors)
    *leading, rows, columns = tensor.shape
    values = torch.zeros(*leading, min(rows, columns), dtype=torch.float64)
    return PolarFactors(factors, values, torch.zeros(leading, dtype=torch.float64))


def _slices(tensor: Tensor) -> Tensor:
    """View (..., m, n) as (slices, m, n)."""
    return tensor.view(-1, *tensor.shape[-2:])


def _tall(batch: Tensor, keep: bool) -> Tensor:
    """Wide matrices as tall ones, unless they are to be kept."""
    return batch.mT if batch.shape[-2] < batch.shape[-1] and not keep else batch


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
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be floating point ({', '.join(map(str, DTYPES))}), got {tensor.dtype}")
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
    route: routes.Route,
    spectra: bool,
    doubts: list[_Doubt] | None,
) -> PolarFactors:
    """Solve ``batch`` (slices, m, n), m >= n; the defect is without the rounding of the result's dtype.

    With ``doubts`` nothing waits for the device: what the host must look at is appended there.
    """

    def refuse(index: int) -> NoReturn:
        raise ValueError(f"{labels[index]} holds NaN or infinity; nothing was orthogonalized")

    largest = batch.abs().amax(dim=(-2, -1), keepdim=True)
    finite = largest.isfinite().flatten()
    if doubts is None and not finite.all():
        refuse(int((~finite).nonzero()[0]))
    # Scaling by the largest entry changes no polar factor and keeps squares in the range of the dtype.
    largest = torch.where(largest == 0, 1, largest)
    if method != "polar":
        coefficients = NEWTON_SCHULZ if method == "newton_schulz" else MUON
        factors = _iterate(batch / largest, coefficients, num_iters)
        if doubts is not None:
            doubts.append(_Doubt(factors, ~finite, refuse))
        return PolarFactors(factors)

    scaled = batch.to(torch.float64, copy=True).div_(largest)
    # On CUDA a float32 product may be a TF32 one.
    polish_dtype = torch.float64 if batch.is_cuda else batch.dtype
    factors, in_doubt, defect, eigenvalues = route(scaled, polish_dtype)
    if doubts is not None:

        def complete(index: int) -> Tensor:
            matrix = scaled[index].cpu()
            if not matrix.isfinite().all():
                refuse(index)
            return routes.complete(matrix, labels[index], seeds[index], null)[0].to(factors.device)

        # A matrix with NaN or infinity is never certified.
        doubts.append(_Doubt(factors, in_doubt, complete))
        return PolarFactors(factors)
    completed = {}
    for index in in_doubt.nonzero().flatten().tolist():
        factors[index], completed[index] = routes.complete(scaled[index], labels[index], seeds[index], null)
    if not spectra:
        return PolarFactors(factors)

    if eigenvalues is None:
        eigenvalues = torch.linalg.eigvalsh(routes.gram(scaled))
    values = eigenvalues.clamp(min=0).sqrt()
    unresolved = ~routes.resolved(eigenvalues) & ~in_doubt
    if unresolved.any():
        values[unresolved] = torch.linalg.svdvals(scaled[unresolved]).flip(-1)
    defect = defect.double().masked_fill_(in_doubt, 0)
    for index, descending in completed.items():
        values[index] = descending.flip(-1)
    return PolarFactors(factors, values * largest.squeeze(-1), defect)


def _route(backend: str, group: _Group) -> routes.Route:
    """The route of ``backend``; ``"auto"`` chooses by device, dtype and shape, never by values or batch size."""
    if backend != "auto":
        return ROUTES[backend]
    if group.device.type == "cuda":
        return routes.by_polynomials
    nearly_square = group.short >= routes.QDWH_FROM and group.long <= routes.QDWH_ASPECT * group.short
    return routes.by_qdwh if nearly_square and group.dtype != torch.float64 else routes.by_eigh


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
