"""The folder of a study: states that it resumes from, and tables that grow while it runs.

| file | what it holds |
|---|---|
| ``study.json`` | the options that results depend on |
| ``states/*.pt`` | one for each seed and arm: what it has done so far, and while it is unfinished its network |
| ``results.csv`` | one row for each evaluation |
| ``resets.jsonl`` | each reset with its report and the plasticity metrics before and after |
| ``summary.md``, ``summary.json`` | the comparison of the arms |
| ``figure.png`` | their curves |
| ``samples.md`` | text that trained language models write |
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import replace_bytes, to_json
from common.stats import bootstrap_interval
from configs.errors import ConfigError
from studies.arms import Arm

Row = dict[str, Any]


class Results:
    """Reads and writes the folder of one study.

    Raises:
        ConfigError: the folder holds a study with other options.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(to_json(dict(settings)))
        self._check_settings()
        (folder / "states").mkdir(parents=True, exist_ok=True)
        replace_bytes(folder / "study.json", to_json(self.settings, indent=1).encode())

    def _check_settings(self) -> None:
        path = self.folder / "study.json"
        if not path.exists():
            return
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is damaged; choose another --output") from error
        for key in sorted({*there, *self.settings}):
            if there.get(key) != self.settings.get(key):
                raise ConfigError(
                    f"{self.folder} holds a study with {key} {there.get(key)}, this one has {self.settings.get(key)}; "
                    "choose another --output"
                )

    def _path(self, seed: int, arm: str) -> Path:
        return self.folder / "states" / f"seed{seed}-{re.sub(r'[^A-Za-z0-9.+=,_-]', '-', arm)}.pt"

    def load(self, seed: int, arm: str) -> dict[str, Any] | None:
        """Return what was saved for this seed and arm, None where there is nothing."""
        path = self._path(seed, arm)
        if not path.exists():
            return None
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(f"{path} is damaged; delete it to run this arm again") from error

    def save(self, seed: int, arm: str, state: Mapping[str, Any]) -> None:
        """Save in one step; a kill leaves the old or the new state."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        replace_bytes(self._path(seed, arm), buffer.getvalue())

    def write_tables(self, rows: Sequence[Row], resets: Sequence[Row]) -> None:
        """Write ``results.csv`` and ``resets.jsonl`` anew."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        replace_bytes(self.folder / "results.csv", text.getvalue().encode())
        lines = "".join(to_json(reset) + "\n" for reset in resets)
        replace_bytes(self.folder / "resets.jsonl", lines.encode())

    def write_samples(self, samples: Mapping[tuple[int, str], str]) -> None:
        """Write ``samples.md``, if there are any."""
        parts = [f"## {arm}, seed {seed}\n\n```\n{text}\n```\n" for (seed, arm), text in samples.items()]
        if parts:
            replace_bytes(self.folder / "samples.md", "\n".join(parts).encode())

    def write_summary(
        self, markdown: str, comparison: Mapping[str, Sequence[Row]], about: Mapping[str, Any]
    ) -> None:
        """Write ``summary.md`` and ``summary.json``."""
        replace_bytes(self.folder / "summary.md", markdown.encode())
        content = {"settings": self.settings, **about, "metrics": dict(comparison)}
        replace_bytes(self.folder / "summary.json", to_json(content, indent=1).encode())


def by_seed(
    rows: Sequence[Row], arm: str, metric: str, chunk: int, *, first: bool = False
) -> dict[int, float]:
    """``metric`` at the end of a chunk (``first``: right after the border before it), by seed."""
    found: dict[int, float] = {}
    for row in rows:
        if (
            row["arm"] == arm
            and row["chunk"] == chunk
            and metric in row
            and not (first and row["seed"] in found)
        ):
            found[row["seed"]] = row[metric]
    return found


def compare(rows: Sequence[Row], arms: Sequence[Arm], metric: str, num_chunks: int) -> list[Row]:
    """One row for each arm that has finished a seed.

    ``final`` is ``metric`` at the end of the last chunk, ``difference`` that of the same seed to the first arm,
    ``mean_of_chunks`` the mean over the ends of all chunks but the first, ``after_border`` the value right after the
    last border. Intervals are 95 % percentile bootstrap intervals of the mean over seeds.
    """
    table = []
    base = by_seed(rows, arms[0].spec, metric, num_chunks - 1)
    for arm in arms:
        final = by_seed(rows, arm.spec, metric, num_chunks - 1)
        if not final:
            continue
        after = by_seed(rows, arm.spec, metric, num_chunks - 1, first=True)
        ends = [by_seed(rows, arm.spec, metric, chunk) for chunk in range(1, num_chunks)]
        differences = [final[seed] - base[seed] for seed in final if seed in base]
        means = [float(np.mean([end[seed] for end in ends])) for seed in final]
        table.append(
            {
                "arm": arm.spec,
                "title": arm.title,
                "seeds": len(final),
                "final": float(np.mean(list(final.values()))),
                "final_interval": bootstrap_interval(list(final.values())),
                "difference": float(np.mean(differences)) if differences else None,
                "difference_interval": bootstrap_interval(differences) if differences else None,
                "mean_of_chunks": float(np.mean(means)),
                "after_border": float(np.mean([after[seed] for seed in final])),
            }
        )
    return table


def markdown_table(comparison: Sequence[Row], name: str, num_chunks: int) -> str:
    """The comparison by the metric called ``name`` as a Markdown table, one fact for each cell."""
    header = ["method", f"final {name}", "95 % interval", "minus first method", "95 % interval"]
    if num_chunks > 2:
        header.append("mean of chunks")
    header += ["right after the last border", "seeds"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in comparison:
        cells = [row["title"], f"{row['final']:.4f}", _interval(row["final_interval"], "")]
        cells += ["" if row["difference"] is None else f"{row['difference']:+.4f}"]
        cells += [_interval(row["difference_interval"], "+")]
        if num_chunks > 2:
            cells.append(f"{row['mean_of_chunks']:.4f}")
        cells += [f"{row['after_border']:.4f}", str(row["seeds"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(interval: tuple[float, float] | None, sign: str) -> str:
    return "" if interval is None else f"{interval[0]:{sign}.4f} to {interval[1]:{sign}.4f}"
