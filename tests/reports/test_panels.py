"""Which runs are compared with which, and curves over seeds."""

import numpy as np
import pytest

from configs.errors import ConfigError
from reports.collect import Curve
from reports.panels import band, main_curve, panels_of, task_band


def runs(resets, seeds, **factors):
    return [{"factors": {**factors, "reset": reset}, "seed": seed} for reset in resets for seed in seeds]


def test_methods_are_resets_within_each_setting(experiment):
    study = experiment(
        *runs(["fire", "none"], [1, 0], env="Acrobot-v1", **{"env.change.kind": "rotate"}),
        *runs(["fire", "none"], [0], env="Acrobot-v1", **{"env.change.kind": "drift"}),
    )
    rotate, drift = panels_of(study)
    assert (rotate.label, drift.label) == ("rotate", "drift")
    assert list(rotate.methods) == ["none", "fire"] and rotate.baseline == "none"
    assert [run.seed for run in rotate.methods["fire"]] == [0, 1]
    assert rotate.env == "Acrobot-v1"


def test_other_options_make_settings_of_their_own(experiment):
    study = experiment(
        *runs(["none", "fire"], [0], **{"agent.layer_norm": True}),
        *runs(["none", "fire"], [0], **{"agent.layer_norm": False}),
    )
    assert [panel.label for panel in panels_of(study)] == ["layer norm true", "layer norm false"]


def test_without_resets_the_arm_or_another_option_is_the_method(experiment):
    study = experiment({"factors": {"arm": "wide", "env": "A"}}, {"factors": {"arm": "deep", "env": "A"}})
    (panel,) = panels_of(study)
    assert list(panel.methods) == ["wide", "deep"] and panel.label == ""


def test_values_of_an_option_are_named_with_it(experiment):
    (panel,) = panels_of(experiment({"factors": {"replay.n_step": 1}}, {"factors": {"replay.n_step": 8}}))
    assert list(panel.methods) == ["n step 1", "n step 8"]


def test_hints_choose_method_and_baseline(experiment):
    study = experiment(
        *runs(["none", "fire"], [0], arm="wide"),
        *runs(["none", "fire"], [0], arm="deep"),
        report={"compare": "arm", "baseline": "deep"},
    )
    panels = panels_of(study)
    assert [list(panel.methods) for panel in panels] == [["deep", "wide"]] * 2
    assert [panel.label for panel in panels] == ["none", "fire"]


def test_combinations_of_factors_can_be_methods(experiment):
    study = experiment(
        *runs(["none", "fire"], [0], **{"agent.layer_norm": True}),
        *runs(["none", "fire"], [0], **{"agent.layer_norm": False}),
        report={"baseline": "layer norm false, none"},
    )
    (panel,) = panels_of(study, ["agent.layer_norm", "reset"])
    assert set(panel.methods) == {
        f"layer norm {norm}, {r}" for norm in ("true", "false") for r in ("none", "fire")
    }
    assert panel.baseline == "layer norm false, none"
    with pytest.raises(
        ConfigError, match=r"compare magic: no factor that varies; there are agent\.layer_norm, reset"
    ):
        panels_of(study, ["magic"])


def test_a_run_that_goes_on_is_compared_with_its_branches(experiment):
    name = "run,reset=none/uninterruptedseed0"
    study = experiment(
        {"factors": {"reset": "none"}, "stage": "uninterrupted"},
        {"factors": {"reset": "fire"}, "stage": "after", "parent": name, "begins": 50, "resets": [50]},
    )
    (panel,) = panels_of(study)
    assert list(panel.methods) == ["none", "fire"]
    assert (panel.begins, panel.reset_steps) == (50, (50,))


def test_a_run_that_ends_where_branches_begin_is_only_their_beginning(experiment):
    name = "run,reset=none/startseed0"
    branches = [
        {"factors": {"reset": reset}, "stage": "after", "parent": name, "begins": 50}
        for reset in ("none", "fire")
    ]
    study = experiment(
        {
            "factors": {"reset": "none"},
            "stage": "start",
            "total_steps": 50,
            "evaluations": [(50, "periodic", 9.0)],
        },
        *branches,
    )
    (panel,) = panels_of(study)
    assert [run.stage for run in panel.runs] == ["after", "after"]


def test_stages_that_repeat_each_other_are_apart(experiment):
    twice = [
        {"factors": {"reset": reset}, "stage": stage} for stage in ("a", "b") for reset in ("none", "fire")
    ]
    assert [panel.label for panel in panels_of(experiment(*twice))] == ["a", "b"]


def test_reset_marks_only_where_runs_agree(experiment):
    same = [{"factors": {"reset": "fire"}, "seed": seed, "resets": [20, 60]} for seed in (0, 1)]
    (panel,) = panels_of(experiment({"factors": {"reset": "none"}}, *same))
    assert panel.reset_steps == (20, 60)


def test_bands_keep_shared_points_and_both_sides_of_a_reset():
    steps = np.array([0.0, 10.0, 10.0, 20.0])
    drawn = band([Curve(steps, np.array([0.0, 4.0, 1.0, 2.0])), Curve(steps, np.array([2.0, 6.0, 3.0, 4.0]))])
    assert drawn.x.tolist() == steps.tolist()
    assert drawn.mean.tolist() == [1.0, 5.0, 2.0, 3.0]
    assert drawn.runs == 2


def test_bands_interpolate_where_points_differ():
    line = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    other = Curve(np.array([5.0, 15.0]), np.array([5.0, 15.0]))
    drawn = band([line, other])
    assert drawn.x.tolist() == [5.0, 10.0, 15.0]
    assert drawn.mean == pytest.approx(drawn.x)
    long = Curve(np.arange(1000.0), np.arange(1000.0))
    assert len(band([long]).x) == 200
    assert band([long]).mean == pytest.approx(band([long]).x)
    assert band([]).runs == 0
    apart = Curve(np.array([30.0, 40.0]), np.array([0.0, 0.0]))
    assert len(band([line, apart]).x) == 0


def test_tasks_of_unfinished_runs_count_as_far_as_they_got(experiment):
    def tasks(*values):
        return [{"return_whole": value} for value in values]

    study = experiment({"tasks": tasks(1.0, 3.0)}, {"seed": 1, "tasks": tasks(5.0)})
    drawn = task_band(study.runs, "return_whole")
    assert drawn.x.tolist() == [1.0, 2.0]
    assert drawn.mean.tolist() == [3.0, 3.0]
    assert task_band(study.runs, "return_on_previous").runs == 0


def test_the_experiment_says_which_curve_stands_first(experiment):
    evaluations = [(step, "periodic", 1.0) for step in (10, 50, 100)]
    panels = panels_of(experiment({"factors": {"reset": "none"}, "evaluations": evaluations}))
    named = [main_curve(panels, metric) for metric in ("", "tasks", "evaluation", "training")]
    assert named == ["evaluation", "evaluation", "evaluation", "training"]
