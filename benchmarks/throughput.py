"""Speed beside the others and beside the machine: SAC updates, agents trained together, the training loop, a reset.

    python -m benchmarks.throughput [--parts update agents ...] [--rounds 12] [--updates 2] [--json FILE]
    python -m benchmarks.throughput --parts update --simba PATH

update      one SAC update at SimBa's widths, all contenders in turns on one thread:
    ours        ``agents.sac.SAC``; on CUDA also with its minibatch as one graph ("captured"), and that in tf32
    cleanrl     the body of CleanRL's sac_continuous_action.py on SimBa networks: a module for each critic, AdamW in its
                default form, gradients of the critics' weights computed and thrown away in the actor's loss
    leanrl      that body compiled and recorded as one CUDA graph, as LeanRL does; on CUDA only
    sbx         Stable-Baselines3's JAX twin with its SimbaPolicy, where ``sbx`` can be imported
    sb3         Stable-Baselines3's own training step on CleanRL's SimBa networks, where it can be imported
    simba       the authors' JAX program, from a checkout of SonyResearch/simba
    sgemm       float32 product of two 2048 x 2048 matrices, whose rate is taken as what the machine can do
  ``share`` is the algorithm's need, ``flops``, divided by time and the rate of sgemm; ``floor_share`` adds to the need
  the time of copying as many bytes as the optimizers and the target must move; both in IEEE float32, so that tf32's
  may exceed 1
agents      one update of K agents as ``--num-agents`` makes it, against K single updates; on CUDA also one graph of K
            agents at SimBa's widths against the graph of one
stack       a step of K small DQNs as one program against that of one, K = 1, 5 and 12: acting, storing, and the updates
            of a step apart (MLP 128-128, 16 environments, minibatches of 64, 8 updates a step)
training    the training loop end to end over numbers of threads (benchmarks/training.py)
reset       a reset of the SAC agent by --reset fire in env steps and updates (benchmarks/reset.py)

On the CPU figures are CPU seconds of the process, their medians over rounds, and medians of the ratios within a round,
so that a busy machine counts little. With ``--device cuda`` they are wall seconds after synchronising, and for each
contender in PyTorch the share of that time in which the card was busy.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch

from agents import Agent, Batch, FlatReplay
from agents.dqn import DQN
from agents.graphs import Side, capture
from agents.learner import Agents, GraphLearner, Learner, make_learner
from agents.numerics import FLOAT32, Numerics
from agents.sac import SAC
from benchmarks import rivals, training
from benchmarks.reset import agent_cost
from benchmarks.rivals import ACTION, BATCH, OBS, make_batch
from benchmarks.timing import busy_share, ratio, take_turns
from common.memory import keep_freed_memory
from configs import loader
from configs.schema import DQNConfig, SACConfig

SIZE = 2048
PARTS = ("update", "agents", "stack", "training", "reset")
RUNS = (1, 5, 12)  # agents of the stacks compared
IN_PYTORCH = ("ours", "captured", "captured, tf32", "cleanrl", "leanrl", "sb3")


def flops(config: SACConfig) -> float:
    """Multiplications and additions of one update, matrix products only.

    A critic is run forwards three times (target, critic loss, actor loss), its inputs' gradients are needed twice and
    its weights' once: six products, as for the actor forwards twice (both losses) and backwards once (two products).
    """

    def products(fan_in: int, width: int, blocks: int, fan_out: int) -> int:
        return fan_in * width + blocks * 8 * width * width + width * fan_out

    critic = products(OBS + ACTION, config.critic_width, config.critic_blocks, 1)
    actor = products(OBS, config.actor_width, config.actor_blocks, 2 * ACTION)
    return 2.0 * BATCH * (6 * config.num_critics * critic + 4 * actor)


def traffic(agent: SAC) -> int:
    """Bytes that optimizers and target must move in one update, whatever else is kept in caches.

    AdamW reads a parameter, its gradient and two moments and writes all but the gradient; the target is read and
    written beside the parameter it follows.
    """
    critic = sum(parameter.numel() for parameter in agent.critic.parameters())
    actor = sum(parameter.numel() for parameter in agent.actor.parameters())
    return 4 * (7 * (actor + critic) + 3 * critic)


# The parts


def _update_together(stack: Agents, batch: Batch, device: str) -> None:
    stack.update(batch, stack.draw(BATCH).to(device))


def _update_in_turn(group: Sequence[Agent], batches: Sequence[Batch]) -> None:
    for agent, batch in zip(group, batches, strict=True):
        agent.learn(batch)


def learner_update(
    device: str, *flags: str, agents: int = 1
) -> Callable[[], tuple[Batch, dict[str, torch.Tensor]]]:
    """One SAC update of each agent as ``train.py --preset paper`` makes it, minibatch included: on CUDA one graph."""
    options = ["--algo", "sac", "--env", "h1-walk", "--preset", "paper", "--device", device, *flags]
    config, _ = loader.load(options)
    numerics = Numerics(config.precision, config.compile)
    sizes = (OBS, ACTION, 500)
    assert isinstance(config.agent, SACConfig)
    group = [SAC(config.agent, *sizes, seed, torch.device(device), numerics) for seed in range(agents)]
    shapes = (1_000, 1, (OBS,), (ACTION,), False, group[0].gamma)
    replay = FlatReplay(*shapes, device=device, num_runs=agents)
    random = np.random.default_rng(0)
    none = np.zeros(agents, bool)
    for _ in range(1_000):
        obs, action, next_obs = (random.uniform(-1, 1, (agents, size)) for size in (OBS, ACTION, OBS))
        replay.add(obs, action, np.ones(agents), none, none, next_obs)
    generators = [torch.Generator().manual_seed(seed) for seed in range(agents)]
    learner = make_learner(Agents(group, numerics, trace_from=0), replay, generators, config)
    return lambda: learner.learn(1)


def single(args: argparse.Namespace) -> dict[str, object]:
    """One SAC update at the paper's widths."""
    config, batch = SACConfig(), make_batch(0, device=args.device)
    ours = SAC(config, OBS, ACTION, 500, 0, torch.device(args.device))
    cleanrl = rivals.CleanRL(config, args.device)
    left, right, out = (torch.randn(SIZE, SIZE, device=args.device) for _ in range(3))
    still, moved = torch.ones(
        2, traffic(ours) // 8, device=args.device
    )  # 4 bytes read and 4 written a number
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: ours.learn(batch),
        "cleanrl": lambda: cleanrl.update(batch),
        "sgemm": lambda: torch.mm(left, right, out=out),
        "copy": lambda: moved.copy_(still),
    }
    if args.device == "cuda":
        contenders["captured"] = learner_update("cuda")
        contenders["captured, tf32"] = learner_update("cuda", "--precision", "tf32")
        contenders["leanrl"] = rivals.lean_update(config, batch, lambda body: capture(body, Side()))
    if importlib.util.find_spec("sbx"):
        contenders["sbx"] = rivals.sbx_update(config)
    if importlib.util.find_spec("stable_baselines3"):
        contenders["sb3"] = rivals.sb3_update(config, args.device)
    if args.simba:
        contenders["simba"] = rivals.simba_update(config, args.simba)
    seconds = take_turns(contenders, args.rounds, args.updates, args.device)
    need = flops(config) / (2.0 * SIZE**3)  # in units of the reference product
    figures: dict[str, object] = {"gflop": flops(config) / 1e9}
    figures["sgemm_gflop_per_second"] = 2.0 * SIZE**3 / statistics.median(seconds["sgemm"]) / 1e9
    arithmetic = [need * s for s in seconds["sgemm"]]
    floor = [a + m for a, m in zip(arithmetic, seconds["copy"], strict=True)]
    figures["floor_milliseconds"] = 1e3 * statistics.median(floor)
    for name in contenders:
        if name not in ("sgemm", "copy"):
            mine = {
                "milliseconds": 1e3 * statistics.median(seconds[name]),
                "share": ratio(seconds[name], arithmetic),
                "floor_share": ratio(seconds[name], floor),
                "ours_is_faster_by": ratio(seconds["ours"], seconds[name]),
            }
            if args.device == "cuda" and name in IN_PYTORCH:
                mine["busy_share"] = busy_share(contenders[name], 20)
            figures[name] = mine
    return figures


def several(args: argparse.Namespace) -> dict[str, object]:
    """One update of ``args.agents`` agents together, in units of as many single updates."""
    narrow = SACConfig(actor_width=64, critic_width=128, critic_blocks=1)  # of the quick preset's size
    device, number = torch.device(args.device), args.agents

    def sac(seed: int) -> SAC:
        return SAC(narrow, OBS, ACTION, 500, seed, device)

    def dqn(seed: int) -> DQN:
        return DQN(DQNConfig(), (OBS,), ACTION, 0, 100, seed, device)

    figures: dict[str, object] = {}
    if args.device == "cuda":
        captured = {"together": learner_update("cuda", agents=number), "one": learner_update("cuda")}
        seconds = take_turns(captured, args.rounds, 10 * args.updates, args.device)
        # The aim: five seeds in at most twice the time of one.
        times = ratio(seconds["one"], seconds["together"])
        figures["sac, paper widths, captured"] = {"together_in_times_of_one": times}
    cases = {"sac, actor 64, critics 128 x 1": (sac, None), "dqn, MLP 120-84": (dqn, ACTION)}
    for name, (make, actions) in cases.items():
        batches = [make_batch(seed, actions, args.device) for seed in range(number)]
        alone = [make(seed) for seed in range(number)]
        stack = Agents([make(seed) for seed in range(number)], trace_from=0)
        joined = Batch(*map(torch.stack, zip(*batches, strict=True)))
        contenders = {
            "together": partial(_update_together, stack, joined, args.device),
            "alone": partial(_update_in_turn, alone, batches),
        }
        seconds = take_turns(contenders, args.rounds, 10 * args.updates, args.device)
        figures[name] = {
            "together_milliseconds": 1e3 * statistics.median(seconds["together"]),
            "alone_milliseconds": 1e3 * statistics.median(seconds["alone"]),
            "together_is_faster_by": ratio(seconds["together"], seconds["alone"]),
        }
    return figures


def stack_step(num_runs: int, device: str) -> dict[str, Callable[[], object]]:
    """What the loop asks for in a step of ``num_runs`` small DQNs, environments aside."""
    num_envs, obs_dim, actions, batch_size, updates = 16, 4, 2, 64, 8
    config = DQNConfig(hidden_widths=(128, 128))
    where = torch.device(device)
    stack = Agents(
        [DQN(config, (obs_dim,), actions, 0, 100, seed, where) for seed in range(num_runs)], trace_from=0
    )
    replay = FlatReplay(10_000, num_envs, (obs_dim,), (), True, 0.99, device=device, num_runs=num_runs)
    random, columns = np.random.default_rng(0), num_runs * num_envs
    obs, next_obs = random.normal(size=(2, columns, obs_dim)).astype(np.float32)
    action, reward = random.integers(actions, size=columns), random.normal(size=columns).astype(np.float32)
    row = (obs, action, reward, random.random(columns) < 0.05, np.zeros(columns, bool), next_obs)
    for _ in range(50):
        replay.add(*row)
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_runs)]
    record = capture if device == "cuda" else None
    learning = (stack, replay, generators, batch_size, FLOAT32)
    learner = Learner(*learning) if record is None else GraphLearner(*learning, record)
    seen = obs.reshape(num_runs, num_envs, obs_dim)
    return {
        "act": lambda: stack.act(seen, 50),
        "store": lambda: replay.add(*row),
        "update": lambda: learner.learn(updates),
    }


def stacked(args: argparse.Namespace) -> dict[str, object]:
    """Milliseconds of a step by number of agents, and all of it in units of one agent's."""
    steps = {number: stack_step(number, args.device) for number in RUNS}
    calls = {f"{part} {number}": call for number, step in steps.items() for part, call in step.items()}
    seconds = take_turns(calls, args.rounds, args.updates, args.device)
    parts = list(steps[1])
    totals = {
        number: [sum(each) for each in zip(*(seconds[f"{part} {number}"] for part in parts), strict=True)]
        for number in RUNS
    }
    figures: dict[str, object] = {}
    for number in RUNS:
        milliseconds = {part: 1e3 * statistics.median(seconds[f"{part} {number}"]) for part in parts}
        in_units = ratio(totals[1], totals[number])
        figures[f"{number} agents"] = {"milliseconds": milliseconds, "in_steps_of_one": in_units}
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--updates", type=int, help="updates per turn (default: 2, on CUDA 50)")
    parser.add_argument("--agents", type=int, default=4, help="agents of the batched program (default: 4)")
    parser.add_argument("--simba", type=Path, metavar="PATH", help="checkout of SonyResearch/simba")
    parser.add_argument("--cases", nargs="+", choices=training.CASES, default=["sac-quick", "dqn-quick"])
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="of the training loop (default: 1 2)"
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="of the training loop and the reset (default: 1)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    args = parser.parse_args()
    if args.simba and not (args.simba / "scale_rl").is_dir():
        parser.error(f"--simba {args.simba}: no checkout of SonyResearch/simba (it has no folder scale_rl)")
    args.updates = args.updates or (50 if args.device == "cuda" else 2)
    torch.set_num_threads(1)
    keep_freed_memory()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    names = ("sbx-rl", "stable-baselines3", "jax", "flax")
    versions |= {name: importlib.metadata.version(name) for name in names if _installed(name)}
    record: dict[str, object] = {
        "date": date.today().isoformat(),
        "command": f"python -m benchmarks.throughput {' '.join(sys.argv[1:])}".strip(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU",
        "versions": versions,
    }
    measures: dict[str, Callable[[], object]] = {
        "update": lambda: single(args),
        "agents": lambda: {"number": args.agents, **several(args)},
        "stack": lambda: stacked(args),
        "training": lambda: training.measure(args.cases, args.threads, args.repeats, args.device),
        "reset": lambda: agent_cost(args.repeats, args.device),
    }
    for part in args.parts:
        record[part] = measures[part]()
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    main()
