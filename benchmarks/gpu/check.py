"""Part ``check``: what runs on the card is right."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from agents.graphs import learning_tensors, pick_capture
from agents.learner import Agents, GraphLearner, make_learner
from agents.make import make_agent, make_replay, pick_device
from benchmarks import reset as resets_benchmark
from benchmarks.gpu.record import Record
from benchmarks.gpu.study import interrupted_after
from configs import loader
from configs.schema import Config
from envs import make_training_env

ROOT = Path(__file__).parents[2]
UPDATES = 20
# All that act on networks whose structure stays; injection and trackers are in the tests, and in runs of their own.
RESETS: tuple[str, ...] = (
    "none",
    "optimizer_only",
    "full",
    "shrink_perturb",
    "sr_dqn",
    "fire",
    "fire_dqn",
    "random_orthogonal",
    "dash",
)
RESETS += ("redo", "plasticity_injection")
TRACKED = ("cbp", "snr")
SMALL_SAC = "--agent.actor-width 8 --agent.critic-width 16 --agent.critic-blocks 1"


def run(record: Record, args: argparse.Namespace) -> None:
    tiny = args.rehearse
    forget_what_is_wrong(record)
    chosen = ["tests/agents/test_agents_gpu.py"] if tiny else ["tests/agents", "tests/fire"]
    report = record.folder / "gpu_tests.txt"
    record.measure("tests marked gpu", lambda: gpu_tests(chosen, max(record.seconds_left - 60, 30), report))
    for algo, env in (("sac", "h1-walk"), ("dqn", "Pong")):
        options = SMALL_SAC if tiny and algo == "sac" else ""
        flags = f"--algo {algo} --env {env} --preset paper --device {args.device} {options}"
        updates = 3 if tiny else UPDATES
        name = f"{algo}: graphs against kernel by kernel"
        record.measure(name, partial(graphs_against_eager, flags, updates))
        record.measure(f"{algo}: the same twice", partial(twice, flags, updates))
        several = partial(together, flags, updates, 2 if tiny else 4)
        record.measure(f"{algo}: 4 runs against single ones", several)
    for network in ("nature_cnn",) if tiny else ("nature_cnn", "simba"):
        for ill in (False, True):
            name = f"polar factors, {network}, {'ill-conditioned' if ill else 'initial weights'}"
            record.measure(name, partial(polar, network, ill, args.device), needs=8)
    for algo, env in (("sac", "h1-walk"), ("dqn", "Pong")):
        for names in (
            (("none", "fire"), ("cbp",)) if tiny else (("none", "fire"), RESETS[1:], *((n,) for n in TRACKED))
        ):
            title = f"{algo}: trained, interrupted, resumed, evaluated: {' '.join(names)}"
            record.measure(title, partial(life, algo, env, names, args.device, tiny), needs=10)


def forget_what_is_wrong(record: Record) -> None:
    """Checks that an earlier call found wrong, or did not finish, are made again: something may have been mended."""
    for name, right in _checks(record).items():
        if not right:
            del record.figures[name]


def _checks(record: Record) -> dict[str, bool | None]:
    """Whether each check is right; None: it was not finished."""
    return {
        name: value["right"]
        for name, value in record.figures.items()
        if isinstance(value, dict) and "right" in value
    }


def conclude(record: Record, args: argparse.Namespace) -> None:
    """Say in one figure whether all is right."""
    checks = _checks(record)
    wrong = [name for name, right in checks.items() if right is False]
    unfinished = len(record.state["errors"]) + sum(right is None for right in checks.values())
    done = f"{sum(right is True for right in checks.values())} of {len(checks)} right"
    later = f", {unfinished} not finished" if unfinished else ""
    record.figures["result"] = done + later + (f"; WRONG: {', '.join(wrong)}" if wrong else "")


# The tests


def gpu_tests(chosen: Sequence[str], seconds: float, report: Path) -> dict[str, object]:
    """The suite's tests that need a GPU; what pytest says goes to ``report``, also where the time is over."""
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "-o", "addopts="]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider", "-v", "-m", "gpu", *chosen]
    # Reasons of failures are not cut off, and each test is in the file when it has ended.
    surroundings = {**os.environ, "COLUMNS": "250", "PYTHONUNBUFFERED": "1"}
    finished = True
    with report.open("w") as file:
        try:
            subprocess.run(command, cwd=ROOT, env=surroundings, stdout=file, stderr=file, timeout=seconds)
        except subprocess.TimeoutExpired:
            finished = False
    output = report.read_text()
    ends = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", output, flags=re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+.*)", output, flags=re.MULTILINE)
    counts: dict[str, object] = {word.lower(): number for word, number in Counter(ends).items()}
    if not ends:
        counts["last words"] = [*output.strip().splitlines(), "none"][-1][:200]
    right: bool | None = "PASSED" in ends and not {"FAILED", "ERROR"} & set(ends)
    if right and not finished:
        right = None
    return {**counts, "finished": finished, "failures": failed[:20], "right": right}


# Updates


class Group:
    """K agents with their replay, filled by random play, and their learner, as the training loop makes them."""

    def __init__(self, flags: str, seeds: Sequence[int], graphs: bool) -> None:
        words = [*flags.split(), "--replay.replay-capacity", "2000", "--cuda-graphs", str(graphs).lower()]
        configs = [loader.load([*words, "--seed", str(seed)])[0] for seed in seeds]
        config = configs[0]
        device = pick_device(config.device)
        env = make_training_env(config, seeds)
        try:
            spaces = env.observation_space, env.action_space
            self.agents = [make_agent(each, *spaces, env.max_episode_steps, device) for each in configs]
            replay = make_replay(config, *spaces, self.agents[0].gamma, device, len(seeds))
            obs = env.reset(list(seeds))
            for _ in range(60):
                action = env.random_action()
                step = env.step(action)
                replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
                obs = step.obs
        finally:
            env.close()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.learner = make_learner(Agents(self.agents), replay, generators, config)
        self.records = pick_capture(config, device) is not None

    def learn(self, updates: int) -> list[list[Tensor]]:
        """Make updates; return what each agent's tensors have become, on the CPU."""
        for _ in range(updates):
            self.learner.learn(2)
        return [[t.detach().cpu().double() for t in learning_tensors([agent])] for agent in self.agents]


def furthest(one: Sequence[Tensor], other: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """The largest distance between two results of the same updates, as a share of the tensor's way from ``start``."""
    shares = [
        float((a - b).norm() / ((b - s).norm() + 1e-12 * (1 + b.norm())))
        for a, b, s in zip(one, other, start, strict=True)
    ]
    return max(shares)


def _starts(flags: str, seeds: Sequence[int]) -> list[list[Tensor]]:
    """The agents' tensors before any update: optimizer state, made by the first one, starts at zero."""
    group = Group(flags, seeds, graphs=False)
    firsts = [[t.detach().cpu().double() for t in learning_tensors([agent])] for agent in group.agents]
    group.learn(1)
    after = [learning_tensors([agent]) for agent in group.agents]
    return [
        [*first, *(torch.zeros(t.shape, dtype=torch.float64) for t in late[len(first) :])]
        for first, late in zip(firsts, after, strict=True)
    ]


def graphs_against_eager(flags: str, updates: int) -> dict[str, object]:
    """Captured updates, their minibatches included, beside the same updates kernel by kernel."""
    captured, eager = Group(flags, [0], graphs=True), Group(flags, [0], graphs=False)
    share = furthest(captured.learn(updates)[0], eager.learn(updates)[0], _starts(flags, [0])[0])
    fell_back = isinstance(captured.learner, GraphLearner) and not captured.learner.works
    return {"difference": share, "fell back to eager": fell_back, "right": share <= 0.1 and not fell_back}


def twice(flags: str, updates: int) -> dict[str, object]:
    """The same updates from the same seeds, twice: equal bit for bit."""
    one, other = (Group(flags, [0], graphs=True).learn(updates)[0] for _ in range(2))
    return {"right": all(torch.equal(a, b) for a, b in zip(one, other, strict=True))}


def together(flags: str, updates: int, count: int) -> dict[str, object]:
    """Runs in one program beside the same runs alone."""
    seeds = range(count)
    group = Group(flags, seeds, graphs=True).learn(updates)
    alone = [Group(flags, [seed], graphs=True).learn(updates)[0] for seed in seeds]
    shares = [furthest(a, b, s) for a, b, s in zip(group, alone, _starts(flags, seeds), strict=True)]
    return {"difference": max(shares), "right": max(shares) <= 0.1}


def polar(network: str, ill: bool, device: str) -> dict[str, object]:
    """Polar factors of all matrices of a network against the SVD in float64 on the host."""
    row = resets_benchmark.run(network, ill, repeats=1, checked=1, device=device)
    ours = row["fire.polar_factors"]
    right = ours["relative_dfi"] <= 1e-5 and ours["distance"] <= 1e-4
    return {**{key: ours[key] for key in ("relative_dfi", "distance")}, "right": right}


# Whole runs


def life(algo: str, env: str, names: Sequence[str], device: str, tiny: bool) -> dict[str, object]:
    """Runs with several resets as one program: trained, interrupted, resumed, and one of them evaluated."""
    import evaluate
    from training.folder import run_configs, run_folders
    from training.loop import train_together

    steps = 120 if tiny else 400
    flags = (
        f"--algo {algo} --env {env} --preset quick --device {device} --total-steps {steps} "
        f"--replay.learning-starts {steps // 4} --replay.replay-capacity 2000 --replay.batch-size 32 --env.num-envs 1 "
        f"--reset.every {steps // 3} --eval.every 0 --eval.episodes 1 --eval.steps 100 --eval.around-resets false "
        f"--log.every 100 --log.metrics-every 0 {SMALL_SAC if algo == 'sac' else ''}"
    )
    configs: list[Config] = [loader.load([*flags.split(), "--reset", name])[0] for name in names]
    with tempfile.TemporaryDirectory() as folder:
        runs = run_configs(configs)
        folders = run_folders(runs, Path(folder) / "runs")
        with interrupted_after(steps // 2):
            halves = train_together(runs, folders)
        stopped = [trainer.clock.env_step for trainer in halves]
        trainers = train_together(runs, folders)
        code = evaluate.main([str(folders[-1]), "--episodes", "1"]) if algo == "sac" or not tiny else 0
    reached = [trainer.clock.env_step for trainer in trainers]
    resets = {t.config.reset.name: t.due.num_resets for t in trainers}
    right = code == 0 and all(s < steps for s in stopped) and set(reached) == {steps}
    return {"stopped at": stopped[0], "resets": resets, "right": right}
