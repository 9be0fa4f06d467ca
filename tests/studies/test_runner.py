"""Arms, schedules, resuming, tables and the command lines of the studies."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.errors import ConfigError
from fire.options import FireOptions
from studies import runner
from studies.arms import parse_arm
from studies.chunks import Chunk, Learner, Recipe, Study, drawn, joined, learning_rate_factor
from studies.language.__main__ import ARMS as LANGUAGE_ARMS
from studies.language.__main__ import QUESTIONS as LANGUAGE_QUESTIONS
from studies.results import compare, markdown_table
from studies.runner import run_study
from studies.vision import __main__ as command_line
from studies.vision import data, networks, protocols
from studies.vision.__main__ import ARMS, QUESTIONS, VIT_ARMS
from training.folder import Claim

ROOT = Path(__file__).parents[2]
SPECS = ("none", "fire_paper", "cbp:maturity=2,replacement_rate=0.2", "l2_init", "fire_paper:ewc=5")


def tiny_study(**recipe):
    """Three chunks of a regression of bits, 6 updates each."""

    def chunk(index):
        def batches(generator):
            while True:
                x = torch.randn(16, 4, generator=generator)
                yield x, (x[:, index] > 0).long()

        probe = torch.randn(200, 4, generator=torch.Generator().manual_seed(9))

        def evaluate(module):
            return {"accuracy": float((module(probe).argmax(-1) == (probe[:, index] > 0)).double().mean())}

        return Chunk(str(index), 6, batches, evaluate)

    def make():
        return torch.nn.Sequential(
            torch.nn.Linear(4, 12),
            torch.nn.ReLU(),
            torch.nn.Linear(12, 12),
            torch.nn.ReLU(),
            torch.nn.Linear(12, 2),
        )

    return Study(
        settings={"size": 12},
        build=lambda generator: drawn(make, generator),
        loss=lambda module, batch: torch.nn.functional.cross_entropy(module(batch[0]), batch[1]),
        chunks=lambda seed: [chunk(index) for index in range(3)],
        recipe=Recipe(optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.02), evaluations=2, **recipe),
        metrics={"accuracy": "accuracy"},
        device=torch.device("cpu"),
    )


def resets_without_times(folder):
    lines = [json.loads(line) for line in (folder / "resets.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["report"].pop("reset/seconds") >= 0
    return lines


@pytest.mark.parametrize("stop_at", [2, 8])
def test_an_interrupted_study_ends_like_an_uninterrupted_one(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(runner, "draw", lambda *args: None)
    arms = [parse_arm(spec) for spec in SPECS]
    table = run_study(tiny_study(fresh_optimizer=False), arms, range(2), tmp_path / "whole")
    train, calls = Learner.train, []

    def interrupted(self, *args):
        calls.append(args)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return train(self, *args)

    monkeypatch.setattr(Learner, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_study(fresh_optimizer=False), arms, range(2), tmp_path / "parts")
    assert run_study(tiny_study(fresh_optimizer=False), arms, range(2), tmp_path / "parts") == table
    assert len(calls) == stop_at + 22 - (stop_at - 1)  # 2 seeds x (1 + 5 arms x 2 chunks); one was lost
    one, other = ((tmp_path / name / "results.csv").read_bytes() for name in ("whole", "parts"))
    assert one == other
    assert resets_without_times(tmp_path / "whole") == resets_without_times(tmp_path / "parts")


def test_arms_share_the_first_chunk_and_act_afterwards(tmp_path):
    arms = [parse_arm(spec) for spec in SPECS]
    run_study(tiny_study(), arms, [0], tmp_path)
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_arm = {spec: [row["train_loss"] for row in rows if row["arm"] == spec] for spec in SPECS}
    assert all(losses[:3] == by_arm["none"][:3] for losses in by_arm.values())
    assert len({losses[-1] for losses in by_arm.values()}) == len(SPECS)
    assert sum(int(row["recycled_units"] or 0) for row in rows) > 0
    resets = resets_without_times(tmp_path)
    assert [(reset["arm"], reset["chunk"]) for reset in resets] == [
        (spec, c) for spec in SPECS for c in (1, 2)
    ]
    fire = next(reset for reset in resets if reset["arm"] == "fire_paper")
    assert fire["after"]["plasticity/net/dfi_scaled"] < 1e-9 < fire["before"]["plasticity/net/dfi_scaled"]
    assert fire["report"]["reset/net/sfe"] > 0
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    more = run_study(tiny_study(), [*arms, parse_arm("full")], [0, 1], tmp_path)
    assert "full reset" in more and "| 2 |" in more


def test_two_processes_in_one_folder_are_refused(tmp_path):
    with (
        contextlib.closing(Claim(tmp_path)),
        pytest.raises(ConfigError, match="another process is running a study in"),
    ):
        run_study(tiny_study(), [parse_arm("none")], [0], tmp_path)
    run_study(tiny_study(), [parse_arm("none")], [0], tmp_path)


def test_another_study_in_the_folder_is_refused(tmp_path):
    run_study(tiny_study(), [parse_arm("none")], [0], tmp_path)
    study = tiny_study()
    object.__setattr__(study, "settings", {"size": 13})
    with pytest.raises(ConfigError, match="a study with size 12, this one has 13"):
        run_study(study, [parse_arm("none")], [0], tmp_path)


def test_a_reset_at_one_border_leaves_the_others_alone():
    study = tiny_study()
    learner = Learner(study, parse_arm("fire@2"), 0)
    weight = learner.slot.module[0].weight
    before = weight.detach().clone()
    assert learner.cross_border(1, study.chunks(0))["report"]["reset/net/sfe"] == 0
    assert torch.equal(weight, before)
    assert learner.cross_border(2, study.chunks(0))["report"]["reset/net/sfe"] > 0


def test_a_border_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="arm fire@3: there is no border 3; a study of 3 chunks has 2"):
        run_study(tiny_study(), [parse_arm("fire@3")], [0], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fresh, expected", [(True, 0), (False, 6)])
def test_the_optimizer_is_new_in_every_chunk_or_what_the_reset_says(fresh, expected):
    study = tiny_study(fresh_optimizer=fresh)
    learner = Learner(study, parse_arm("none"), 0)
    chunks = study.chunks(0)
    learner.train(0, chunks[0], lambda _: None)
    learner.cross_border(1, chunks)
    steps = {int(state["step"]) for state in learner.slot.optimizer.state.values()}
    assert (steps or {0}) == {expected}


def test_a_loss_that_is_lost_is_one_line():
    study = tiny_study()
    learner = Learner(study, parse_arm("none"), 0)
    with torch.no_grad():
        next(learner.slot.module.parameters()).fill_(float("nan"))
    with pytest.raises(ConfigError, match="arm none, seed 0: the loss is nan in chunk 0"):
        learner.train(0, study.chunks(0)[0], lambda _: None)


def test_learning_rates_by_hand():
    constant = Recipe(optimizer=lambda m: None)
    assert [learning_rate_factor(constant, i, 20) for i in (1, 2, 3, 20)] == [0.5, 1.0, 1.0, 1.0]
    cosine = Recipe(optimizer=lambda m: None, schedule="cosine", max_warmup=1)
    factors = [learning_rate_factor(cosine, i, 101) for i in (1, 51, 101)]
    assert factors == pytest.approx([1.0, 0.1 + 0.45 * (1 + math.cos(math.pi / 2)), 0.1])


def test_joined_batches_split_evenly():
    batches = [(torch.ones(n, 2), torch.zeros(n)) for n in (4, 3, 4)]
    inputs, targets = joined(batches)
    assert inputs.shape == (9, 2) and targets.shape == (9,)


def test_arms_are_read_like_the_options_of_a_run():
    arm = parse_arm("fire_paper:method=newton_schulz,num_iters=5,include=*.to_q+*.to_k,parts=0+1")
    assert arm.reset.options == FireOptions(
        method="newton_schulz", num_iters=5, include=("*.to_q", "*.to_k"), parts=(0, 1)
    )
    assert arm.title == "FIRE, method=newton_schulz, num_iters=5, include=*.to_q *.to_k, parts=0 1"
    assert parse_arm("parseval:agent.parseval=1e-3").parseval == 1e-3
    assert parse_arm("fire").title == "FIRE, fresh norms"
    assert parse_arm("fire:scale=unit").title == "FIRE, scale=unit"
    assert parse_arm("l2_init").l2_init == 1e-4 and parse_arm("fire").borders == ()
    assert (
        parse_arm("fire@1+3").borders == (1, 3) and parse_arm("fire_paper@2").title == "FIRE at border 2 only"
    )


@pytest.mark.parametrize(
    "spec, message",
    [
        ("fyre", "--reset fyre: unknown; valid: calibrated_partial, cbp"),
        ("fire:methud=polar", "unknown option 'reset.methud'; did you mean 'reset.method'"),
        ("equal_betas", "sets options of an RL agent; of those a study has agent.l2_init and agent.parseval"),
        ("none:agent.weight_decay=0.1", "sets options of an RL agent"),
        ("fire@0", "borders are numbers from 1, joined by \\+, got '0'"),
        ("fire:ewc=-1", "ewc must be a number of at least 0, got '-1'"),
        ("fire:method", "'method' is not option=value"),
        ("fire:method=svd", "must be one of polar, newton_schulz, muon"),
    ],
)
def test_a_wrong_arm_is_one_line(spec, message):
    with pytest.raises(ConfigError, match=message):
        parse_arm(spec)


def test_every_arm_and_question_that_is_offered_can_be_asked():
    named = [*ARMS, *VIT_ARMS, *LANGUAGE_ARMS]
    asked = [
        spec
        for questions in (QUESTIONS, LANGUAGE_QUESTIONS)
        for specs in questions.values()
        for spec in specs
    ]
    for spec in {*named, *asked}:
        parse_arm(spec)
    assert all(
        specs[0] == "none"
        for specs in (ARMS, LANGUAGE_ARMS, *QUESTIONS.values(), *LANGUAGE_QUESTIONS.values())
    )


def test_the_names_that_the_command_line_offers_are_those_of_the_modules():
    """They stand there twice, since --help imports no PyTorch."""
    assert set(command_line.DATA_SETS) == set(data.DATA_SETS)
    assert set(command_line.NETWORKS) == set(networks.NETWORKS)
    assert set(command_line.PROTOCOLS) == set(command_line.EPOCHS) == set(protocols.PROTOCOLS)


def test_the_comparison_by_hand():
    arms = [parse_arm("none"), parse_arm("fire_paper")]
    rows = [
        {"arm": arm, "seed": seed, "chunk": chunk, "update": update, "accuracy": value}
        for arm, seed, chunk, update, value in [
            *(("none", s, 0, 5, 0.1) for s in (0, 1)),
            *(("none", s, 1, 0, 0.2 + s) for s in (0, 1)),
            *(("none", s, 1, 5, 0.5 + 0.1 * s) for s in (0, 1)),
            *(("none", s, 2, 0, 0.3) for s in (0, 1)),
            *(("none", s, 2, 5, 0.6 + 0.2 * s) for s in (0, 1)),
            *(("fire_paper", 1, 1, u, 0.4) for u in (0, 5)),
            *(("fire_paper", 1, 2, u, 0.9) for u in (0, 5)),
        ]
    ]
    none, fire = compare(rows, arms, "accuracy", 3)
    assert (none["final"], none["mean_of_chunks"], none["after_border"]) == pytest.approx((0.7, 0.625, 0.3))
    assert none["final_interval"] == pytest.approx((0.6, 0.8)) and none["difference"] == 0
    assert (fire["seeds"], fire["difference"], fire["after_border"]) == (1, pytest.approx(0.1), 0.9)
    table = markdown_table([none, fire], "accuracy", 3)
    assert "| FIRE | 0.9000 | 0.9000 to 0.9000 | +0.1000 |" in table and "mean of chunks" in table


def command(*argv):
    return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["studies.vision", "--protocol", "warm"], "argument --protocol: invalid choice: 'warm'"),
        (["studies.vision", "--seeds", "0"], "must be at least 1, got 0"),
        (["studies.language", "--arms", "none", "none"], "none stands there twice"),
        (["studies.language", "--arms", "none", "--question", "steps"], "exclude each other"),
    ],
)
def test_a_wrong_flag_is_one_line(argv, message):
    process = command(*argv)
    assert process.returncode == 2 and message in process.stderr
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1


@pytest.mark.parametrize("study", ["vision", "language"])
def test_help_waits_for_no_pytorch(study):
    process = subprocess.run(
        [sys.executable, "-v", "-m", f"studies.{study}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--arms" in process.stdout and "import 'torch'" not in process.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "argv",
    [
        ["studies.vision", "--epochs", "2", "--arms", "none", "fire_paper", "full"],
        [
            "studies.language",
            "--updates-a",
            "4",
            "--updates-b",
            "3",
            "--width",
            "16",
            "--arms",
            "none",
            "fire_paper",
        ],
    ],
)
def test_the_studies_run_from_the_command_line(tmp_path, argv):
    process = command(
        *argv, "--seeds", "1", "--evaluations", "2", "--threads", "1", "--output", str(tmp_path)
    )
    assert process.returncode == 0, process.stderr
    assert "| FIRE |" in process.stdout and f"results in {tmp_path}" in process.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert {"summary.md", "summary.json", "results.csv", "resets.jsonl", "figure.png", "study.json"} <= names
    assert ("samples.md" in names) == ("language" in argv[0])
