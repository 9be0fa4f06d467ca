"""FIRE and rival resets for any ``nn.Module``: knows modules and optimizers, nothing about reinforcement learning.

FIRE (arXiv 2602.08040) replaces a weight W by the closest scaled isometry: of all W~ that deviate from one by nothing,

    W~ = argmin SFE(W, W~)  subject to  DfI(W~ / s) = 0,
    SFE(W, W~) = ||W - W~||_F^2,   DfI(W) = ||W^T W - I||_F^2,

s being the layer's scale. With W = U S V^T the answer is s U V^T, s times the polar factor (eq. 5). ``fire_reference``
below is that in six lines; ``fire_(module)`` does it to a whole network, faster and with a report, and
``reset_networks`` together with optimizers and target networks, as one of many strategies.

The names below load their modules when they are first used, so that ``fire.options`` and ``fire.triggers`` can be
read without PyTorch.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from .fire_inplace import fire_
    from .metrics.cheap import METRIC_KEYS, measure
    from .network.slot import NetworkSlot
    from .polar.factors import PolarFactors, polar_factor, polar_factors
    from .resets.registry import REGISTRY, Reset, make_reset, reset_networks
    from .resets.report import RESET_KEYS, ResetReport

__all__ = [
    "METRIC_KEYS",
    "REGISTRY",
    "RESET_KEYS",
    "NetworkSlot",
    "PolarFactors",
    "Reset",
    "ResetReport",
    "fire_",
    "fire_reference",
    "make_reset",
    "measure",
    "polar_factor",
    "polar_factors",
    "reset_networks",
]

_HOMES = {
    "metrics.cheap": ("METRIC_KEYS", "measure"),
    "fire_inplace": ("fire_",),
    "polar.factors": ("PolarFactors", "polar_factor", "polar_factors"),
    "resets.report": ("RESET_KEYS", "ResetReport"),
    "resets.registry": ("REGISTRY", "Reset", "make_reset", "reset_networks"),
    "network.slot": ("NetworkSlot",),
}


def fire_reference(weight: Tensor, scale: str = "paper", fresh: Tensor | None = None) -> Tensor:
    """FIRE of one weight by the formula alone: SVD in float64, the oracle that tests compare with.

    Args:
        weight: of a linear layer, (out, in), or of a convolution, (out, in, *kernel), whose kernel positions are
            matrices of their own, as published.
        scale: see :func:`fire.network.scale.layer_scale`.
        fresh: a newly drawn weight in the same shape, for ``fresh_norm``.

    Returns:
        The new weight in the same shape, float64.
    """
    import torch

    out_features, in_features, *kernel = weight.shape
    matrices = weight.detach().double().reshape(out_features, in_features, -1).movedim(-1, 0)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    scales: dict[str, Tensor | float] = {
        "paper": (out_features / in_features) ** 0.5 / math.prod(kernel),
        "unit": 1.0,
        "mean_singular_value": values.mean(-1),
        "preserve_norm": values.square().mean(-1).sqrt(),
    }
    if fresh is not None:
        scales["fresh_norm"] = (fresh.detach().double().square().sum() / values.numel()).sqrt()
    isometries = torch.as_tensor(scales[scale], dtype=torch.float64)[..., None, None] * left @ right
    return isometries.movedim(0, -1).reshape(weight.shape)


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
