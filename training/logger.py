"""Scalars to TensorBoard and, row by row, to ``scalars.csv``; the x axis is environment steps."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from common.files import reading_run_file, replace_bytes


class Logger:
    """Writes into a run folder.

    Args:
        run_dir: existing folder.
        resume_step: env step from which ``scalars.csv`` goes on; None starts afresh.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        path = run_dir / "scalars.csv"
        if resume_step is None:
            path.write_text("env_step,key,value\n")
            for events in run_dir.glob("events.out.tfevents.*"):  # of a session that saved nothing
                events.unlink()
        purge = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(run_dir), purge_step=purge)
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")

    def scalars(self, values: Mapping[str, float], env_step: int) -> None:
        for key, value in values.items():
            self._tensorboard.add_scalar(key, value, env_step)
            self._csv.writerow([env_step, key, repr(float(value))])

    def histograms(self, values: Mapping[str, Tensor], env_step: int) -> None:
        """Write the distributions of arrays of numbers, to TensorBoard alone."""
        for key, value in values.items():
            self._tensorboard.add_histogram(key, value, env_step)

    def text(self, key: str, text: str) -> None:
        self._tensorboard.add_text(key, text)

    def flush(self) -> None:
        self._tensorboard.flush()
        self._file.flush()

    def close(self) -> None:
        self._tensorboard.close()
        self._file.close()


def truncate(path: Path, last_step: int, lines: int | None) -> None:
    """Drop the lines of a run's history that came after a checkpoint, and one cut off in mid-write.

    Args:
        path: CSV whose first column is the env step, or JSON lines with ``env_step``.
        last_step: of the checkpoint.
        lines: in the file when the checkpoint was saved: a later session may have written more at that very step.

    Raises:
        RunFileError: the file is missing or damaged.
    """
    kept = []
    with reading_run_file(path):
        content = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(content, 1):
        if number == 1 and path.suffix == ".csv":
            kept.append(line)
        elif line.endswith(b"\n"):
            with reading_run_file(path, number):
                step = int(json.loads(line)["env_step"] if path.suffix == ".jsonl" else line.split(b",")[0])
            if step < last_step or (step == last_step and (lines is None or number <= lines)):
                kept.append(line)
    replace_bytes(path, b"".join(kept))
