"""Outcomes of known curves, the evidence they give, and the words for it."""

import pytest

from reports.analysis import analyse
from reports.compare import compare, references
from reports.outcomes import after_resets, outcomes
from reports.panels import panels_of

# Up to 100 at the reset, then back from 0.
RESET_AT_50 = [
    (25, "periodic", 80.0),
    (50, "before_reset", 100.0),
    (50, "after_reset", 0.0),
    (75, "periodic", 60.0),
]
STEADY = [(25, "periodic", 80.0), (50, "periodic", 100.0), (75, "periodic", 100.0)]


def branch_study(experiment, gains, **plan):
    """Method fire ends by ``gains[seed]`` above none."""
    runs = []
    for seed, gain in enumerate(gains):
        base = 100.0 + 30 * (seed % 4)
        runs.append(
            {"factors": {"reset": "none"}, "seed": seed, "evaluations": [*STEADY, (100, "periodic", base)]}
        )
        runs.append(
            {
                "factors": {"reset": "fire"},
                "seed": seed,
                "evaluations": [*RESET_AT_50, (100, "periodic", base + gain)],
                "resets": [50],
            }
        )
    return experiment(*runs, **plan)


def by_key(panel):
    return {outcome.key: outcome for outcome in outcomes(panel)}


def test_outcomes_of_curves_are_those_computed_by_hand(experiment):
    (panel,) = panels_of(branch_study(experiment, [20.0]))
    found = by_key(panel)
    assert found["evaluation_final"].headline
    assert found["evaluation_final"].values == {"none": {0: 100.0}, "fire": {0: 120.0}}
    # From the reset at 50 on: none is at 100; fire rises 0, 60, 120 over two spans of 25.
    assert found["evaluation_area"].values == {"none": {0: 100.0}, "fire": {0: 60.0}}
    assert found["evaluation_after_0.5"].values["fire"] == {0: 60.0}
    rows = {row.method: row for row in after_resets(panel)}
    fire, none = rows["fire"], rows["none"]
    assert (fire.resets, fire.before, fire.after, fire.drop, fire.recovered) == (1, 100.0, 0.0, 100.0, 1)
    assert fire.recovery_steps == pytest.approx(25 + 25 * 40 / 60)
    assert fire.horizons == pytest.approx((12.0, 30.0, 60.0, 120.0)) and fire.span == 50
    assert (none.drop, none.recovery_steps, none.after) == (0.0, 0.0, 100.0)


def test_outcomes_of_tasks_are_means_of_their_last_quarter(experiment):
    def run(reset, factor):
        tasks = [
            {"return_second_half": factor * i, "return_whole": i, "return_first_half": ""} for i in range(8)
        ]
        return {"factors": {"reset": reset}, "tasks": tasks}

    (panel,) = panels_of(experiment(run("none", 1.0), run("fire", 2.0)))
    found = by_key(panel)
    headline = next(outcome for outcome in found.values() if outcome.headline)
    assert headline.key == "tasks_return_second_half_last_quarter"
    assert headline.values == {"none": {0: 6.5}, "fire": {0: 13.0}}
    assert found["tasks_return_whole_last_quarter"].values["fire"] == {0: 6.5}
    assert found["tasks_return_second_half_second_half"].values["none"] == {0: 5.5}
    assert [o.key for o in outcomes(panel, "evaluation") if o.headline] == ["evaluation_final"]


def test_unfinished_runs_are_not_compared(experiment):
    late = {"factors": {"reset": "fire"}, "seed": 1, "total_steps": 500}
    study = experiment({"factors": {"reset": "none"}}, {"factors": {"reset": "fire"}}, late)
    (panel,) = panels_of(study)
    assert by_key(panel)["evaluation_final"].values["fire"] == {0: 1.0}


@pytest.mark.parametrize(
    "gains, evidence, words",
    [
        ([20.0] * 7 + [25.0], "shown", "more"),
        ([-20.0] * 7 + [-25.0], "shown", "less"),
        ([20.0] * 4 + [25.0], "likely", "likely more"),
        ([20.0, 25.0, 22.0], "hint", "a hint of more"),
        ([20.0, -25.0, 22.0], "open", "no difference shown"),
        ([20.0], "open", "nothing to compare"),
    ],
)
def test_evidence_is_named_by_interval_test_and_number(experiment, gains, evidence, words):
    (panel,) = panels_of(branch_study(experiment, gains))
    (comparison,) = compare(panel, by_key(panel)["evaluation_final"], "none")
    assert comparison.evidence == evidence
    assert words in comparison.finding
    assert comparison.difference.mean == pytest.approx(sum(gains) / len(gains))


def test_many_methods_are_corrected_together(experiment):
    runs = [
        {"factors": {"reset": reset}, "seed": seed, "evaluations": [(100, "periodic", 10.0 * seed + gain)]}
        for reset, gain in (("none", 0), ("a", 1), ("b", 2), ("c", 3))
        for seed in range(6)
    ]
    (panel,) = panels_of(experiment(*runs))
    found = compare(panel, by_key(panel)["evaluation_final"], "none")
    assert [c.difference.p for c in found] == [2 / 64] * 3
    assert [c.p_holm for c in found] == [6 / 64] * 3
    assert {c.evidence for c in found} == {"likely"}
    assert all(c.family == 3 for c in found)


def test_references_are_the_baseline_and_fire_unless_asked(experiment):
    (panel,) = panels_of(branch_study(experiment, [1.0]))
    assert references(panel) == ["none", "fire"]
    assert references(panel, ["fire", "unknown"]) == ["fire"]


def test_the_verdict_says_what_is_shown(experiment):
    words = analyse(branch_study(experiment, [20.0] * 7 + [28.0])).verdict
    assert words.headline == "Final evaluation return, against none: fire more (+21.0 [20.0, 23.0])."
    assert "p = 0.0078 after Holm" in words.panels[0]
    assert "8 seeds" in words.cautions[0] and "sign test" not in words.cautions[0]


def test_the_verdict_does_not_call_an_open_question_equal(experiment):
    words = analyse(branch_study(experiment, [20.0, -30.0, 5.0])).verdict
    assert words.headline == "No method is shown to differ from none in final evaluation return (3 seeds)."
    assert "does not mean that there is none" in words.panels[0] and "up to 30.0" in words.panels[0]
    assert "confirm nothing at 0.05" in words.cautions[0]


def test_the_verdict_counts_settings(experiment):
    runs = [
        {
            "factors": {"reset": reset, "env.change.kind": kind},
            "seed": seed,
            "evaluations": [(100, "periodic", 10.0 * seed + (reset == "fire") * gain)],
        }
        for kind, gain in (("rotate", 5), ("drift", -5), ("actions", 0))
        for reset in ("none", "fire")
        for seed in range(6)
    ]
    words = analyse(experiment(*runs)).verdict
    assert "fire more in 1 and less in 1 of 3 (2 confirmed by sign test)" in words.headline
    assert [line.partition(":")[0] for line in words.panels] == ["rotate", "drift", "actions"]


def test_a_single_method_is_no_comparison(experiment):
    words = analyse(experiment({"factors": {}}, {"factors": {}, "seed": 1})).verdict
    assert words.headline.startswith("Nothing to compare") and words.panels == []
