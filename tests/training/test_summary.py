"""The closing words say what happened."""

import json
from types import SimpleNamespace

import pytest

from configs import loader
from training.record import EVALUATION_COLUMNS
from training.summary import closing_words

RANDOM = "0,random_policy,-1041.4,128.0,-1169.4,-913.5,200.0,10"


@pytest.fixture
def said(tmp_path):
    """Return a function from the last row of evaluations and the resets' names to the closing words."""

    def words(last, resets=()):
        rows = [",".join(EVALUATION_COLUMNS), RANDOM, last]
        (tmp_path / "evaluations.csv").write_text("\n".join(rows) + "\n")
        records = [
            {"env_step": 100 * i, "reset": name, "report": {"reset/seconds": 0.0}}
            for i, name in enumerate(resets, 1)
        ]
        (tmp_path / "resets.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        argv = ["--algo", "sac", "--env", "Pendulum-v1", "--reset", "full", "--preset", "quick"]
        config, _ = loader.load(argv)
        trainer = SimpleNamespace(
            config=config,
            run_dir=tmp_path,
            clock=SimpleNamespace(env_step=2000),
            record=SimpleNamespace(seconds=60.0),
            tracker=None,
        )
        return closing_words(trainer, argv, None, None)

    return words


@pytest.mark.parametrize(
    "interval, learned",
    [("-1498.3,-1464.5", False), ("-1200.0,-900.0", False), ("-200.0,-150.0", True)],
    ids=["below", "overlapping", "above"],
)
def test_no_learning_is_said_unless_the_interval_lies_above_the_random_policys(interval, learned, said):
    words = said(f"2000,periodic,-1000.0,10.0,{interval},200.0,10")
    assert ("does not lie above the random policy's" not in words) is learned


def test_resets_of_a_branchs_history_keep_their_names(said):
    last = "2000,periodic,-1000.0,10.0,-1100.0,-900.0,200.0,10"
    assert "2 fire and full resets, at env steps 100, 200" in said(last, ["fire", "full"])
    assert "2 full resets, at env steps 100, 200" in said(last, ["full", "full"])
    assert "1 full reset, at env step 100;" in said(last, ["full"])
