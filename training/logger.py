"""Scalars to TensorBoard and, row by row, to ``scalars.csv``; the x axis is environment steps."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from common.files import replace_text


class Logger:
    """Writes into a run folder.

    Args:
        run_dir: existing folder.
        resume_step: keep what was written up to this env step and drop what an interrupted run wrote after it;
            None starts afresh.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        path = run_dir / "scalars.csv"
        if resume_step is None:
            path.write_text("env_step,key,value\n")
            for events in run_dir.glob("events.out.tfevents.*"):  # of a session that saved nothing
                events.unlink()
        else:
            truncate_csv(path, resume_step)
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


def truncate_csv(path: Path, last_step: int) -> None:
    """Drop the rows whose first column exceeds ``last_step``, and a last row cut off in mid-write."""
    if not path.exists():
        return
    header, *rows = path.read_text().splitlines(keepends=True)
    kept = [row for row in rows if row.endswith("\n") and int(row.split(",", 1)[0]) <= last_step]
    replace_text(path, "".join([header, *kept]))


def truncate_jsonl(path: Path, last_step: int) -> None:
    """Drop the lines whose ``env_step`` exceeds ``last_step``, and a last line cut off in mid-write."""
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    replace_text(path, "".join(line for line in lines if json.loads(line)["env_step"] <= last_step))
