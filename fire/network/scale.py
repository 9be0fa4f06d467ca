"""The singular value that FIRE gives a layer's matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import SCALES
from .layers import WeightLayer


def layer_scale(
    layer: WeightLayer,
    convention: str = "paper",
    polar: Tensor | None = None,
    fresh: Tensor | None = None,
) -> Tensor:
    """Return the singular value FIRE gives each matrix of ``layer``, shape (...) of ``layer.matrices()``,
    float64.

    ``paper``: sqrt(out / in), divided by the number of kernel positions for a convolution (authors'
    released code; the text leaves it out). ``unit``: 1, the setting of the paper's theorems.
    ``mean_singular_value``: ||W||_* / n, the scale with the smallest SFE among all multiples of the polar
    factor. ``preserve_norm``: ||W||_F / sqrt(n), which leaves the Frobenius norm as it was.
    ``fresh_norm``: ||W_fresh||_F / sqrt(n m), which gives the layer's m matrices together the Frobenius norm of a
    newly drawn weight. That is the norm of one draw and not its expectation, which only the initialiser's formula could
    tell; for independent entries the two differ by a share of about 1 / sqrt(2 * number of entries). n is the short
    side.

    Args:
        layer: the layer, with its current weights.
        convention: one of the five.
        polar: polar factors of ``layer.matrices()``; ``mean_singular_value`` runs an SVD where they are
            missing.
        fresh: a newly drawn weight in the layer's shape, which ``fresh_norm`` needs.

    Raises:
        ValueError: unknown convention, or ``fresh`` is missing.
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
    if convention == "fresh_norm":
        if fresh is None:
            raise ValueError(f"scale 'fresh_norm' needs a newly drawn weight of {layer.name}")
        drawn = torch.linalg.vector_norm(fresh.detach().double()).to(ones.device)
        return ones * (drawn / (short * ones.numel()) ** 0.5)
    raise ValueError(f"scale {convention!r} is not one of {', '.join(SCALES)}")
