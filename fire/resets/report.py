"""ResetReport: what a reset did, FIRE's quantities for every weight layer before and after."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..metrics.kept import KEPT
from ..network.layers import WeightLayer
from ..network.memory import to_host
from ..polar.isometry import closest_scale, closest_scale_of_values, dfi_of_gram, sfe, short_gram
from ..polar.routes import resolved
from .plan import Spectra

QUANTITIES = (
    "sfe",
    "relative_sfe",
    "dfi_before",
    "dfi_after",
    "dfi_scaled_before",
    "dfi_scaled_after",
    "dfi_any_scale_before",
    "dfi_any_scale_after",
    "condition_number",
    "residual",
)
SQUARINGS = 14  # of ``extreme_eigenvalues``
RESET_KEYS = (
    "reset/seconds",
    *(f"reset/<network>/{quantity}" for quantity in QUANTITIES),
    *(f"reset_layers/<network>/{quantity}/<layer>" for quantity in QUANTITIES),
    *(f"reset/<network>/{name}" for name in KEPT),
)


@dataclass(frozen=True)
class LayerReport:
    """What a reset did to one weight layer.

    Attributes:
        network, layer: where it is; the network is empty after ``fire_``.
        kind, role: as in :class:`~fire.network.layers.WeightLayer`.
        scale: the layer's scale s, that of the paper or the one ``fire_`` was asked for; the mean over the layer's
            matrices where they differ.
        sfe: ||W - W~||_F^2 (FIRE eq. 1).
        squared_norm: ||W||_F^2 before.
        dfi_before, dfi_after: raw ||W^T W - I||_F^2 on the short side, summed over the layer's matrices.
        dfi_scaled_before, dfi_scaled_after: the same for W / s.
        dfi_any_scale_before, dfi_any_scale_after: the same for W / c, c of each matrix being the scale at which it is
            smallest: 0 for any multiple of an isometry.
        condition_number: largest over smallest singular value before, the worst of the layer's matrices;
            infinite where one lacks a direction.
        residual: ||(W~/c)^T (W~/c) - I||_F / sqrt(n) after, n the short side, the worst of the layer's matrices.

    Where a solver certifies its result (FIRE with ``method="polar"`` on CPU), ``residual`` and the parts of
    ``dfi_after``, ``dfi_scaled_after`` and ``dfi_any_scale_after`` that are rounding are the certified upper bounds,
    not measured.
    """

    network: str
    layer: str
    kind: str
    role: str
    scale: float
    sfe: float
    squared_norm: float
    dfi_before: float
    dfi_after: float
    dfi_scaled_before: float
    dfi_scaled_after: float
    dfi_any_scale_before: float
    dfi_any_scale_after: float
    condition_number: float
    residual: float

    @property
    def relative_sfe(self) -> float:
        """SFE as a share of ||W||_F^2; infinite where a zero weight was replaced."""
        return _ratio(self.sfe, self.squared_norm)


@dataclass(frozen=True)
class ResetReport:
    """What a reset did.

    Attributes:
        layers: to every weight layer.
        seconds: time it took, this report excluded. On a GPU planning counts by the GPU's clock, and writing as long as
            it takes to start it.
        left_alone: name of every weight layer and every other parameter of two or more dimensions that was not changed,
            and of units that could not be judged, each with the reason.
        kept: by network, what of its behaviour on the probe batch was kept, see :func:`fire.metrics.kept.kept`.
    """

    layers: tuple[LayerReport, ...]
    seconds: float
    left_alone: tuple[tuple[str, str], ...] = ()
    kept: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """Return the figures under the keys of ``RESET_KEYS``; a network has the sum over its weight layers, or
        the worst of them for condition number and residual.

        Figures that do not exist, such as the condition number of a zero weight, have no key: tables, plots and JSON
        know numbers only.
        """
        scalars: dict[str, float] = {"reset/seconds": self.seconds}
        networks: dict[str, list[LayerReport]] = defaultdict(list)
        for layer in self.layers:
            networks[layer.network].append(layer)
        for network, layers in networks.items():
            of_network = f"/{network}" if network else ""
            for quantity in QUANTITIES:
                values = [getattr(layer, quantity) for layer in layers]
                if quantity == "relative_sfe":
                    total = _ratio(
                        sum(layer.sfe for layer in layers), sum(layer.squared_norm for layer in layers)
                    )
                else:
                    total = max(values) if quantity in ("condition_number", "residual") else sum(values)
                scalars[f"reset{of_network}/{quantity}"] = total
                for layer, value in zip(layers, values, strict=True):
                    scalars[f"reset_layers{of_network}/{quantity}/{layer.layer}"] = value
        for network, figures in self.kept.items():
            scalars |= {f"reset/{network}/{name}": value for name, value in figures.items()}
        return {key: value for key, value in scalars.items() if math.isfinite(value)}

    def __str__(self) -> str:
        """A table with one line for each layer, then one for each weight that was left alone."""
        lines = [
            f"{'layer':30} {'role':6} {'scale':>8} {'rel. SFE':>9} {'DfI before':>10} {'cond':>8} {'residual':>9}"
        ]
        for layer in self.layers:
            name = f"{layer.network}/{layer.layer}".lstrip("/")
            lines.append(
                f"{name:30} {layer.role:6} {layer.scale:8.4f} {layer.relative_sfe:9.4f} "
                f"{layer.dfi_any_scale_before:10.4g} {layer.condition_number:8.2g} {layer.residual:9.1e}"
            )
        lines += [f"left alone: {name}: {reason}" for name, reason in self.left_alone]
        return "\n".join(lines)


class LayerChange(NamedTuple):
    """One weight layer about to change: all that its report is made from.

    Attributes:
        network: name of the layer's network.
        layer: the layer, with its weight as it is.
        after: what its weight will be.
        scale: what the scaled quantities refer to, one for each matrix, (...) float64.
        spectra: what a solver knows of the matrices; None: they are measured.
    """

    network: str
    layer: WeightLayer
    after: Tensor
    scale: Tensor
    spectra: Spectra | None = None


class Figures(NamedTuple):
    """The numbers of some reports, on the devices of their weights.

    Attributes:
        rows: for each report (figures,) float64, in the order of ``FIGURES``.
        grams: for each report the Gram matrices of the weight before, (..., n, n); None where a solver knew enough.
    """

    rows: list[Tensor]
    grams: list[Tensor | None]


def layer_reports(changes: Sequence[LayerChange]) -> tuple[LayerReport, ...]:
    """Return a report on each change; waits for a GPU once for all of them, and for matrices
    whose condition number their Gram matrix cannot tell."""
    found = figures(changes)
    return reports_from(changes, found.grams, to_host(found.rows))


def figures(changes: Sequence[LayerChange]) -> Figures:
    """What :func:`reports_from` makes reports of; nothing waits for a GPU."""
    grams = [short_gram(each.layer.matrices()) if each.spectra is None else None for each in changes]
    conditions = iter(_conditions([gram for gram in grams if gram is not None]))
    rows = []
    for change, gram in zip(changes, grams, strict=True):
        if change.spectra is not None:
            rows.append(_known(change.spectra, change.scale))
        elif gram is not None:
            rows.append(_measured(change, gram, next(conditions)))
    return Figures(rows, grams)


def reports_from(
    changes: Sequence[LayerChange], grams: Sequence[Tensor | None], rows: Sequence[Tensor]
) -> tuple[LayerReport, ...]:
    """The reports on ``changes``, before these are written, from their :func:`figures` with the rows on the host."""
    reports = []
    for (network, layer, *_), gram, row in zip(changes, grams, rows, strict=True):
        numbers = row.tolist()
        if gram is not None and math.isnan(numbers[CONDITION]):
            numbers[CONDITION] = condition_number(layer.matrices(), gram.cpu())
        reports.append(LayerReport(network, layer.name, layer.kind, layer.role, *numbers))
    return tuple(reports)


def _conditions(grams: Sequence[Tensor]) -> list[Tensor]:
    """Worst condition number behind each of ``grams`` (..., n, n); NaN where it is to be found on the host.

    On a GPU, where eigensolvers are slow and wait, from the extreme eigenvalues, for all matrices of a size at once.
    """
    found = [torch.full((), torch.nan, dtype=torch.float64, device=gram.device) for gram in grams]
    sizes: dict[tuple[torch.device, int], list[int]] = defaultdict(list)
    for i, gram in enumerate(grams):
        if gram.is_cuda:
            sizes[gram.device, gram.shape[-1]].append(i)
    for (_, size), indices in sizes.items():
        batches = [grams[i].reshape(-1, size, size) for i in indices]
        ends = extreme_eigenvalues(torch.cat(batches))
        values = torch.where(resolved(ends), (ends[:, 1] / ends[:, 0]).sqrt(), torch.nan)
        for i, own in zip(indices, values.split([len(batch) for batch in batches]), strict=True):
            found[i] = own.amax()  # NaN if any is
    return found


def extreme_eigenvalues(gram: Tensor) -> Tensor:
    """Smallest and largest eigenvalue of symmetric positive matrices, (slices, n, n) to (slices, 2) float64.

    By products alone: ``2**SQUARINGS`` steps of power iteration on the matrix and on its inverse, and Rayleigh's
    quotient. Another eigenvalue, r times the largest, adds an error of (1 - r) r^(2^(SQUARINGS + 1)), at most 2e-5 of
    the value. NaN where the Cholesky factorization fails.
    """
    size = gram.shape[-1]
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    bound = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[
        :, None, None
    ]  # the trace: at least the largest eigenvalue
    scaled = gram / torch.where(bound > 0, bound, 1)
    triangle, failed = torch.linalg.cholesky_ex(scaled)
    half = torch.linalg.solve_triangular(triangle, eye.expand_as(scaled), upper=False)
    unscaled = torch.cat([half.mT @ half, scaled])
    power = unscaled / unscaled.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    for step in range(SQUARINGS):
        power = power @ power
        if step % 2:  # two squarings of eigenvalues from 1 / n on stay far from zero
            power = power / power.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    # Of the projection on the leading eigenvectors, which the power has become, the longest column is one of them.
    lengths = torch.linalg.vector_norm(power, dim=-2)
    column = lengths.argmax(-1)[:, None, None].expand(-1, size, 1)
    vector = power.gather(-1, column)
    quotient = (vector.mT @ unscaled @ vector).flatten() / vector.square().sum((-2, -1))
    inverse, largest = quotient.chunk(2)
    ends = torch.stack([1 / inverse, largest], dim=-1) * bound.flatten()[:, None]
    return ends.masked_fill((failed != 0)[:, None], torch.nan)


# The numbers of a LayerReport in the order of its attributes, and the place of the one that is found apart.
FIGURES = tuple(LayerReport.__annotations__)[4:]
CONDITION = FIGURES.index("condition_number")


def _known(spectra: Spectra, scale: Tensor) -> Tensor:
    """The figures from the singular values before and after, which have the same singular vectors."""
    before, after, defect = spectra
    closest_before, closest_after = (closest_scale_of_values(values)[..., None] for values in (before, after))
    raw, scaled, closest = (
        # What is not rounding, and the rounding that the solver's certificate allows.
        (ratio.square() - 1).square() + (ratio.square() * defect[..., None]).square()
        for ratio in (after, after / scale[..., None], after / closest_after)
    )
    smallest = before.amin(-1)
    figures = {
        "scale": scale.mean(),
        "sfe": (before - after).square().sum(),
        "squared_norm": before.square().sum(),
        "dfi_before": (before.square() - 1).square().sum(),
        "dfi_after": raw.sum(),
        "dfi_scaled_before": ((before / scale[..., None]).square() - 1).square().sum(),
        "dfi_scaled_after": scaled.sum(),
        "dfi_any_scale_before": ((before / closest_before).square() - 1).square().sum(),
        "dfi_any_scale_after": closest.sum(),
        "condition_number": torch.where(smallest > 0, before.amax(-1) / smallest, torch.inf).amax(),
        "residual": closest.mean(-1).amax().sqrt(),
    }
    return torch.stack([figures[name] for name in FIGURES])


def _measured(change: LayerChange, gram: Tensor, condition: Tensor) -> Tensor:
    """The figures by looking at the weight before, whose Gram matrices are ``gram``, and after."""
    before, scale = change.layer.weight.detach(), change.scale
    gram_after = short_gram(change.layer.matrices(change.after))
    closest = dfi_of_gram(gram_after, closest_scale(gram_after))
    figures = {
        "scale": scale.mean(),
        "sfe": sfe(before, change.after),
        "squared_norm": before.double().square().sum(),
        "dfi_before": dfi_of_gram(gram).sum(),
        "dfi_after": dfi_of_gram(gram_after).sum(),
        "dfi_scaled_before": dfi_of_gram(gram, scale).sum(),
        "dfi_scaled_after": dfi_of_gram(gram_after, scale).sum(),
        "dfi_any_scale_before": dfi_of_gram(gram, closest_scale(gram)).sum(),
        "dfi_any_scale_after": closest.sum(),
        "condition_number": condition,
        "residual": (closest.amax() / gram_after.shape[-1]).sqrt(),
    }
    return torch.stack([figures[name] for name in FIGURES])


def condition_number(matrices: Tensor, gram: Tensor) -> float:
    """Worst condition number of ``matrices`` (..., m, n) with the Gram matrices ``short_gram(matrices)`` on the host.

    By eigenvalues of the Gram matrix, by SVD where those cannot resolve it; NaN for matrices with NaN or infinity.
    """
    size = gram.shape[-1]
    gram = gram.reshape(-1, size, size)
    largest = gram.abs().amax(dim=(-2, -1), keepdim=True)
    usable = (largest.isfinite() & (largest > 0)).flatten()
    eigenvalues = torch.linalg.eigvalsh(gram[usable] / largest[usable])
    clear = resolved(eigenvalues)
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
        return 0.0 if part == 0 else math.inf
    return part / whole
