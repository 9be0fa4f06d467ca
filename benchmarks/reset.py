"""Time and accuracy of FIRE's orthogonalization, and of ``fire_`` with its report, against the published algorithm.

    python -m benchmarks.reset --networks nature_cnn simba --repeats 7
    python -m benchmarks.reset --networks resnet18 transformer mlp4096 --repeats 1
    python -m benchmarks.reset --networks --agent fire fire_paper     # one reset in env steps and gradient updates

The rival is the published formula (FIRE algorithm 1, ten cubic steps, one slice at a time, float32). Repetitions
are interleaved and, on CPU, processor time is counted, so that the ratio survives a busy machine. Accuracy is the
worst over the checked matrices (at most ``--checked`` of each shape) against a float64 SVD. Ill-conditioned weights
have geometrically spaced singular values, condition number 1e6.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import datetime
import json
import math
import platform
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.timing import clock
from fire import fire_
from fire.network.layers import weight_layers
from fire.polar.factors import polar_factors
from fire.polar.isometry import dfi
from fire.resets.registry import make_reset, reset_networks

Result = TypeVar("Result")


def nature_cnn(actions: int = 18) -> nn.Module:
    """Mnih et al. 2015 on 4 x 84 x 84 frames."""
    return nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.Conv2d(32, 64, 4, 2),
        nn.Conv2d(64, 64, 3, 1),
        nn.Linear(3136, 512),
        nn.Linear(512, actions),
    )


def simba(observation: int = 51, action: int = 19) -> nn.Module:
    """SimBa's SAC (arXiv 2410.09754) on h1-walk: actor of width 128, twin critics of width 512."""

    def body(inputs: int, width: int, blocks: int) -> list[nn.Module]:
        layers: list[nn.Module] = [nn.Linear(inputs, width)]
        for _ in range(blocks):
            layers += [nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]
        return layers

    actor = [*body(observation, 128, 1), nn.Linear(128, action), nn.Linear(128, action)]
    critics = [layer for _ in range(2) for layer in [*body(observation + action, 512, 2), nn.Linear(512, 1)]]
    return nn.Sequential(*actor, *critics)


def resnet18(classes: int = 10) -> nn.Module:
    """Convolutions and head of ResNet-18 with a 3 x 3 stem (He et al. 2016)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3)]
    inputs = 64
    for width in (64, 128, 256, 512):
        layers += [nn.Conv2d(inputs, width, 3), nn.Conv2d(width, width, 3)]
        layers += [nn.Conv2d(inputs, width, 1)] if inputs != width else []
        layers += [nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(512, classes))


def transformer(depth: int = 12, width: int = 768) -> nn.Module:
    """Weights of a 12-layer GPT-2 without embeddings, query, key and value apart."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width) for _ in range(4)]
        layers += [nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]
    return nn.Sequential(*layers)


def mlp4096() -> nn.Module:
    """A wide MLP: 1024, 4096, 4096, 10."""
    return nn.Sequential(nn.Linear(1024, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "nature_cnn": nature_cnn,
    "simba": simba,
    "resnet18": resnet18,
    "transformer": transformer,
    "mlp4096": mlp4096,
}


def published(tensors: list[Tensor], num_iters: int = 10) -> list[Tensor]:
    """Ten cubic Newton-Schulz steps, one slice at a time."""
    results = []
    for tensor in tensors:
        result = torch.empty_like(tensor)
        for index in range(tensor[..., 0, 0].numel()):
            matrix = tensor.reshape(-1, *tensor.shape[-2:])[index]
            x = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
            x = x / x.norm()
            for _ in range(num_iters):
                x = 1.5 * x - 0.5 * x @ (x.T @ x)
            result.view(-1, *tensor.shape[-2:])[index] = x if x.shape == matrix.shape else x.T
        results.append(result)
    return results


def ours(tensors: list[Tensor]) -> list[Tensor]:
    """The polar factors alone."""
    return [solution.factors for solution in polar_factors(tensors)]


METHODS: dict[str, Callable[[list[Tensor]], list[Tensor]]] = {
    "published": published,
    "fire.polar_factors": ours,
}


@torch.no_grad()
def weights_of(module: nn.Module, ill_conditioned: bool, device: str) -> list[Tensor]:
    """Give ``module`` Xavier weights, or some with singular values from 1 down to 1e-6, and return them as matrices."""
    matrices = []
    for layer in weight_layers(module):
        nn.init.xavier_uniform_(layer.weight)
        weight = layer.matrices().clone()
        if ill_conditioned:
            short = min(weight.shape[-2:])
            left = torch.linalg.qr(torch.randn(*weight.shape[:-1], short))[0]
            right = torch.linalg.qr(torch.randn(*weight.shape[:-2], weight.shape[-1], short))[0]
            weight = (left * torch.logspace(0, -6, short)) @ right.mT
            layer.weight.copy_(layer.weight_from(weight))
        matrices.append(weight.to(device))
    return matrices


class PeakMemory:
    """Largest growth of memory inside the context, in bytes: resident set on CPU, allocator on CUDA."""

    def __init__(self, device: str) -> None:
        self.device, self.peak = device, 0

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide what the call allocates
            self.start = self._resident()
            self.running = True
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device == "cuda":
            self.peak = torch.cuda.max_memory_allocated() - self.start
        else:
            self.running = False
            self.thread.join()

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, self._resident() - self.start)
            time.sleep(0.001)

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def timed(
    method: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor], device: str
) -> tuple[list[Tensor], float, float]:
    """Results, seconds and peak memory in MB of one call."""
    with PeakMemory(device) as memory:
        start = clock(device)
        results = method(tensors)
        seconds = clock(device) - start
    return results, seconds, memory.peak / 1e6


def accuracy(tensors: list[Tensor], results: list[Tensor], checked: int) -> tuple[float, float, float]:
    """Worst DfI, relative DfI (||Q^T Q - I||_F / sqrt n) and distance / sqrt n to the float64 polar factor."""
    seen: dict[torch.Size, int] = {}
    deviation, relative, distance = 0.0, 0.0, 0.0
    for tensor, result in zip(tensors, results, strict=True):
        pairs = zip(
            tensor.reshape(-1, *tensor.shape[-2:]), result.reshape(-1, *tensor.shape[-2:]), strict=True
        )
        for matrix, factor in pairs:
            short = min(matrix.shape)
            own = float(dfi(factor))
            deviation, relative = max(deviation, own), max(relative, math.sqrt(own / short))
            seen[matrix.shape] = seen.get(matrix.shape, 0) + 1
            if seen[matrix.shape] <= checked:
                left, _, right = torch.linalg.svd(matrix.double().cpu(), full_matrices=False)
                gap = torch.linalg.matrix_norm(factor.double().cpu() - left @ right) / math.sqrt(short)
                distance = max(distance, float(gap))
    return deviation, relative, distance


def run(name: str, ill_conditioned: bool, repeats: int, checked: int, device: str) -> dict[str, Any]:
    """One network with one kind of weights: interleaved times, memory, then accuracy."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    tensors = weights_of(module, ill_conditioned, device)
    seconds: dict[str, list[float]] = {method: [] for method in (*METHODS, "fire_")}
    peaks: dict[str, list[float]] = {method: [] for method in METHODS}
    results: dict[str, list[Tensor]] = {}
    for _ in range(repeats):
        for method, call in METHODS.items():
            results[method], duration, peak = timed(call, tensors, device)
            seconds[method].append(duration)
            peaks[method].append(peak)
        network = copy.deepcopy(module).to(device)
        start = clock(device)
        fire_(network)
        seconds["fire_"].append(clock(device) - start)
    row: dict[str, Any] = {"network": name, "weights": "ill-conditioned" if ill_conditioned else "init"}
    row["fire_"] = {"seconds": statistics.median(seconds["fire_"])}
    for method in METHODS:
        deviation, relative, distance = accuracy(tensors, results[method], checked)
        row[method] = {
            "seconds": statistics.median(seconds[method]),
            "dfi": deviation,
            "relative_dfi": relative,
            "distance": distance,
            "peak_memory_mb": max(peaks[method]),
        }
    for key, method in (("ratio", "fire.polar_factors"), ("ratio_with_report", "fire_")):
        pairs = zip(seconds["published"], seconds[method], strict=True)
        row[key] = statistics.median(own / theirs for theirs, own in pairs)
    return row


def agent_cost(repeats: int, device: str, reset_name: str = "fire") -> dict[str, float]:
    """Seconds of an env step, an update with its minibatch and a reset of SAC on h1-walk, and the last in units of
    the others.
    """
    from agents import make_agent, make_replay
    from agents.learner import Agents, make_learner
    from configs import loader
    from envs import make_training_env

    flags = {"algo": "sac", "env": "h1-walk", "reset": reset_name, "preset": "paper", "total-steps": "6000"}
    config, _ = loader.load([word for name, value in flags.items() for word in (f"--{name}", value)])
    env = make_training_env(config)
    spaces = env.observation_space, env.action_space
    agent = make_agent(config, *spaces, env.max_episode_steps, torch.device(device))
    replay = make_replay(config, *spaces, agent.gamma, torch.device(device))
    reset = make_reset(config.reset.strategy, config.reset.options)
    generator = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"env step": [], "gradient update": [], "reset": []}

    def timed_call(name: str, call: Callable[[], Result]) -> Result:
        start = clock(device)
        result = call()
        seconds[name].append(clock(device) - start)
        return result

    obs = env.reset(0)
    for _ in range(600):
        action = env.random_action()
        step = timed_call("env step", partial(env.step, action))
        replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
        obs = step.obs
    env.close()
    learner = make_learner(
        Agents([agent], trace_from=0), replay, [generator], config
    )  # on CUDA a captured graph, as in training
    for _ in range(repeats):
        learner.learn(1)  # records the graph
        for _ in range(20):
            batch, _ = timed_call("gradient update", partial(learner.learn, 1))
        probe = batch.run(0)
        timed_call("reset", partial(reset_networks, agent.networks(), reset, probe, generator))
    figures = {name: statistics.median(values) for name, values in seconds.items()}
    figures["env step"] /= config.env.num_envs
    for unit in ("env step", "gradient update"):
        figures[f"in {unit}s"] = figures["reset"] / figures[unit]
    return figures


def agent_sentence(reset_name: str, cost: dict[str, float]) -> str:
    """What :func:`agent_cost` measured, in words."""
    return (
        f"One reset by --reset {reset_name} of the SAC agent on h1-walk, with its report: {cost['reset']:.3g} s ="
        f" {cost['in env steps']:.0f} env steps of {1e3 * cost['env step']:.3g} ms"
        f" = {cost['in gradient updates']:.1f} gradient updates of {1e3 * cost['gradient update']:.3g} ms."
    )


def main() -> None:
    """Run the chosen networks and print a Markdown table; ``--output`` also writes it, with JSON beside it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--agent",
        nargs="+",
        default=[],
        metavar="NAME",
        help="resets of the SAC agent on h1-walk to time, too",
    )
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--checked", type=int, default=2, help="matrices of one shape compared with an SVD")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    lines = [
        f"Date {datetime.date.today()}, torch {torch.__version__}, {hardware}, {args.threads} thread(s),"
        f" {args.repeats} interleaved repetitions.",
        "",
        "| network | weights | published s | ours s | ratio | ratio of fire_ | DfI published / ours | relative DfI |"
        " distance | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    rows = []
    for name in args.networks:
        for ill_conditioned in (False, True):
            row = run(name, ill_conditioned, args.repeats, args.checked, args.device)
            rows.append(row)
            theirs, own = row["published"], row["fire.polar_factors"]
            cells = [name, row["weights"], f"{theirs['seconds']:.3g}", f"{own['seconds']:.3g}"]
            cells += [f"{row['ratio']:.2f}", f"{row['ratio_with_report']:.2f}"]
            for key in ("dfi", "relative_dfi", "distance"):
                cells.append(f"{theirs[key]:.1e} / {own[key]:.1e}")
            cells.append(f"{theirs['peak_memory_mb']:.0f} / {own['peak_memory_mb']:.0f}")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    for name in args.agent:
        lines += ["", agent_sentence(name, agent_cost(args.repeats, args.device, name))]
        print(lines[-1])
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text("\n".join(lines) + "\n")
        args.output.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
