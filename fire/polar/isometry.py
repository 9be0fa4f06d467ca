"""The quantities of FIRE (arXiv 2602.08040): squared Frobenius error, deviation from isometry, layer scale.

Torch keeps weights as (out, in), the paper as (in, out). Both quantities here are taken on the short side,
which is the only one that can be orthonormal; for square weights the conventions agree.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sfe(before: Tensor, after: Tensor) -> Tensor:
    """Squared Frobenius error ||W - W~||_F^2 over all elements (FIRE eq. 1), as a float64 scalar."""
    return (before.double() - after.double()).square().sum()


def dfi(matrices: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Deviation from isometry ||(W/s)^T (W/s) - I||_F^2 of each matrix (FIRE eq. 2), on its short side.

    Args:
        matrices: (..., m, n).
        scale: what the singular values of a perfect matrix would be, a number or (...). 1 gives the raw
            quantity.

    Returns:
        (...), float64. Zero exactly for ``scale`` times an isometry.
    """
    return dfi_of_gram(short_gram(matrices), scale)


def short_gram(matrices: Tensor) -> Tensor:
    """Gram matrix of the short side of each matrix, (..., m, n) to (..., k, k) with k = min(m, n), float64."""
    matrices = matrices.double()
    matrices = matrices.mT if matrices.shape[-2] < matrices.shape[-1] else matrices
    return matrices.mT @ matrices


def dfi_of_gram(gram: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """:func:`dfi` from the result of :func:`short_gram`, for several scales at the price of one."""
    if not isinstance(scale, Tensor):  # filled in on the device: a copy from the host would wait
        scale = torch.full((), scale, dtype=gram.dtype, device=gram.device)
    scale = scale.to(gram)
    excess = gram / scale.square()[..., None, None]
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    return excess.square().sum(dim=(-2, -1))


def closest_scale(gram: Tensor) -> Tensor:
    """Scale c that minimises ||W^T W / c^2 - I||_F^2: c^2 = ||W^T W||_F^2 / ||W||_F^2.

    Args:
        gram: W^T W of each matrix, by :func:`short_gram`, (..., k, k).

    Returns:
        (...), float64. 1 for a zero matrix, which deviates alike at all scales.
    """
    return _closest_scale(gram.diagonal(dim1=-2, dim2=-1).sum(-1), gram.square().sum(dim=(-2, -1)))


def closest_scale_of_values(singular_values: Tensor) -> Tensor:
    """:func:`closest_scale` from the singular values of each matrix, (..., k) float64 to (...)."""
    squares = singular_values.square()
    return _closest_scale(squares.sum(-1), squares.square().sum(-1))


def _closest_scale(squared_norm: Tensor, squared_gram_norm: Tensor) -> Tensor:
    return torch.where(squared_norm > 0, (squared_gram_norm / squared_norm).sqrt(), 1.0)
