"""The quantities of FIRE (arXiv 2602.08040): squared Frobenius error, deviation from isometry, layer scale.

Torch keeps weights as (out, in), the paper as (in, out). Both quantities here are taken on the short side,
which is the only one that can be orthonormal; for square weights the conventions agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fire.layers import WeightLayer
from fire.options import SCALES


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
    scale = torch.as_tensor(scale, dtype=torch.float64, device=gram.device)
    excess = gram / scale.square()[..., None, None]
    excess.diagonal(dim1=-2, dim2=-1).sub_(1)
    return excess.square().sum(dim=(-2, -1))


def layer_scale(layer: WeightLayer, convention: str = "paper", polar: Tensor | None = None) -> Tensor:
    """Return the singular value FIRE gives each matrix of ``layer``, shape (...) of ``layer.matrices()``,
    float64.

    ``paper``: sqrt(out / in), divided by the number of kernel positions for a convolution (authors'
    released code; the text leaves it out). ``unit``: 1, the setting of the paper's theorems.
    ``mean_singular_value``: ||W||_* / n, the scale with the smallest SFE among all multiples of the polar
    factor. ``preserve_norm``: ||W||_F / sqrt(n), which leaves the Frobenius norm as it was. n is the short
    side.

    Args:
        layer: the layer, with its current weights.
        convention: one of the four.
        polar: polar factors of ``layer.matrices()``; ``mean_singular_value`` runs an SVD where they are
            missing.

    Raises:
        ValueError: unknown convention.
    """
    matrices = layer.matrices()
    out_features, in_features = matrices.shape[-2:]
    ones = torch.ones(matrices.shape[:-2], dtype=torch.float64, device=matrices.device)
    if convention == "paper":
        return ones * ((out_features / in_features) ** 0.5 / layer.kernel_elements)
    if convention == "unit":
        return ones
    short = min(out_features, in_features)
    if convention == "mean_singular_value":
        if polar is None:
            return torch.linalg.svdvals(matrices.double()).sum(-1) / short
        return (polar.double() * matrices.double()).sum(dim=(-2, -1)) / short  # tr(Q^T W) = ||W||_*
    if convention == "preserve_norm":
        return torch.linalg.matrix_norm(matrices.double()) / short**0.5
    raise ValueError(f"scale {convention!r} is not one of {', '.join(SCALES)}")
