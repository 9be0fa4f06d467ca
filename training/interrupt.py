"""Ctrl-C and its like: the process is asked to stop, and the run is saved first."""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType


class Interrupt:
    """Interrupt: Ctrl-C, SIGTERM (a cluster's way to ask) and SIGHUP (a closed terminal) stop training after a step.

    A second Ctrl-C does not wait for the step to end.

    Attributes:
        requested: whether any has come.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._handlers = {
            s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        with contextlib.suppress(OSError):  # the reader may be gone; the run is saved all the same
            print("\nstopping after this step (Ctrl-C again: at once, without saving)", file=sys.stderr)
