"""What a reset did: FIRE's quantities for every weight layer, before and after."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor

from fire.isometry import dfi_of_gram, sfe, short_gram
from fire.layers import WeightLayer

QUANTITIES = (
    "sfe",
    "relative_sfe",
    "dfi_before",
    "dfi_after",
    "dfi_scaled_before",
    "dfi_scaled_after",
)
RESET_KEYS = (
    "reset/seconds",
    *(f"reset/<network>/{quantity}" for quantity in QUANTITIES),
    *(f"reset/<network>/{quantity}/<layer>" for quantity in QUANTITIES),
)


@dataclass(frozen=True)
class LayerReport:
    """What a reset did to one weight layer.

    Attributes:
        network, layer: where it is.
        sfe: ||W - W~||_F^2 (FIRE eq. 1).
        squared_norm: ||W||_F^2 before.
        dfi_before, dfi_after: raw ||W^T W - I||_F^2 on the short side, summed over the layer's matrices.
        dfi_scaled_before, dfi_scaled_after: the same for W / s, s being the layer's scale.
    """

    network: str
    layer: str
    sfe: float
    squared_norm: float
    dfi_before: float
    dfi_after: float
    dfi_scaled_before: float
    dfi_scaled_after: float

    @property
    def relative_sfe(self) -> float:
        """SFE as a share of ||W||_F^2; infinite where a zero weight was replaced."""
        return _ratio(self.sfe, self.squared_norm)


@dataclass(frozen=True)
class ResetReport:
    """What a reset did to every weight layer, and how long planning and writing took (seconds)."""

    layers: tuple[LayerReport, ...]
    seconds: float

    def scalars(self) -> dict[str, float]:
        """Return the figures under the keys of ``RESET_KEYS``; network totals are sums over its weight layers."""
        scalars: dict[str, float] = {"reset/seconds": self.seconds}
        networks: dict[str, list[LayerReport]] = defaultdict(list)
        for layer in self.layers:
            networks[layer.network].append(layer)
        for network, layers in networks.items():
            total = LayerReport(network, "", *(sum(getattr(x, name) for x in layers) for name in _SUMMED))
            for quantity in QUANTITIES:
                scalars[f"reset/{network}/{quantity}"] = getattr(total, quantity)
                for layer in layers:
                    scalars[f"reset/{network}/{quantity}/{layer.layer}"] = getattr(layer, quantity)
        return scalars


_SUMMED = tuple(LayerReport.__annotations__)[2:]


def describe(network: str, layer: WeightLayer, after: Tensor, scale: Tensor) -> LayerReport:
    """Compare the layer's weight as it is with ``after``; ``scale`` (..., one for each matrix) defines the
    scaled DfI.
    """
    before = layer.weight.detach()
    grams = [short_gram(layer.matrices(weight)) for weight in (before, after)]
    raw_before, raw_after = (float(dfi_of_gram(gram).sum()) for gram in grams)
    scaled_before, scaled_after = (float(dfi_of_gram(gram, scale).sum()) for gram in grams)
    return LayerReport(
        network=network,
        layer=layer.name,
        sfe=float(sfe(before, after)),
        squared_norm=float(before.double().square().sum()),
        dfi_before=raw_before,
        dfi_after=raw_after,
        dfi_scaled_before=scaled_before,
        dfi_scaled_after=scaled_after,
    )


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return part / whole
