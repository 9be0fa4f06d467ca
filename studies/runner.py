"""Run every arm of a study for every seed, from a shared first chunk, and resume where an interrupt stopped it."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from configs.errors import ConfigError
from studies.arms import Arm, parse_arm
from studies.chunks import Chunk, Learner, Study
from studies.figures import draw
from studies.results import Results, Row, compare, markdown_table
from training.folder import Claim

BEGINNING = "beginning"  # name of the state that all arms of a seed start from


def run_study(study: Study, arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> str:
    """Train, reset and compare; returns the table that ``summary.md`` holds.

    The first chunk of a seed is trained once, without any method: methods act from the first border on, so that all
    arms branch from the same network. Results are on disk after every chunk.

    Raises:
        ConfigError: the folder holds another study, or another process is at work there.
    """
    with contextlib.closing(Claim(folder, "running a study")):
        return _run(study, arms, seeds, folder)


def _run(study: Study, arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> str:
    seconds, processor = time.perf_counter(), time.process_time()
    chunks = {seed: study.chunks(seed) for seed in seeds}
    _check_borders(arms, len(chunks[seeds[0]]))
    results = Results(folder, study.settings)
    updates = sum(
        sum(chunk.num_updates for chunk in chunks[seed][1:]) * len(arms) + chunks[seed][0].num_updates
        for seed in seeds
    )
    num_chunks = len(chunks[seeds[0]])
    states: dict[tuple[int, str], dict[str, Any]] = {}
    with tqdm(total=updates, unit="update", smoothing=0.05, mininterval=1.0) as bar:

        def record(seed: int, arm: str, state: dict[str, Any]) -> None:
            results.save(seed, arm, state)
            states[seed, arm] = state
            results.write_tables(*_tables(states, arms, seeds))
            results.write_samples(
                {(s, a): each["sample"] for (s, a), each in states.items() if "sample" in each}
            )

        for seed in seeds:
            beginning = _begin(study, seed, chunks[seed], results, record, bar)
            for arm in arms:
                bar.set_description(f"seed {seed}, {arm.spec}")
                _continue(study, arm, seed, chunks[seed], beginning, results, record, bar, states)
            rows, _ = _tables(states, arms, seeds)
            draw(rows, arms, study.metrics, num_chunks, folder / "figure.png")
            comparison = {metric: compare(rows, arms, metric, num_chunks) for metric in study.metrics}
            table = "\n".join(
                markdown_table(table, study.metrics[metric], num_chunks)
                for metric, table in comparison.items()
            )
            about = {
                "seconds": time.perf_counter() - seconds,
                "processor_seconds": time.process_time() - processor,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": str(study.device),
                "machine": platform.machine(),
            }
            results.write_summary(table, comparison, about)
    return table


def _check_borders(arms: Sequence[Arm], num_chunks: int) -> None:
    for arm in arms:
        if arm.borders and max(arm.borders) >= num_chunks:
            raise ConfigError(
                f"arm {arm.spec}: there is no border {max(arm.borders)}; a study of {num_chunks} chunks has "
                f"{num_chunks - 1}"
            )


def _begin(
    study: Study, seed: int, chunks: Sequence[Chunk], results: Results, record: Any, bar: tqdm[Any]
) -> dict[str, Any]:
    """Train the first chunk, or load it."""
    if (state := results.load(seed, BEGINNING)) is not None:
        bar.update(chunks[0].num_updates)
        return state
    bar.set_description(f"seed {seed}, first chunk")
    learner = Learner(study, parse_arm("none"), seed)
    rows = learner.train(0, chunks[0], bar.update)
    state = {"chunks": 1, "rows": _labelled(rows, seed, 0, chunks[0]), "resets": []} | learner.state_dict()
    record(seed, BEGINNING, state)
    return state


def _continue(
    study: Study,
    arm: Arm,
    seed: int,
    chunks: Sequence[Chunk],
    beginning: Mapping[str, Any],
    results: Results,
    record: Any,
    bar: tqdm[Any],
    states: dict[tuple[int, str], dict[str, Any]],
) -> None:
    """Train one arm from where it stands to its last chunk."""
    state = results.load(seed, arm.spec) or dict(beginning)
    states[seed, arm.spec] = state
    done = state["chunks"]
    bar.update(sum(chunk.num_updates for chunk in chunks[1:done]))
    if done == len(chunks):
        return
    learner = Learner(study, arm, seed)
    learner.load_state_dict(state)
    rows, resets = [*state["rows"]], [*state["resets"]]
    for index in range(done, len(chunks)):
        did = learner.cross_border(index, chunks)
        resets.append({"seed": seed, "chunk": index} | did)
        rows += _labelled(learner.train(index, chunks[index], bar.update), seed, index, chunks[index])
        finished = index + 1 == len(chunks)
        now = {"chunks": index + 1, "rows": rows, "resets": resets}
        if finished and study.sample is not None:
            now["sample"] = study.sample(learner.slot.module)
        record(seed, arm.spec, now if finished else now | learner.state_dict())


def _labelled(rows: Sequence[Row], seed: int, index: int, chunk: Chunk) -> list[Row]:
    return [{"seed": seed, "chunk": index, "chunk_name": chunk.name} | row for row in rows]


def _tables(
    states: Mapping[tuple[int, str], Mapping[str, Any]], arms: Sequence[Arm], seeds: Sequence[int]
) -> tuple[list[Row], list[Row]]:
    """Rows and resets of all arms, with the arm's name."""
    rows: list[Row] = []
    resets: list[Row] = []
    for arm in arms:
        for seed in seeds:
            state = states.get((seed, arm.spec), {"rows": [], "resets": []})
            rows += [{"arm": arm.spec} | row for row in state["rows"]]
            resets += [{"arm": arm.spec} | reset for reset in state["resets"]]
    return rows, resets
