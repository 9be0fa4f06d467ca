"""What a reset did: FIRE's quantities for every weight layer, before and after."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.layers import WeightLayer
from ..polar.isometry import dfi_of_gram, sfe, short_gram
from ..polar.routes import EPS64

QUANTITIES = (
    "sfe",
    "relative_sfe",
    "dfi_before",
    "dfi_after",
    "dfi_scaled_before",
    "dfi_scaled_after",
    "condition_number",
    "residual",
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
        condition_number: largest over smallest singular value before, the worst of the layer's matrices;
            infinite where one lacks a direction.
        residual: ||(W~/s)^T (W~/s) - I||_F / sqrt(n) after, n the short side, the worst of the layer's
            matrices. After FIRE it is rounding.
    """

    network: str
    layer: str
    sfe: float
    squared_norm: float
    dfi_before: float
    dfi_after: float
    dfi_scaled_before: float
    dfi_scaled_after: float
    condition_number: float
    residual: float

    @property
    def relative_sfe(self) -> float:
        """SFE as a share of ||W||_F^2; infinite where a zero weight was replaced."""
        return _ratio(self.sfe, self.squared_norm)


@dataclass(frozen=True)
class ResetReport:
    """What a reset did to every weight layer, and how long it took (seconds), this report excluded."""

    layers: tuple[LayerReport, ...]
    seconds: float

    def scalars(self) -> dict[str, float]:
        """Return the figures under the keys of ``RESET_KEYS``; a network has the sum over its weight layers, or
        the worst of them for condition number and residual.
        """
        scalars: dict[str, float] = {"reset/seconds": self.seconds}
        networks: dict[str, list[LayerReport]] = defaultdict(list)
        for layer in self.layers:
            networks[layer.network].append(layer)
        for network, layers in networks.items():
            values = {name: [getattr(layer, name) for layer in layers] for name in (*_SUMMED, *_WORST)}
            total = LayerReport(
                network,
                "",
                **{name: sum(values[name]) for name in _SUMMED},
                **{name: max(values[name]) for name in _WORST},
            )
            for quantity in QUANTITIES:
                scalars[f"reset/{network}/{quantity}"] = getattr(total, quantity)
                for layer in layers:
                    scalars[f"reset/{network}/{quantity}/{layer.layer}"] = getattr(layer, quantity)
        return scalars


_WORST = ("condition_number", "residual")
_SUMMED = tuple(name for name in LayerReport.__annotations__ if name not in ("network", "layer", *_WORST))


def describe(network: str, layer: WeightLayer, after: Tensor, scale: Tensor) -> LayerReport:
    """Compare the layer's weight as it is with ``after``; ``scale`` (..., one for each matrix) defines the
    scaled DfI.
    """
    before = layer.weight.detach()
    grams = [short_gram(layer.matrices(weight)) for weight in (before, after)]
    raw_before, raw_after = (float(dfi_of_gram(gram).sum()) for gram in grams)
    scaled_before, scaled_after = (dfi_of_gram(gram, scale) for gram in grams)
    return LayerReport(
        network=network,
        layer=layer.name,
        sfe=float(sfe(before, after)),
        squared_norm=float(before.double().square().sum()),
        dfi_before=raw_before,
        dfi_after=raw_after,
        dfi_scaled_before=float(scaled_before.sum()),
        dfi_scaled_after=float(scaled_after.sum()),
        condition_number=condition_number(layer.matrices(), grams[0]),
        residual=float((scaled_after.amax() / grams[1].shape[-1]).sqrt()),
    )


def condition_number(matrices: Tensor, gram: Tensor) -> float:
    """Worst condition number of ``matrices`` (..., m, n) with the Gram matrices ``short_gram(matrices)``.

    By eigenvalues of the Gram matrix on the host, by SVD where those cannot resolve it; NaN for matrices with NaN
    or infinity.
    """
    size = gram.shape[-1]
    gram = gram.reshape(-1, size, size).cpu()
    largest = gram.abs().amax(dim=(-2, -1), keepdim=True)
    usable = (largest.isfinite() & (largest > 0)).flatten()
    eigenvalues = torch.linalg.eigvalsh(gram[usable] / largest[usable])
    clear = eigenvalues[:, 0] > 1e3 * EPS64 * size * eigenvalues[:, -1]
    conditions = [(eigenvalues[clear, -1] / eigenvalues[clear, 0]).sqrt()]
    usable[usable.clone()] = clear
    if not usable.all():
        rest = matrices.reshape(-1, *matrices.shape[-2:]).cpu().double()[~usable]
        if not rest.isfinite().all():
            return float("nan")
        values = torch.linalg.svdvals(rest)
        conditions.append((values[:, 0] / values[:, -1]).nan_to_num(nan=torch.inf))
    return float(torch.cat(conditions).amax())


def _ratio(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return part / whole
