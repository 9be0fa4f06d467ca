"""Part ``speed``: resets, updates, environments and the whole loop, each beside its floor or its peer."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from agents.dqn import DQN
from agents.frames import FrameReplay
from agents.graphs import Side, capture
from agents.learner import Agents, make_learner
from agents.numerics import Numerics
from agents.sac import SAC
from benchmarks import host_time, reset, rivals, training
from benchmarks.gpu.record import Record
from benchmarks.throughput import flops, learner_update, traffic
from benchmarks.timing import busy_share, clock, seconds_per_call
from configs import loader
from configs.schema import DQNConfig, SACConfig
from envs import make_training_env
from fire import fire_
from training.profiling import on_device

SIZE = 4096  # of the product and, squared, of the copy that stand for what the card can do
RUNS = (1, 4, 12, 16)
# Of the suite on an H200 with 16 cores: figure, key, whether it is a limit from above, number.
TARGETS = (
    ("SAC reset", "reset, ms", True, 4.0),
    ("SAC reset, fresh norms", "share of a run with 10 resets", True, 1e-3),
    ("reset of nature_cnn", "ours, with report, ms", True, 2.0),
    ("reset of nature_cnn", "ours, with report, in published", True, 0.1),
    ("reset of simba", "ours, with report, in published", True, 0.1),
    ("SAC updates, 1 run, float32", "joint updates per second", False, 2_000.0),
    ("SAC updates, 12 runs, float32", "joint updates per second", False, 500.0),
    ("DQN updates on frames, 1 run", "joint updates per second", False, 3_000.0),
    ("host time, 12 runs, microseconds per run and step", "", True, 60.0),
)
TINY = "--agent.critic-width 8 --agent.critic-blocks 0 --agent.actor-width 8 --agent.actor-blocks 0"


def run(record: Record, args: argparse.Namespace) -> None:
    tiny, device = args.rehearse, args.device
    count = 2 if tiny else 50
    record.measure("machine", lambda: machine(device, 64 if tiny else SIZE))
    for runs in RUNS[:2] if tiny else RUNS:
        for precision in ("float32",) if tiny else ("float32", "tf32", "bf16"):
            name = f"SAC updates, {_runs(runs)}, {precision}"
            record.measure(name, partial(sac, record, runs, precision, False, count, device, tiny), needs=5)
    record.measure("SAC, tf32 learns what float32 does", lambda: same_learning(device, tiny), needs=8)
    for title, name in (("SAC reset", "fire_paper"), ("SAC reset, fresh norms", "fire")):
        record.measure(title, partial(agent_reset, device, tiny, name), needs=15)
    for runs in (1,) if tiny else (1, 4):
        record.measure(f"DQN updates on frames, {_runs(runs)}", partial(dqn, runs, count, device), needs=5)
    record.measure("top ten of a SAC update", lambda: top_ten(device, tiny), needs=5)
    for env in ("h1-walk", "Pong"):
        record.measure(f"env steps, {env}", partial(env_steps, env, 0.2 if tiny else 3.0), needs=8)
    for case in ("sac-quick",) if tiny else ("sac-paper", "dqn-paper"):
        record.measure(f"whole loop, {case}", partial(whole_loop, case, device), needs=25)
    runs = 2 if tiny else 12
    name = f"host time, {runs} runs, microseconds per run and step"
    record.measure(name, partial(host_time.measure, runs, actor=True), needs=20)
    for network in ["nature_cnn"] if tiny else reset.NETWORKS:
        record.measure(
            f"reset of {network}", partial(network_reset, network, device, 1 if tiny else 5), needs=10
        )
    if device == "cuda":
        record.measure("LeanRL's way, SAC update", lambda: lean(count, device), needs=40)
        for precision in ("float32", "tf32"):
            name = f"SAC updates, 1 run, {precision}, compiled"
            record.measure(name, partial(sac, record, 1, precision, True, count, device, tiny), needs=60)


def conclude(record: Record, args: argparse.Namespace) -> None:
    """Hold the figures against the targets, and draw updates per second over the number of runs."""
    if not record.rehearsal:  # first, where the table is not cut off
        figures = {name: value for name, value in record.figures.items() if name != "targets"}
        record.state["figures"] = {"targets": held_against_targets(figures), **figures}
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for precision in ("float32", "tf32", "bf16"):
        points = [
            (runs, record.figures[name]["agent updates per second"])
            for runs in RUNS
            if (name := f"SAC updates, {_runs(runs)}, {precision}") in record.figures
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=precision)
    if axes.lines:
        axes.legend()
        axes.set_ylim(0, 1.08 * max(float(np.max(line.get_ydata())) for line in axes.lines))
    axes.set_xticks(RUNS)
    title = "tiny SAC, a rehearsal" if record.rehearsal else "SAC at the paper's widths"
    axes.set(xlabel="runs in one program", ylabel="agent updates per second", title=title)
    figure.savefig(record.folder / "speed.png")


def held_against_targets(figures: Mapping[str, Any]) -> dict[str, str]:
    """Each target for which there is a figure: what was reached, what was asked for, and whether it was met."""
    found = {}
    for name, key, from_above, target in TARGETS:
        figure = figures.get(name)
        reached = figure.get(key) if isinstance(figure, dict) else figure
        if reached is None:
            continue
        met = reached <= target if from_above else reached >= target
        word = "at most" if from_above else "at least"
        shown = f"{reached:.4g}, {word} {target:g} wanted: {'met' if met else 'MISSED'}"
        found[f"{name}: {key}" if key else name] = shown
    return found


def _runs(number: int) -> str:
    return f"{number} run{'s' if number > 1 else ''}"


def machine(device: str, size: int) -> dict[str, float]:
    """What products and copies reach here, in each precision: the denominators of the floors."""
    found: dict[str, float] = {}
    left, right, out = (torch.randn(size, size, device=device) for _ in range(3))

    def product() -> object:
        return torch.mm(left, right, out=out)

    for precision in ("float32", "tf32"):
        with Numerics(precision).products():
            product()
            found[f"{precision} TFLOP per second"] = (
                2 * size**3 / seconds_per_call(product, 10, device) / 1e12
            )
    half = [t.bfloat16() for t in (left, right)]
    found["bf16 TFLOP per second"] = (
        2 * size**3 / seconds_per_call(lambda: half[0] @ half[1], 10, device) / 1e12
    )
    copied = seconds_per_call(lambda: out.copy_(left), 20, device)
    found["copy GB per second"] = 2 * left.nbytes / copied / 1e9
    return found


def sac(
    record: Record, runs: int, precision: str, compiled: bool, count: int, device: str, tiny: bool
) -> dict[str, float]:
    """Updates of ``runs`` agents as the training loop makes them, beside the floors of arithmetic and memory."""
    flags = ["--precision", precision, "--compile", str(compiled).lower(), *(TINY.split() if tiny else [])]
    update = learner_update(device, *flags, agents=runs)
    for _ in range(3):
        update()
    seconds = statistics.median(seconds_per_call(update, count, device) for _ in range(3))
    found = {"joint updates per second": 1 / seconds, "agent updates per second": runs / seconds}
    if device == "cuda":
        found["share of time in kernels"] = busy_share(update, 20)
    able = record.figures.get("machine")
    if able and not tiny:
        config = SACConfig()
        arithmetic = runs * flops(config) / (1e12 * able[f"{precision} TFLOP per second"])
        agent = SAC(config, rivals.OBS, rivals.ACTION, 500, 0, torch.device("cpu"))
        memory = runs * traffic(agent) / (1e9 * able["copy GB per second"])
        found |= {"floor, arithmetic, ms": 1e3 * arithmetic, "floor, memory, ms": 1e3 * memory}
        found["share of the floor"] = (arithmetic + memory) / seconds
    return found


def same_learning(device: str, tiny: bool) -> dict[str, float]:
    """The same updates from the same weights in float32 and tf32, and again in float32 from other minibatches.

    tf32 learns the same where its losses are no further away than those of other minibatches.
    """
    flags, updates = TINY.split() if tiny else [], 3 if tiny else 1000
    lower = "bf16" if device == "cpu" else "tf32"
    precisions = {"float32": "float32", lower: lower, "float32, other minibatches": "float32"}
    losses: dict[str, dict[str, float]] = {}
    for name, precision in precisions.items():
        update = learner_update(device, "--precision", precision, *flags)
        if name != precision:
            update()  # all draws that follow are one minibatch later
        last: list[dict[str, torch.Tensor]] = []
        for _ in range(updates):
            _, found = update()
            last = [*last[-99:], {key: value.clone() for key, value in found.items()}]
        losses[name] = {key: float(torch.stack([each[key] for each in last]).mean()) for key in last[0]}
    return {
        f"{key}, {name}": losses[name][key] for key in ("q_mean", "critic_loss", "entropy") for name in losses
    }


def agent_reset(device: str, tiny: bool, name: str) -> dict[str, float]:
    """A reset of the SAC agent on h1-walk with its report, in updates, env steps and shares of a run."""
    cost = reset.agent_cost(1 if tiny else 5, device, name)
    run_seconds = 500_000 * cost["env step"] + 1_000_000 * cost["gradient update"]
    milliseconds = {f"{key}, ms": 1e3 * cost.pop(key) for key in ("reset", "env step", "gradient update")}
    share = 10 * milliseconds["reset, ms"] / 1e3 / run_seconds
    return {**milliseconds, **cost, "share of a run with 10 resets": share}


def whole_loop(case: str, device: str) -> dict[str, float]:
    """Steps of the training loop, environments on all cores; on CUDA with the share of time in which kernels run."""
    cores = len(os.sched_getaffinity(0))
    return training.work(case, 1, cores, device)


def dqn(runs: int, count: int, device: str) -> dict[str, float]:
    """DQN updates on frames, Nature CNN, minibatches of 32."""
    config, _ = loader.load(["--algo", "dqn", "--env", "Pong", "--preset", "paper", "--device", device])
    where = torch.device(device)
    assert isinstance(config.agent, DQNConfig)
    agents = [DQN(config.agent, (4, 84, 84), 6, 0, 10**6, seed, where) for seed in range(runs)]
    replay = FrameReplay(1000, 4, (4, 84, 84), 6, 0.99, 1, where, runs)
    rng, columns = np.random.default_rng(0), 4 * runs
    none = np.zeros(columns, bool)
    obs = rng.integers(0, 256, (columns, 4, 84, 84), dtype=np.uint8)
    for _ in range(50):
        replay.add(obs, np.ones(columns, int), np.ones(columns, np.float32), none, none, obs)
    generators = [torch.Generator().manual_seed(seed) for seed in range(runs)]
    learner = make_learner(Agents(agents, trace_from=0), replay, generators, config)
    update = partial(learner.learn, 1)
    for _ in range(3):
        update()
    seconds = statistics.median(seconds_per_call(update, count, device) for _ in range(3))
    found = {"joint updates per second": 1 / seconds, "agent updates per second": runs / seconds}
    return {**found, "share of time in kernels": busy_share(update, 20)} if device == "cuda" else found


def lean(count: int, device: str) -> dict[str, float]:
    """CleanRL's body compiled and captured as LeanRL does, on the same networks."""
    update = rivals.lean_update(
        SACConfig(), rivals.make_batch(0, device=device), lambda body: capture(body, Side())
    )
    update()
    seconds = statistics.median(seconds_per_call(update, count, device) for _ in range(3))
    return {"joint updates per second": 1 / seconds}


def top_ten(device: str, tiny: bool) -> dict[str, float]:
    """The dearest kernels of an update of one run, milliseconds each update; operations on the CPU in a rehearsal."""
    update: Callable[[], Any] = learner_update(device, *(TINY.split() if tiny else []))
    for _ in range(3):
        update()
    updates = 2 if tiny else 50
    kind = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[kind]) as seen:
        for _ in range(updates):
            update()
        clock(device)
    averages = seen.key_averages()
    if device == "cuda":
        times = {event.key: (event.self_device_time_total, event.count) for event in on_device(averages)}
    else:
        times = {event.key: (event.self_cpu_time_total, event.count) for event in averages}
    dearest = sorted(times.items(), key=lambda item: -item[1][0])[:10]
    shown = {
        f"{key[:70]} ({number / updates:.0f} per update)": us / updates / 1e3 for key, (us, number) in dearest
    }
    return {"all": sum(us for us, _ in times.values()) / updates / 1e3, **shown}


def env_steps(env_id: str, seconds: float) -> dict[str, float]:
    """Env steps per second of random play, for several numbers of environments on all cores."""
    found: dict[str, float] = {}
    algo = "sac" if env_id.startswith("h1") else "dqn"
    for runs in (1, 4, 16):
        config, _ = loader.load(["--algo", algo, "--env", env_id, "--preset", "paper", "--env.num-envs", "1"])
        env = make_training_env(config, range(runs))
        try:
            env.reset(list(range(runs)))
            steps, begun = 0, time.perf_counter()
            while time.perf_counter() - begun < seconds / 3:
                env.step(env.random_action())
                steps += runs
            found[f"{runs} environments"] = steps / (time.perf_counter() - begun)
        finally:
            env.close()
    return found


def network_reset(network: str, device: str, repeats: int) -> dict[str, float]:
    """FIRE on a whole network with its report: the first call, later ones, and the published ten steps beside them."""
    torch.manual_seed(0)
    module = reset.NETWORKS[network]().to(device)
    begun = clock(device)
    fire_(module)
    first = clock(device) - begun
    row = reset.run(network, False, repeats, 0, device)
    seconds = {
        "first call, with report, ms": first,
        "published ten steps, ms": row["published"]["seconds"],
        "ours, ms": row["fire.polar_factors"]["seconds"],
        "ours, with report, ms": row["fire_"]["seconds"],
    }
    milliseconds = {key: 1e3 * value for key, value in seconds.items()}
    return {**milliseconds, "ours, with report, in published": row["ratio_with_report"]}
