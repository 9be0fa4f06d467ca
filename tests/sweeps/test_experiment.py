"""From an experiment's file to the runs that it plans; what is wrong with one is said before anything starts."""

import dataclasses
import re
from pathlib import Path

import pytest

import sweep
from configs import loader
from configs.errors import ConfigError
from sweeps.experiment import read_experiment, select
from tests.sweeps.sweep_cases import BASE, GRID, plan, sweep_here

ROOT = Path(__file__).parents[2]


def names(experiment):
    return [run.name for run in experiment.runs]


def test_the_grid_is_a_product_and_each_run_is_its_command_line(tmp_path):
    experiment = plan(
        tmp_path, BASE + "grid: {reset: [none, fire], agent.learning_rate: [1e-3, 0.01], seed: [0, 7]}"
    )
    assert names(experiment) == [
        f"reset={reset},agent.learning_rate={rate}/seed{seed}"
        for reset in ("none", "fire")
        for rate in ("1e-3", "0.01")
        for seed in (0, 7)
    ]
    run = experiment.runs[3]
    assert (
        run.factors == {"reset": "none", "agent.learning_rate": 0.01}
        and run.seed == 7
        and run.stage == "main"
    )
    assert loader.load(run.flags)[0] == run.config
    assert (run.config.agent.learning_rate, run.config.agent.hidden_widths) == (0.01, (16,))
    assert run.config.env.id == "CartPole-v1" and run.config.total_steps == 200


def test_nested_and_dotted_keys_are_the_same(tmp_path):
    nested = plan(
        tmp_path, "base: {algo: dqn, env: {id: CartPole-v1, num_envs: 2}, reset: {name: fire, every: 9}}"
    )
    dotted = plan(
        tmp_path, "base: {algo: dqn, env: CartPole-v1, env.num-envs: 2, reset: fire, reset.every: 9}"
    )
    assert nested.runs[0].config == dotted.runs[0].config and dotted.runs[0].config.reset.every == 9
    assert names(dotted) == ["seed0"]


def test_lists_null_and_truth_reach_the_configuration(tmp_path):
    run = plan(
        tmp_path,
        BASE + "grid: {reset.at: [[], [80, 120]], reset.until: [null, 90], eval.around_resets: [no]}",
    ).runs[-1]
    reset = run.config.reset
    assert reset.at == (80, 120) and reset.until == 90 and not run.config.eval.around_resets
    assert run.name == "reset.at=80+120,reset.until=90,eval.around_resets=false/seed0"


def test_arms_vary_several_options_together(tmp_path):
    arms = "arms: [{name: rare, reset: fire, reset.every: 100}, {name: never, reset: none}]\ngrid: {seed: {count: 1}}"
    runs = plan(tmp_path, BASE + arms).runs
    assert [(r.name, r.factors) for r in runs] == [
        ("arm=rare/seed0", {"arm": "rare"}),
        ("arm=never/seed0", {"arm": "never"}),
    ]
    assert [(r.config.reset.name, r.config.reset.every) for r in runs] == [("fire", 100), ("none", 15_000)]


def test_exclude_takes_cells_away_and_include_adds_some(tmp_path):
    cells = GRID + "exclude: [{reset: full, seed: 1}]\ninclude: [{reset: redo, seed: 5}]\n"
    assert names(plan(tmp_path, BASE + cells)) == [
        "reset=none/seed0",
        "reset=none/seed1",
        "reset=full/seed0",
        "reset=redo/seed5",
    ]


def test_files_of_config_are_found_beside_the_experiment(tmp_path):
    (tmp_path / "mine.yaml").write_text("replay: {n_step: 5}\n")
    assert plan(tmp_path, BASE.replace("{algo", "{config: mine.yaml, algo")).runs[0].config.replay.n_step == 5


STAGES = """
grid: {env: [CartPole-v1, Acrobot-v1], seed: {count: 2}}
stages:
  - {name: first, grid: {reset: [none]}}
  - {name: then, branch_from: first, at: 120, grid: {reset: [full, fire]}, base: {reset.at: [120]}, total_steps: 300}
"""


def test_branches_leave_the_run_of_their_seed_and_their_shared_factors(tmp_path):
    runs = plan(tmp_path, BASE.replace("env: CartPole-v1, ", "env.num_envs: 7, ") + STAGES).runs
    parents = [run for run in runs if run.stage == "first"]
    branches = [run for run in runs if run.stage == "then"]
    assert len(parents) == 4 and len(branches) == 8
    for run in branches:
        assert run.parent == f"first/env={run.factors['env']},reset=none/seed{run.seed}"
        assert run.branch_step == 126  # the first multiple of 7 from 120 on
        assert run.config.total_steps == 300 and run.config.reset.at == (120,)
    for run in parents:
        assert run.config.checkpoint.at == (126,) and run.flags[-2:] == ("--checkpoint.at", "126")


def test_a_branch_from_the_end_needs_no_checkpoint_on_the_way(tmp_path):
    runs = plan(tmp_path, BASE.replace("env: CartPole-v1, ", "") + STAGES.replace("at: 120, ", "")).runs
    assert {run.branch_step for run in runs} == {None, 200}
    assert not any(run.config.checkpoint.at for run in runs)


@pytest.mark.parametrize(
    "text, message",
    [
        ("grdi: {reset: [none]}", r"unknown key 'grdi'; did you mean 'grid'\?"),
        ("grid: {reset: [none, fier]}", r"cell reset=fier: unknown reset 'fier'; did you mean 'fire'\?"),
        (
            "grid: {agent.learning_rat: [1]}",
            r"cell agent.learning_rat=1: .*did you mean --agent.learning-rate\?",
        ),
        ("grid: {agent.learning_rate: [-1]}", "cell agent.learning_rate=-1: .*at least 0"),
        ("grid: {algo: [dqn, dqm]}", "cell algo=dqm: .*dqm.*valid: dqn, sac, td3, xqc"),
        ("grid: {reset: []}", "reset has no values, so there are no runs"),
        ("grid: {reset: fire}", "reset must be a list of values, got 'fire'"),
        ("grid: {reset: [fire, fire]}", "reset has the value fire twice"),
        ("grid: {seed: {count: 0}}", "seed needs a count of at least 1"),
        ("grid: {seed: {cuont: 2}}", "did you mean 'count'"),
        ("grid: {seed: [1, 1]}", "seed must be different whole numbers"),
        (
            "grid: {total_steps: [100]}\nbase: {total_steps: 300}",
            "total_steps stands in the grid and beside it",
        ),
        ("base: {num_agents: 3}", "num_agents cannot stand here; give grid.seed several values"),
        ("base: {branch_from: runs/x}", "branch_from cannot stand here; use stages"),
        ("base: {env: CartPole-v1, env.id: h1-walk}", "env stands there twice"),
        (GRID + "exclude: [{reset: none}, {reset: full}]", "no runs: the grid is empty"),
        (GRID + "exclude: [{rset: none}]", "unknown key 'rset'; did you mean 'reset'"),
        ("arms: [{reset: none}]", "arm 1 needs a name of its own, got None"),
        ("stages: [{name: a, branch_from: b}]", "branch_from 'b' is no earlier stage; there is none"),
        (
            "stages: [{name: a}, {name: b, branch_from: a, at: 900}]",
            "at 900 lies beyond the end of a/seed0, 200",
        ),
        ("stages: [{name: a}, {name: b, branch_from: a}]", "total_steps 200 must exceed the 200 env steps"),
        ("stages: [{name: a, at: 5}]", "at 5 needs branch_from"),
        (
            "stages: [{name: a, grid: {reset: [none, full]}}, {name: b, branch_from: a, at: 90}]",
            "each run needs one run of stage a to branch from, but 2 fit seed 0",
        ),
        ("together: sedes", "together must be one of resets, seeds, none, auto; got 'sedes'"),
        ("report: {metric: evaluation, basline: none}", "did you mean 'baseline'"),
        ("report: {compare: reset}", "compare must be a list of factors, got 'reset'"),
        (
            "grid: {reset: [fire]}\nreport: {compare: [rset]}",
            "compare: unknown key 'rset'; did you mean 'reset'",
        ),
        ("name: ../elsewhere", "name '../elsewhere' must be letters"),
        ("grid: [1]", "grid must be a mapping"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_starts(text, message, tmp_path, capsys):
    base = BASE if "base:" not in text and "stages" not in text and "algo:" not in text else ""
    base = BASE if "stages" in text else base
    base = BASE.replace("algo: dqn, ", "") if "algo:" in text else base
    assert sweep_here(tmp_path, base + text) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        (
            BASE + "grid: {env: [CartPole-v1, CartPol-v1]}",
            "cell env=CartPol-v1: unknown environment.*CartPole-v1",
        ),
        (
            BASE + "grid: {env: [CartPole-v1, Pendulum-v1]}",
            "cell env=Pendulum-v1: --algo dqn needs Discrete actions",
        ),
        (
            BASE + "grid: {reset.networks: [[q], [critic]]}",
            "cell reset.networks=critic: .*no network 'critic'",
        ),
        (BASE + "grid: {env: ['this:Nothing-v0']}", "cell env=this_Nothing-v0: .*give --allow-import"),
        (
            BASE + "stages: [{name: a}, {name: b, branch_from: a, at: 90, base: {replay.batch_size: 8}}]",
            r"b/seed0: a branch may differ .* but a/seed0 has replay.batch_size 16 \(asked for: 8\)",
        ),
    ],
)
def test_what_only_the_environment_and_the_agent_know_is_found_too(text, message, tmp_path, capsys):
    text = text.replace("env: CartPole-v1, ", "") if "env: [" in text else text
    assert sweep_here(tmp_path, text) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out").exists()


def test_a_selection_has_the_parents_it_needs(tmp_path):
    runs = plan(tmp_path, BASE.replace("env: CartPole-v1, ", "") + STAGES).runs
    chosen = [run.name for run in select(runs, "then/env=Acrobot-v1,reset=fire/seed1")]
    assert chosen == ["first/env=Acrobot-v1,reset=none/seed1", "then/env=Acrobot-v1,reset=fire/seed1"]
    assert len(select(runs, "first/*seed0")) == 2
    with pytest.raises(ConfigError, match="--only fier: no such run"):
        select(runs, "fier")


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_here_are_plans(path):
    experiment = read_experiment(path)
    assert experiment.question and experiment.name == path.stem
    (compared,) = experiment.report.get("compare", ["reset"])
    assert experiment.report["baseline"] in {
        run.config.reset.name if compared == "reset" else run.factors[compared] for run in experiment.runs
    }


# The command lines behind tables in results/, one for each cell; seeds stand beside them.
# Runs of Breakout kept their checkpoints of every 30,000 env steps, for branches to begin at.
EARLIER = {
    "cartpole": {
        f"reset={reset}": f"--algo dqn --env CartPole-v1 --preset quick --reset {reset}"
        for reset in ("none", "fire_paper", "fire")
    },
    "pendulum": {
        f"reset={reset}": f"--algo sac --env Pendulum-v1 --preset quick --reset {reset}"
        for reset in ("none", "fire_paper", "fire")
    },
    "breakout": {"uninterrupted/reset=none": "--algo dqn --env Breakout --preset quick --reset none"}
    | {
        f"after_reset/reset={reset}": "--algo dqn --env Breakout --preset quick "
        f"--reset {reset} --reset.every 0 --reset.at 30000"
        for reset in ("full", "shrink_perturb", "fire_paper", "fire")
    },
}


@pytest.mark.parametrize(("name", "seeds"), [("cartpole", 5), ("pendulum", 5), ("breakout", 3)])
def test_the_runs_behind_the_tables_of_results_are_planned_again(name, seeds):
    experiment = read_experiment(ROOT / "experiments" / f"{name}.yaml")
    planned = {run.name: run for run in experiment.runs}
    wanted = {
        f"{cell}/seed{seed}": loader.load([*flags.split(), "--seed", str(seed)])[0]
        for cell, flags in EARLIER[name].items()
        for seed in range(seeds)
    }
    assert planned.keys() == wanted.keys() and experiment.together == "none"
    for run_name, run in planned.items():
        asked = loader.load(run.flags)[0]
        at = (30_000,) if run.stage == "uninterrupted" else ()
        assert asked.checkpoint.at == at and asked.num_threads == 1
        assert dataclasses.replace(asked, checkpoint=wanted[run_name].checkpoint) == wanted[run_name]
        if run.stage == "after_reset":
            assert (run.parent, run.branch_step) == (f"uninterrupted/reset=none/seed{run.seed}", 30_000)


def test_the_long_study_begins_as_the_study():
    """Its first tasks are the same: everything but the length, and exploration falls over as many steps."""
    short, long = (
        {run.name: run.config for run in read_experiment(ROOT / "experiments" / name).runs}
        for name in ("study.yaml", "study_long.yaml")
    )
    assert short.keys() < long.keys() and len(long) == 2 * len(short) == 240
    for name, ours in short.items():
        theirs = long[name]
        steps = [config.agent.epsilon_fraction * config.total_steps for config in (ours, theirs)]
        assert steps == [pytest.approx(3_840)] * 2
        agent = dataclasses.replace(theirs.agent, epsilon_fraction=ours.agent.epsilon_fraction)
        assert ours == dataclasses.replace(theirs, agent=agent, total_steps=ours.total_steps)


def test_options_of_fire_are_compared_on_the_runs_of_the_study():
    study, options = (
        {run.name: run.config for run in read_experiment(ROOT / "experiments" / f"{name}.yaml").runs}
        for name in ("study", "fire_options")
    )
    shared = {
        name: config
        for name, config in options.items()
        if config.reset.name in ("none", "full", "fire_paper", "fire")
    }
    assert len(shared) == 40
    for name, config in shared.items():
        assert config == study[name.replace(",arm", ",agent.layer_norm=false,arm")]


def test_help_and_wrong_flags(capsys):
    with pytest.raises(SystemExit):
        sweep.main(["--help"])
    assert "--retry-failed" in capsys.readouterr().out
    for words in (["x.yaml", "--wrokers", "1"], ["x.yaml", "--workers", "0"], ["missing.yaml"], []):
        assert sweep.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
