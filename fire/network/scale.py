"""The singular value that FIRE gives a layer's matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..options import SCALES
from .layers import WeightLayer


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
