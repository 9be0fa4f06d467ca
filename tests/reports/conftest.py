"""Real runs, trained once, and small run folders with chosen figures."""

import json
from types import SimpleNamespace

import pytest

from configs import loader
from reports.collect import collect
from training import loop
from training.folder import run_configs, run_folders
from training.record import EVALUATION_COLUMNS

FLAGS = [
    *("--algo", "dqn", "--env", "CartPole-v1", "--preset", "quick", "--num-agents", "2"),
    *("--total-steps", "250", "--replay.learning-starts", "50", "--agent.hidden-widths", "16", "16"),
    *("--reset.every", "100", "--eval.every", "50", "--eval.episodes", "1", "--checkpoint.every", "0"),
    *("--log.every", "25", "--log.metrics-every", "50"),
]
RESETS = ("none", "fire", "full")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of six real runs: three resets, two seeds."""
    folder = tmp_path_factory.mktemp("trained") / "cartpole"
    configs = run_configs([loader.load([*FLAGS, "--reset", name])[0] for name in RESETS])
    loop.train_together(configs, run_folders(configs, folder))
    return folder


@pytest.fixture
def experiment(tmp_path):
    """Write run folders with chosen curves and a plan beside them; return a function that makes the study.

    Each run: factors, seed, and optionally evaluations [(step, when, return)], tasks [{column: value}], stage, parent,
    begins, resets [step], total_steps.
    """

    def make(*runs, **plan):
        rows = []
        for run in map(lambda given: SimpleNamespace(**{**DEFAULTS, **given}), runs):
            name = ",".join(["run", *(f"{k}={v}" for k, v in run.factors.items())]).replace("/", "_")
            name += f"/{run.stage}seed{run.seed}"
            folder = tmp_path / name
            folder.mkdir(parents=True)
            branch = f"branch_from: x/step_{run.begins:012d}\n" if run.begins else ""
            (folder / "config.yaml").write_text(
                f"seed: {run.seed}\ntotal_steps: {run.total_steps}\n{branch}"
                f"env: {{id: {run.factors.get('env', 'CartPole-v1')}}}\n"
                f"reset: {{name: {run.factors.get('reset', 'none')}}}\n"
            )
            lines = [f"{step},{when},{value},1.0,0.0,1.0,10.0,2" for step, when, value in run.evaluations]
            (folder / "evaluations.csv").write_text("\n".join([",".join(EVALUATION_COLUMNS), *lines]) + "\n")
            (folder / "scalars.csv").write_text("env_step,key,value\n")
            records = [
                {"env_step": step, "reset": "fire", "report": {"reset/seconds": 0.1}} for step in run.resets
            ]
            (folder / "resets.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
            if run.tasks:
                columns = ["env_step", "task", *run.tasks[0]]
                cells = [[10 * (i + 1), i, *task.values()] for i, task in enumerate(run.tasks)]
                text = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in cells)])
                (folder / "tasks.csv").write_text(text + "\n")
            rows.append(
                {
                    "name": name,
                    "folder": name,
                    "stage": run.stage,
                    "factors": run.factors,
                    "seed": run.seed,
                    "parent": run.parent,
                    "flags": [],
                }
            )
        (tmp_path / "plan.json").write_text(json.dumps({"name": "small", "runs": rows} | plan))
        return collect([tmp_path])

    return make


DEFAULTS = {
    "factors": {},
    "seed": 0,
    "evaluations": [(100, "periodic", 1.0)],
    "tasks": [],
    "stage": "",
    "parent": None,
    "begins": 0,
    "resets": [],
    "total_steps": 100,
}
