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
