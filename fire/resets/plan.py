"""Plan: every change that a reset wants, checked as a whole before the first is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..network.memory import first_overlap, obstacle, to_host


class Spectra(NamedTuple):
    """Singular values of a layer's matrices before and after a change that keeps their singular vectors.

    Attributes:
        before, after: (..., n) float64, n the short side, in the same order.
        defect: (...) float64, upper bound of ||Q^T Q - I||_F / sqrt(n) for the matrices after, their singular values
            divided out.
    """

    before: Tensor
    after: Tensor
    defect: Tensor


class Write(NamedTuple):
    """One tensor to be overwritten.

    Attributes:
        name: what errors call it, ``network/dotted.parameter.name`` for a parameter.
        destination: the tensor whose storage takes the value.
        value: the new value, in the shape of the destination.
        spectra: of a weight's matrices, where the solver of the new value knows them.
    """

    name: str
    destination: Tensor
    value: Tensor
    spectra: Spectra | None = None


@dataclass
class Plan:
    """Changes that a reset wants, carried out together.

    Attributes:
        writes: new values, with the places they go to.
        actions: changes of structure, run after the writes; they must not fail.
        left_alone: names of units that the reset would have to judge and cannot, and why.
    """

    writes: list[Write] = field(default_factory=list)
    actions: list[Callable[[], None]] = field(default_factory=list)
    left_alone: list[tuple[str, str]] = field(default_factory=list)

    def write_to(self, tensor: Tensor) -> Write:
        """The write into ``tensor``, or one of its own value where nothing is to be written."""
        return next((w for w in self.writes if w.destination is tensor), Write("", tensor, tensor.detach()))

    def check(self) -> None:
        """Raise where the plan cannot be carried out as a whole.

        Raises:
            TypeError: a destination that cannot be written to.
            ValueError: a new value has another shape or is not finite, or two destinations share memory.
        """
        self.check_places()
        names, finite = self.finite()
        self.refuse_infinite(names, to_host(finite))

    def check_places(self) -> None:
        """The part of :meth:`check` that looks at no value."""
        for name, destination, value, _ in self.writes:
            if destination.shape != value.shape:
                raise ValueError(
                    f"{name} has shape {tuple(destination.shape)} but its new value {tuple(value.shape)}; "
                    "build() and initial() must return the same architecture"
                )
            if (reason := obstacle(destination)) is not None:
                raise TypeError(f"{name} {reason}; nothing was changed")
        if (pair := first_overlap((w.name, w.destination) for w in self.writes)) is not None:
            raise ValueError(
                f"{pair[0]} and {pair[1]} share memory and would both be written; nothing was changed"
            )

    def finite(self) -> tuple[list[str], list[Tensor]]:
        """Whether each new value is finite, scalar bool on its device, and the values' names."""
        looked_at = []
        for name, _, value, spectra in self.writes:
            if value.is_floating_point():
                # Certified singular values stand for the matrices that have them.
                parts = (value,) if spectra is None else (spectra.after, spectra.defect)
                looked_at += [(name, part) for part in parts]
        return [name for name, _ in looked_at], [part.isfinite().all() for _, part in looked_at]

    def refuse_infinite(self, names: Sequence[str], finite: Sequence[Tensor]) -> None:
        """Raise ValueError where :meth:`finite`, on the host by now, says no."""
        bad = next((name for name, good in zip(names, finite, strict=True) if not good), None)
        if bad is not None:
            raise ValueError(f"the new value of {bad} holds NaN or infinity; nothing was changed")

    @contextlib.contextmanager
    def rehearsed(self) -> Iterator[None]:
        """Everything written inside, everything as it was, bit by bit, outside; structures stay.

        Raises:
            TypeError, ValueError: see :meth:`check`.
        """
        self.check()
        destinations = [w.destination.detach() for w in self.writes]
        saved = [tensor.clone() for tensor in destinations]
        try:
            if destinations:
                torch._foreach_copy_(destinations, [w.value for w in self.writes])
            yield
        finally:
            if destinations:
                torch._foreach_copy_(destinations, saved)

    def write(self) -> None:
        """Copy every value into its destination's storage, then change structures."""
        if self.writes:
            torch._foreach_copy_(
                [w.destination.detach() for w in self.writes], [w.value for w in self.writes]
            )
        for action in self.actions:
            action()
