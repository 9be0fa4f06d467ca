"""Scalars to TensorBoard, to ``scalars.csv`` and to a mirror of them; the x axis is environment steps."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from common.files import reading_run_file, replace_bytes
from common.video import Clip
from training.dashboard import FIRST_COLUMNS, SCORES, layout
from training.mirrors import Mirror


class Logger:
    """Writes into a run folder.

    Args:
        run_dir: existing folder.
        resume_step: env step from which ``scalars.csv`` goes on; None starts afresh.
        mirror: a tracker that gets the same scalars, or None.
    """

    def __init__(self, run_dir: Path, resume_step: int | None, mirror: Mirror | None = None) -> None:
        path = run_dir / "scalars.csv"
        if resume_step is None:
            path.write_text("env_step,key,value\n")
            for events in run_dir.glob("events.out.tfevents.*"):  # of a session that saved nothing
                events.unlink()
        purge = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(run_dir), purge_step=purge)
        self._file = path.open("a", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._mirror = mirror
        self._keys: set[str] = set() if resume_step is None else _logged(path)
        self._layout: dict[str, dict[str, list[Any]]] = {}
        self._newest: dict[str, tuple[int, float | Tensor]] = {}
        self._lay_out()

    def scalars(self, values: Mapping[str, float], env_step: int) -> None:
        for key, value in values.items():
            self._plot(self._tensorboard.add_scalar, key, value, env_step)
            self._csv.writerow([env_step, key, repr(float(value))])
        if self._mirror is not None:
            self._mirror.log(values, env_step)
        if not self._keys.issuperset(values):
            self._keys.update(values)
            self._lay_out()

    def _lay_out(self) -> None:
        """Give the charts that now have data a place in the dashboard; the newest layout counts."""
        if (found := layout(self._keys)) != self._layout:
            self._layout = found
            self._tensorboard.add_custom_scalars(found)

    def histograms(self, values: Mapping[str, Tensor], env_step: int) -> None:
        """Write the distributions of arrays of numbers, to TensorBoard alone."""
        for key, value in values.items():
            self._plot(self._tensorboard.add_histogram, key, value, env_step)

    def _plot(self, add: Callable[[str, Any, int], None], key: str, value: Any, env_step: int) -> None:
        """Give TensorBoard a point; of two at one step it shows the later, so the earlier moves back by a step.

        A point at an earlier step than the newest replaces what came after it.
        """
        before = self._newest.get(key)
        if before is not None and before[0] == env_step:
            add(key, before[1], env_step - 1)
        add(key, value, env_step)
        self._newest[key] = env_step, value

    def text(self, key: str, text: str, env_step: int = 0) -> None:
        """Write Markdown, to TensorBoard alone."""
        self._tensorboard.add_text(key, text, env_step)

    def clip(self, key: str, clip: Clip, env_step: int) -> None:
        """Write a moving picture, to TensorBoard alone; SummaryWriter's own way needs another package."""
        height, width = clip.frames[0].shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=clip.gif())
        writer = self._tensorboard.file_writer
        assert writer is not None  # until it is closed
        writer.add_summary(Summary(value=[Summary.Value(tag=key, image=image)]), env_step)

    def hyperparameters(self, values: Mapping[str, str | float]) -> None:
        """Make the run a row of TensorBoard's table, with its newest scores; SummaryWriter's own way is a run more."""
        writer = self._tensorboard.file_writer
        assert writer is not None  # until it is closed
        for summary in hparams(dict(values), dict.fromkeys(SCORES, 0.0)):
            _put_first(summary)
            writer.add_summary(summary)

    def flush(self) -> None:
        self._tensorboard.flush()
        self._file.flush()

    def close(self) -> None:
        self._tensorboard.close()
        self._file.close()
        if self._mirror is not None:
            self._mirror.finish()


def _put_first(summary: Summary) -> None:
    """Mark the options that the table is to show first; TensorBoard sorts by this mark, then by name."""
    for value in summary.value:
        data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for info in data.experiment.hparam_infos:
            info.differs = info.name in FIRST_COLUMNS
        value.metadata.plugin_data.content = data.SerializeToString()


def _logged(path: Path) -> set[str]:
    """The keys in ``scalars.csv``."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        return {row[1] for row in csv.reader(file) if len(row) > 1}  # a damaged line has fewer


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
