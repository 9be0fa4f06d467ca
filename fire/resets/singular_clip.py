"""SingularClipReset: the singular values of every weight clipped into an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..options import SingularClipOptions
from ..polar.isometry import short_gram
from .base import LayerwiseReset
from .plan import Write
from .rules import Keep, NamedParameter, Rule

# Smallest over largest eigenvalue of a Gram matrix whose square roots are good to 1e-7 in float64.
WELL_CONDITIONED = 1e-6


@dataclass(frozen=True)
class SingularClipReset(LayerwiseReset):
    """SingularClip (arXiv 2608.18319): each W = U S V^T becomes U clip(S, min, max) V^T; everything else is kept.

    FIRE with an interval in place of one scale: between the bounds the spectrum stays as learned. The paper could not
    be had; this is its one-line definition, and the default interval is one that a third party's SAC used every 200,000
    env steps. Treatment of convolutions, optimizer and target is ours.
    """

    name: ClassVar[str] = "singular_clip"
    options: SingularClipOptions = field(default_factory=SingularClipOptions)

    @property
    def conv_form(self) -> str:
        return self.options.conv_form

    def rule_for(self, parameter: NamedParameter) -> Rule:
        o, layer = self.options, parameter.layer
        if layer is None or layer.embedding or not parameter.is_weight or layer.role not in o.roles:
            return Keep()
        return ClipSingularValues(o.min_singular_value, o.max_singular_value)


@dataclass(frozen=True)
class ClipSingularValues:
    """Clip the singular values of each matrix, in float64 on the host; a weight with none to clip is not written."""

    low: float
    high: float
    needs_fresh: ClassVar[bool] = False

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        writes = [self._write(parameter) for parameter in parameters]
        return [write for write in writes if write is not None]

    def _write(self, parameter: NamedParameter) -> Write | None:
        assert parameter.layer is not None
        matrices = parameter.layer.matrices().double().cpu()
        if not matrices.isfinite().all():
            raise ValueError(f"parameter {parameter.name} holds NaN or infinity")
        clipped = clip_singular_values(matrices, self.low, self.high)
        if clipped is None:
            return None
        weight = parameter.layer.weight_from(clipped.to(parameter.parameter))
        return Write(parameter.name, parameter.parameter, weight)


def clip_singular_values(matrices: Tensor, low: float, high: float) -> Tensor | None:
    """U clip(S, low, high) V^T of float64 matrices U S V^T, (..., out, in); None where nothing has to be clipped.

    By the eigenvectors of the short side's Gram matrix, several times as fast as SVD; by SVD where singular values
    differ so much that the square would cost the smallest more than float32's precision.
    """
    tall = matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT
    squares, vectors = torch.linalg.eigh(short_gram(matrices))
    if (squares[..., 0] < WELL_CONDITIONED * squares[..., -1]).any():
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        clipped = values.clamp(low, high)
        return None if torch.equal(clipped, values) else (left * clipped[..., None, :]) @ right
    values = squares.sqrt()
    clipped = values.clamp(low, high)
    if torch.equal(clipped, values):
        return None
    factor = (vectors * (clipped / values)[..., None, :]) @ vectors.mT
    return tall @ factor if tall is matrices else (tall @ factor).mT
