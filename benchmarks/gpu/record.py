"""Record: the figures of one part, on disk as soon as each is known: errors and time-outs cost only the rest."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from common.files import to_json
from common.table import format_table

PACKAGES = ("numpy", "gymnasium", "mujoco", "ale-py")


class TimeUp(Exception):
    """The part has used its time."""


class Record:
    """Figures by name, in ``<part>.json`` and ``<part>.md`` in a folder; those of an earlier call are kept.

    As a context it ends the part when its time is over, wherever Python is then.

    Args:
        folder: where the files are; made if missing.
        part: name of the part.
        seconds: what this call may take.
        device: ``cuda`` or ``cpu``.
        rehearsal: whether sizes are tiny and the figures mean nothing.
        command: what was typed.
    """

    def __init__(
        self, folder: Path, part: str, seconds: float, device: str, rehearsal: bool, command: str
    ) -> None:
        self.folder, self.part, self.device, self.rehearsal = folder, part, device, rehearsal
        self.summary = ""  # what a part has to say in a table of its own
        self._end = time.monotonic() + seconds
        self._seconds = seconds
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{part}.json"
        self.state: dict[str, Any] = {"calls": [], "figures": {}, "errors": {}}
        if self._path.exists():
            self.state = json.loads(self._path.read_text())
            if self.state["rehearsal"] != rehearsal:
                raise SystemExit(
                    f"{self._path} is {'no' if rehearsal else 'a'} rehearsal; choose another --output"
                )
        self.state["rehearsal"] = rehearsal
        self.state["calls"].append({"date": str(date.today()), "command": command, **surroundings(device)})
        self.write()

    def __enter__(self) -> Record:
        self._handler = signal.signal(signal.SIGALRM, _time_is_up)
        signal.setitimer(signal.ITIMER_REAL, max(self._seconds, 0.01))
        return self

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)

    @property
    def figures(self) -> dict[str, Any]:
        return self.state["figures"]

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def measure(self, name: str, call: Callable[[], Any], needs: float = 0.0) -> Any:
        """Return what ``call`` returns, or what an earlier one returned under this name; None where it failed.

        Args:
            name: of the figure.
            call: measures it; returns what JSON can hold.
            needs: seconds below which it is not begun.

        Raises:
            TimeUp: the time is over.
        """
        if name in self.figures:
            return self.figures[name]
        if self.seconds_left < needs:
            self.state["errors"][name] = f"not begun: {self.seconds_left:.0f} of {needs:.0f} s left"
            self.write()
            return None
        print(f"{self.part}: {name} ({self.seconds_left:.0f} s left)", flush=True)
        begun = time.monotonic()
        try:
            self.figures[name] = json.loads(to_json(call()))
            self.state["errors"].pop(name, None)
        except TimeUp:
            self.state["errors"][name] = "the time was over"
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            self.state["errors"][name] = f"{type(error).__name__}: {lines[0][:300]}"
            print(f"  {self.state['errors'][name]}", file=sys.stderr, flush=True)
            if isinstance(
                error, torch.AcceleratorError
            ):  # nothing works on this device any more in this process
                raise TimeUp from error
        finally:
            self.state.setdefault("seconds", {})[name] = round(time.monotonic() - begun, 1)
            self.write()
        return self.figures.get(name)

    def write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(to_json(self.state, indent=1) + "\n")
        os.replace(temporary, self._path)
        self._path.with_suffix(".md").write_text(self.page())

    def page(self) -> str:
        """The record as Markdown."""
        lines = [
            f"# benchmarks.gpu {self.part}"
            + (" (rehearsal: figures mean nothing)" if self.rehearsal else ""),
            "",
        ]
        for call in self.state["calls"]:
            lines.append(f"- {', '.join(f'{key} {value}' for key, value in call.items())}")
        if self.summary:
            lines += ["", "```", self.summary, "```"]
        lines += ["", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in flat(self.figures)]
        if self.state["errors"]:
            lines += ["", "| not measured | why |", "|---|---|"]
            lines += [f"| {key} | {value} |" for key, value in self.state["errors"].items()]
        return "\n".join(lines) + "\n"

    def table(self, most: int = 60) -> str:
        """The figures as a short plain table, or the part's own summary, and what failed."""
        if self.summary:
            missing = [f"{name}: {why}" for name, why in self.state["errors"].items()]
            return "\n".join([self.summary, *missing])
        rows = flat(self.figures)
        cut = (
            [("...", f"{len(rows) - most} more in {self._path.with_suffix('.md')}")]
            if len(rows) > most
            else []
        )
        failed = [(key, value) for key, value in self.state["errors"].items()]
        return format_table([*rows[:most], *cut, *failed])


def flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and shown values of nested figures."""
    rows: list[tuple[str, str]] = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            rows += flat(value, f"{prefix}{key}: ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            rows.append((f"{prefix}{key}", shown if len(shown) < 120 else shown[:117] + "..."))
    return rows


def surroundings(device: str) -> dict[str, str]:
    """Hardware and versions."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    cuda = {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()} if device == "cuda" else {}
    return {**found, **cuda, "cores": str(len(os.sched_getaffinity(0))), "machine": platform.machine()}


def _time_is_up(number: int, frame: FrameType | None) -> None:
    raise TimeUp
