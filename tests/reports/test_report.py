"""The report of real runs: one page without network, figures, tables, one-line errors."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

import report
from reports import figures
from reports.aggregate import aggregate_over_environments, normalized
from reports.analysis import analyse
from reports.collect import collect
from reports.kept import kept_rows, planes
from reports.numbers import number, p_value, signed
from reports.page import MOST_BYTES, page
from reports.panels import Panel, panels_of
from reports.spectra import spectra_of
from reports.style import styles
from reports.write import write_report

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("written")
    assert write_report([trained], output) == output / "report.html"
    return output


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.found, self.scripts, self._inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("type", "") if tag == "script" else None

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside is not None:
            self.scripts.append((self._inside, data))


def figures_of(path):
    elements = Elements(path.read_text())
    return [json.loads(text) for kind, text in elements.scripts if kind == "application/json"]


def test_the_page_is_one_file_that_loads_nothing(written):
    path = written / "report.html"
    assert path.stat().st_size <= MOST_BYTES
    elements = Elements(path.read_text())
    tags = [tag for tag, _ in elements.found]
    assert "link" not in tags and "img" not in tags and "iframe" not in tags
    assert not any("src" in attrs for _, attrs in elements.found)
    hrefs = [attrs["href"] for tag, attrs in elements.found if tag == "a"]
    assert hrefs and not any(re.match(r"\w+:", href) for href in hrefs)
    assert all((written / href).is_dir() for href in hrefs)
    assert tags.count("h1") == 1


def test_every_figure_draws_every_method_in_its_colour(written, trained):
    figures = figures_of(written / "report.html")
    methods = {trace["legendgroup"] for figure in figures for trace in figure["data"]}
    assert methods == {"none", "fire", "full"}
    titles = [figure["layout"]["title"]["text"] for figure in figures]
    assert {"evaluation return", "training return", "dormant share (q)", "q"} <= set(titles)
    assert any(title == "q/hidden1" for title in titles)  # spectra
    colours = {
        trace["legendgroup"]: trace["line"]["color"]
        for figure in figures
        for trace in figure["data"]
        if "line" in trace and trace["mode"] != "none"
    }
    assert len(set(colours.values())) == 3


def test_curves_on_the_page_are_the_means_of_the_runs(written, trained):
    figure = next(
        f for f in figures_of(written / "report.html") if f["layout"]["title"]["text"] == "evaluation return"
    )
    trace = next(t for t in figure["data"] if t["legendgroup"] == "fire" and t["mode"] != "none")
    fire = [run.evaluation for run in collect([trained]).runs if run.factors["reset"] == "fire"]
    assert numbers(trace["y"]) == pytest.approx(np.mean([curve.values for curve in fire], axis=0))
    assert numbers(trace["x"]).tolist() == fire[0].steps.tolist()
    assert len([shape for shape in figure["layout"]["shapes"]]) == 2  # reset marks


def numbers(array):
    """Decode plotly's typed arrays."""
    import base64

    types = {"f4": np.float32, "i4": np.int32, "i2": np.int16, "u2": np.uint16, "f8": np.float64}
    return np.frombuffer(base64.b64decode(array["bdata"]), types[array["dtype"]]).astype(np.float64)


def test_beside_it_lie_pictures_tables_and_markdown(written, trained):
    names = {path.name for path in written.iterdir()}
    assert names == {
        *("report.html", "report.md", "evaluations.png", "outcomes.png"),
        *("summary.csv", "differences.csv", "resets.csv", "kept.csv", "runs.csv"),
    }
    for path in written.glob("*.png"):
        assert path.read_bytes().startswith(PNG) and path.stat().st_size < 200_000
    text = (written / "report.md").read_text()
    assert "**No method" in text or "**Final evaluation return" in text
    assert "![evaluations](evaluations.png)" in text
    rows = list(csv.DictReader(io.StringIO((written / "summary.csv").read_text())))
    row = next(r for r in rows if r["outcome"] == "evaluation_final" and r["method"] == "full")
    finals = [run.evaluation.values[-1] for run in collect([trained]).runs if run.factors["reset"] == "full"]
    assert float(row["mean"]) == pytest.approx(np.mean(finals)) and row["runs"] == "2"
    resets = list(csv.DictReader(io.StringIO((written / "resets.csv").read_text())))
    assert {r["method"]: r["resets"] for r in resets} == {"none": "4", "fire": "4", "full": "4"}


def test_spectra_are_those_before_and_after_a_reset(trained):
    (panel,) = panels_of(collect([trained]))
    spectra = spectra_of(panel)
    assert set(spectra) == {"q/hidden1", "q/hidden2", "q/output"}
    hidden = spectra["q/hidden2"]
    assert set(hidden) == {"fire", "full"}
    after, before = hidden["fire"]["after"], hidden["fire"]["before"]
    # Up to the buckets' ends a multiple of an isometry, of the norm of 16 x 16 weights of variance 2 / (16 + 16).
    assert after == pytest.approx(np.full(100, after[0]), abs=1e-5) and after[0] == pytest.approx(1, abs=0.15)
    assert before[0] > 1.2 > 0.5 > before[-1] and (np.diff(before) <= 0).all()


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (0.5, 1.2), (0.3, 4.0), (0.004, 8.0), (0.0, 30.0)])
def test_a_logarithmic_axis_leaves_its_ticks_to_the_page_and_is_no_microscope(low, high):
    """Plotly chooses ticks within a power of ten unless it is told a distance; a browser showed them (28 November)."""
    panel = Panel("", "CartPole-v1", {"fire": []}, "fire", (), 0)
    spectra = {"fire": {"before": np.linspace(high, low, 9), "after": np.full(9, high)}}
    axis = figures.spectra_figure(panel, styles(["fire"], "fire"), "q", spectra).layout.yaxis
    assert axis.type == "log" and axis.dtick is None and axis.tickformat
    if low == high:
        assert axis.range[1] - axis.range[0] == pytest.approx(figures.LEAST_DECADES)
        assert sum(axis.range) == pytest.approx(0.0)
    else:
        assert axis.range is None


def test_what_resets_kept_is_the_mean_of_their_records(trained):
    (panel,) = panels_of(collect([trained]))
    rows = {row.method: row for row in kept_rows(panel)}
    assert set(rows) == {"fire", "full"} and rows["fire"].network == "q"
    records = [record for run in panel.methods["fire"] for record in run.resets]
    assert len(records) == rows["fire"].resets == 4
    expected = np.mean([record["report"]["reset/q/relative_sfe"] for record in records])
    assert rows["fire"].means["sfe"] == pytest.approx(expected)
    dormant = [
        record["before"]["plasticity/q/dormant_ratio"] - record["after"]["plasticity/q/dormant_ratio"]
        for record in records
    ]
    assert rows["fire"].means["dormant"] == pytest.approx(np.mean(dormant))
    assert rows["fire"].means["dfi"] < 1e-6 < rows["full"].means["dfi"]
    assert ("sfe", "dfi") in planes(panel, "q")


def test_a_policy_that_was_compared_comes_first_in_the_plane(trained):
    (panel,) = panels_of(collect([trained]))
    for run in panel.runs:
        for record in run.resets:
            record["kept"] = {"q": {"greedy_agreement": 0.75}}
    assert planes(panel, "q")[1] == ("greedy_agreement", "dormant")
    assert {row.means["greedy_agreement"] for row in kept_rows(panel)} == {0.75}


def test_text_of_an_experiment_is_no_markup(experiment, tmp_path):
    study = experiment(
        {"factors": {"reset": "none"}},
        {"factors": {"reset": "</script><b>"}},
        title="<i>A</i> & B",
        question="a < b",
    )
    text = page(analyse(study), tmp_path)
    elements = Elements(text)
    assert not any(tag in ("i", "b") for tag, _ in elements.found)
    assert "&lt;i&gt;A&lt;/i&gt; &amp; B" in text
    kinds = [kind for kind, _ in elements.scripts]
    assert kinds.count("application/json") == text.count('class="plot"')


def test_changing_tasks_have_figures_and_a_table(experiment, tmp_path):
    runs = [
        {
            "factors": {"reset": reset},
            "seed": seed,
            "tasks": [{"return_second_half": seed + i, "return_whole": i} for i in range(4)],
        }
        for reset in ("none", "fire")
        for seed in range(2)
    ]
    experiment(*runs)
    path = write_report([tmp_path])
    assert path == tmp_path / "report" / "report.html"
    assert (path.parent / "tasks.png").read_bytes().startswith(PNG)
    rows = list(csv.DictReader(io.StringIO((path.parent / "tasks.csv").read_text())))
    assert len(rows) == 16 and rows[-1]["return_second_half"] == "4.0" and rows[-1]["task"] == "3"
    titles = [figure["layout"]["title"]["text"] for figure in figures_of(path)]
    assert "return, second half" in titles


def test_environments_with_published_scores_are_aggregated(experiment):
    runs = [
        {
            "factors": {"reset": reset, "env": env},
            "seed": seed,
            "evaluations": [(100, "periodic", score * (1 + (reset == "fire")) + seed)],
        }
        for env, score in (("Breakout", 15.0), ("Pong", 2.0))
        for reset in ("none", "fire")
        for seed in range(3)
    ]
    none, fire = aggregate_over_environments(panels_of(experiment(*runs)))
    expected = np.mean(
        [normalized("Breakout", 30.0 + s) for s in range(3)] + [normalized("Pong", 4.0 + s) for s in range(3)]
    )
    assert fire.mean.value == pytest.approx(expected)
    assert (fire.environments, fire.runs, fire.improvement.value) == (2, 3, pytest.approx((1 + 8.5 / 9) / 2))
    assert none.improvement is None and fire.profile[0] == 1.0
    assert normalized("CartPole-v1", 3.0) is None


def test_runs_of_versions_that_logged_other_metrics_are_reported_together(trained, tmp_path):
    folder = tmp_path / "runs"
    shutil.copytree(trained, folder)
    earlier = next(folder.glob("*none*seed0*/scalars.csv"))
    rows = earlier.read_text().splitlines(keepends=True)
    earlier.write_text("".join(row for row in rows if "plasticity/q/srank" not in row))
    assert report.main([str(folder), "--output", str(tmp_path / "out")]) == 0
    (panel,) = panels_of(collect([folder]))
    figure = figures.curves_figure(
        panel, styles(list(panel.methods), "none"), "plasticity/q/srank", "srank", 200
    )
    assert {trace.name for trace in figure.data} >= set(panel.methods)


def test_the_command_answers_in_one_line(trained, tmp_path, capsys):
    assert report.main([str(trained), "--output", str(tmp_path / "out"), "--against", "fire"]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'report.html'}\n"
    for argv, words in (
        ([str(tmp_path / "none")], "no such folder"),
        ([str(trained), "--against", "magic"], "no such method; there are none, fire, full"),
        (
            [str(trained), "--output", str(trained / next(trained.iterdir()).name / "config.yaml")],
            "cannot write",
        ),
    ):
        assert report.main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_numbers_are_short_and_never_wrong_about_zero():
    assert [number(x) for x in (1234.6, 12.34, 1.234, 0.1234, -0.0001, 0.0, float("nan"))] == [
        *("1,235", "12.3", "1.23", "0.123", "-1.00e-04", "0.000", "-")
    ]
    assert (signed(2.0), signed(-2.0)) == ("+2.00", "-2.00")
    assert (p_value(0.0), p_value(0.03125)) == ("p < 0.001", "p = 0.031")
