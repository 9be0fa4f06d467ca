"""SingularClipReset: the singular values of every weight clipped into an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..options import SingularClipOptions
from .base import LayerwiseReset
from .plan import Write
from .rules import Keep, NamedParameter, Rule


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
    """Clip the singular values of each matrix, by SVD in float64 on the host; those inside stay to rounding."""

    low: float
    high: float
    needs_fresh: ClassVar[bool] = False

    def __call__(self, parameters: Sequence[NamedParameter], generator: torch.Generator) -> list[Write]:
        return [self._write(parameter) for parameter in parameters]

    def _write(self, parameter: NamedParameter) -> Write:
        assert parameter.layer is not None
        matrices = parameter.layer.matrices().double().cpu()
        if not matrices.isfinite().all():
            raise ValueError(f"parameter {parameter.name} holds NaN or infinity")
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        clipped = (left * values.clamp(self.low, self.high)[..., None, :]) @ right
        weight = parameter.layer.weight_from(clipped.to(parameter.parameter))
        return Write(parameter.name, parameter.parameter, weight)
