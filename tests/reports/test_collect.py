"""Run folders and plans become runs with factors."""

import csv
import json

import numpy as np
import pytest

from common.files import RunFileError
from configs.errors import ConfigError
from reports.collect import collect
from reports.factors import factors_of


def test_real_runs_are_read_as_their_files_say(trained):
    study = collect([trained])
    assert study.notes == [] and len(study.runs) == 6
    assert {run.factors["reset"] for run in study.runs} == {"none", "fire", "full"}
    assert all(list(run.factors) == ["reset"] for run in study.runs)
    run = next(run for run in study.runs if run.factors["reset"] == "fire" and run.seed == 1)
    with (run.folder / "evaluations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["when"] != "random_policy"]
    assert run.evaluation.values.tolist() == [float(row["mean_return"]) for row in rows]
    assert [record["env_step"] for record in run.resets] == [100, 200]
    # Two points at a reset, before and after.
    assert (run.evaluation.steps == 100).sum() == 2
    assert run.finished and run.total_steps == 250 and run.random_return > 0
    assert len(run.training.steps) > 5
    assert "plasticity/q/dormant_ratio" in run.metrics
    assert not any(key.count("/") > 2 for key in run.metrics)


def test_a_line_in_mid_write_is_no_damage(trained, tmp_path):
    source = next(path for path in trained.iterdir())
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "evaluations.csv", "resets.jsonl"):
        (copy / name).write_bytes((source / name).read_bytes())
    (copy / "scalars.csv").write_text("env_step,key,value\n50,rollout/ep_rew_mean,7.5\n100,rollout/ep_rew")
    assert collect([copy]).runs[0].training.values.tolist() == [7.5]


def test_a_damaged_run_is_left_out_with_its_reason(trained, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.yaml").write_text("seed: 0\n")
    good = sorted(trained.iterdir())[0]
    study = collect([good, tmp_path / "bad"])
    assert len(study.runs) == 1
    assert "evaluations.csv is missing" in study.notes[0]
    with pytest.raises(ConfigError, match=r"no readable run.*evaluations\.csv is missing"):
        collect([tmp_path / "bad"])


def test_what_is_no_run_is_refused_in_one_line(tmp_path, trained):
    with pytest.raises(ConfigError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(ConfigError, match="no such file"):
        collect([tmp_path / "nothing.yaml"])
    with pytest.raises(ConfigError, match="holds no run"):
        collect([tmp_path])
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(RunFileError, match=r"plan\.json is damaged"):
        collect([tmp_path])
    with pytest.raises(ConfigError, match="give it alone"):
        collect([tmp_path, trained])


def test_a_plan_gives_factors_and_says_what_is_missing(experiment, tmp_path):
    factors = {"reset": "fire", "agent.layer_norm": True}
    study = experiment(
        {"factors": factors},
        {"factors": factors, "seed": 1, "total_steps": 200},
        title="A title",
        question="Why?",
        file="experiments/small.yaml",
        commit="abc",
        versions={"torch": "2"},
        report={"metric": "evaluation"},
    )
    assert study.runs[0].factors == {"reset": "fire", "agent.layer_norm": "true"}
    assert (study.title, study.question, study.commands) == (
        "A title",
        "Why?",
        ["python sweep.py experiments/small.yaml"],
    )
    assert study.provenance["commit"] == "abc" and study.provenance["versions"] == "torch 2"
    assert study.hints == {"metric": "evaluation"}
    assert "1 of 2 runs are unfinished" in study.notes[0]

    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["runs"].append({**plan["runs"][0], "name": "later", "folder": "later"})
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert "1 of 3 planned runs have not begun: later" in collect([tmp_path]).notes[0]


def test_an_experiments_file_leads_to_its_folder(experiment, tmp_path, monkeypatch):
    experiment({"factors": {"reset": "fire"}})
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path.parent / "runs").mkdir(exist_ok=True)
    (tmp_path.parent / "runs" / "chosen").symlink_to(tmp_path)
    (tmp_path / "file.yaml").write_text("name: chosen\ngrid: {reset: [fire]}\n")
    assert len(collect([tmp_path / "file.yaml"]).runs) == 1


def test_tasks_are_columns_and_empty_cells_nan(experiment):
    study = experiment(
        {
            "tasks": [
                {"return_second_half": 5.0, "return_whole": 4.0, "return_on_previous": ""},
                {"return_second_half": "", "return_whole": 3.0, "return_on_previous": ""},
            ]
        }
    )
    tasks = study.runs[0].tasks
    np.testing.assert_equal(tasks["return_second_half"], [5.0, np.nan])
    assert tasks["return_whole"].tolist() == [4.0, 3.0]
    assert "return_on_previous" not in tasks  # nobody asked for it


def config(**options):
    return {
        "seed": 0,
        "algo": "dqn",
        "env.id": "CartPole-v1",
        "reset.name": "none",
        "reset.strategy": "none",
        **options,
    }


def test_factors_are_what_differs_and_does_not_follow():
    fire = {"reset.name": "fire", "reset.strategy": "fire", "reset.scale": "paper"}
    factors, confounded = factors_of([config(), config(**fire), config(**fire, seed=3)])
    assert factors == [{"reset": "none"}, {"reset": "fire"}, {"reset": "fire"}]
    assert confounded == []
    factors, _ = factors_of(
        [config(), config(**fire), config(**fire | {"reset.scale": "unit"}), config(**{"log.every": 5})]
    )
    assert [list(f) for f in factors] == [["reset", "reset.scale"]] * 4


def test_options_that_change_with_the_reset_are_named():
    fire = {"reset.name": "fire", "reset.strategy": "fire"}
    rate = "agent.learning_rate"
    factors, confounded = factors_of([config(**{rate: 1}), config(**fire, **{rate: 2})])
    assert factors == [{"reset": "none"}, {"reset": "fire"}]
    assert confounded == [f"{rate} varies along with the reset"]
    # One that follows the algorithm, as its own options do, is none of these.
    runs = [config(**{rate: 1}), config(**fire, **{rate: 1}), config(algo="sac", **{rate: 2})]
    assert factors_of(runs)[1] == []
