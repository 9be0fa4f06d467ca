"""A continual-learning study on real images: which resets keep a small network able to learn?

    python -m benchmarks.continual --output results/continual
    python -m benchmarks.continual --tasks relabelled --output results/scales \\
        --methods "FIRE, norm preserved" "random orthogonal, scale mean singular value"

A network learns a sequence of tasks made from scikit-learn's 8 x 8 digits; at every task boundary a reset
is applied. ``relabelled``: 400 images get random labels, the score is the share memorised. ``permuted``:
the pixels are permuted and the true labels predicted, the score is test accuracy. All seeds of one method
run as one batched network (an ensemble with nothing shared), every method on the same first weights and the
same tasks. Writes a Markdown table, a PNG and JSON. Intervals are 95 % bootstrap intervals over seeds.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fire.metrics.cheap import measure
from fire.network.slot import NetworkSlot
from fire.options import FireOptions, IsometryOptions
from fire.resets.registry import REGISTRY, Reset, reset_networks

METHODS: dict[str, Reset] = {
    "none": REGISTRY["none"](),
    "optimizer only": REGISTRY["optimizer_only"](),
    "full": REGISTRY["full"](),
    "shrink and perturb": REGISTRY["shrink_perturb"](),
    "ReDo": REGISTRY["redo"](),
    "random orthogonal": REGISTRY["random_orthogonal"](),
    "FIRE, 10 cubic steps": REGISTRY["fire"](FireOptions(method="newton_schulz")),
    "FIRE": REGISTRY["fire"](),
    "FIRE, scale mean singular value": REGISTRY["fire"](FireOptions(scale="mean_singular_value")),
    "FIRE, norm preserved": REGISTRY["fire"](FireOptions(scale="preserve_norm")),
    "random orthogonal, scale mean singular value": REGISTRY["random_orthogonal"](
        IsometryOptions(scale="mean_singular_value")
    ),
}
COMPARED = tuple(METHODS)[:9]
CONTROLS = ("none", "optimizer only", "random orthogonal")  # drawn dashed
TASKS = ("relabelled", "permuted")
NUM_CLASSES = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
HIDDEN = (100, 100, 100)
MEMORISED_IMAGES = 400
TRAIN_IMAGES = 1200


class SeededLinear(nn.Module):
    """One linear layer for each of E seeds, on (E, B, in); He-normal weights, zero biases."""

    def __init__(
        self, num_seeds: int, in_features: int, out_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.randn(num_seeds, out_features, in_features, generator=generator)
        self.weight = nn.Parameter(weight * math.sqrt(2 / in_features))
        self.bias = nn.Parameter(torch.zeros(num_seeds, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """(E, B, in) to (E, B, out)."""
        # Transposed inside, so that the gradient of the weight comes out in the weight's own layout.
        return torch.baddbmm(self.bias.unsqueeze(-1), self.weight, x.mT).mT


def make_network(num_seeds: int, generator: torch.Generator) -> nn.Sequential:
    """A ReLU network 64-100-100-100-10 for every seed."""
    layers: list[nn.Module] = []
    inputs = 64
    for width in HIDDEN:
        layers += [SeededLinear(num_seeds, inputs, width, generator), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, SeededLinear(num_seeds, inputs, NUM_CLASSES, generator))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch, summed over seeds, so that seeds do not share gradients; (E, B, 10) and (E, B)."""
    losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view(labels.shape).mean(dim=1).sum()


def draw_task(
    kind: str, images: Tensor, labels: Tensor, num_seeds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images (E, N, 64) and labels (E, N) of the next task, another one for each seed."""
    orders = torch.stack([torch.randperm(len(images), generator=generator) for _ in range(num_seeds)])
    if kind == "relabelled":
        chosen = orders[:, :MEMORISED_IMAGES]
        random_labels = torch.randint(NUM_CLASSES, chosen.shape, generator=generator)
        return images[chosen], random_labels, images[chosen], random_labels
    pixels = torch.stack([torch.randperm(images.shape[1], generator=generator) for _ in range(num_seeds)])
    train, test = orders[:, :TRAIN_IMAGES], orders[:, TRAIN_IMAGES:]

    def permuted(chosen: Tensor) -> Tensor:
        return images[chosen].gather(2, pixels.unsqueeze(1).expand(-1, chosen.shape[1], -1))

    return permuted(train), labels[train], permuted(test), labels[test]


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Share of correct answers for each seed, (E,)."""
    with torch.no_grad():
        return (network(images).argmax(-1) == labels).float().mean(dim=1)


def run(
    kind: str, reset: Reset, num_seeds: int, num_tasks: int, steps: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Scores (seeds, tasks) at the end of every task, and plasticity metrics at the end of the last."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(data.target)

    network = make_network(num_seeds, torch.Generator().manual_seed(0))
    first = copy.deepcopy(network)
    slot = NetworkSlot(
        module=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True),
        build=lambda generator: make_network(num_seeds, generator),
        initial=lambda: copy.deepcopy(first),
        forward=lambda batch: network(batch[0]),
        loss=lambda batch: cross_entropy(network(batch[0]), batch[1]),
        ensemble_size=num_seeds,
    )
    tasks, order = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    scores = []
    for task in range(num_tasks):
        inputs, targets, test_inputs, test_targets = draw_task(kind, images, labels, num_seeds, tasks)
        if task > 0:
            reset_networks({"net": slot}, reset, (inputs, targets), torch.Generator().manual_seed(task))
        for _ in range(steps):
            rows = torch.randint(inputs.shape[1], (num_seeds, BATCH_SIZE), generator=order)
            batch = inputs.gather(1, rows.unsqueeze(-1).expand(-1, -1, 64)), targets.gather(1, rows)
            slot.optimizer.zero_grad()
            slot.loss(batch).backward()
            slot.optimizer.step()
        scores.append(accuracy(network, test_inputs, test_targets))
    return torch.stack(scores, dim=1).numpy(), measure({"net": slot}, (inputs, targets))


def bootstrap_interval(values: np.ndarray, resamples: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile interval of the mean over the first axis (seeds)."""
    rows = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    means = values[rows].mean(axis=1)
    return np.quantile(means, 0.025, axis=0), np.quantile(means, 0.975, axis=0)


def plot(results: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One panel for each kind of task: mean score with its interval over tasks."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results) + 2.5, 4.2), squeeze=False, layout="constrained"
    )
    for axis, (kind, methods) in zip(axes[0], results.items(), strict=True):
        for method, scores in methods.items():
            x = np.arange(1, scores.shape[1] + 1)
            style = "--" if method in CONTROLS else "-"
            (line,) = axis.plot(x, scores.mean(axis=0), style, label=method, linewidth=1.5)
            axis.fill_between(x, *bootstrap_interval(scores), color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(f"{kind} digits, {scores.shape[0]} seeds")
        axis.set_xlabel("task (a reset before each but the first)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("share memorised" if kind == "relabelled" else "test accuracy")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run every method on both kinds of task and write table, figure and scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(COMPARED))
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--num-tasks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400, help="gradient updates per task")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="path of the result files, without ending")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    start, processor_start = time.perf_counter(), time.process_time()
    results: dict[str, dict[str, np.ndarray]] = {}
    lines = [
        f"Date {datetime.date.today()}, torch {torch.__version__}, CPU, {args.threads} thread(s): {args.num_seeds}"
        f" seeds, {args.num_tasks} tasks of {args.steps} updates, reset at every task boundary.",
        "",
        "| tasks | reset | first task | second half of the tasks, 95 % interval | zero units | srank |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for kind in args.tasks:
        results[kind] = {}
        for method in args.methods:
            scores, metrics = run(kind, METHODS[method], args.num_seeds, args.num_tasks, args.steps)
            results[kind][method] = scores
            late = scores[:, args.num_tasks // 2 :].mean(axis=1)
            low, high = bootstrap_interval(late)
            lines.append(
                f"| {kind} | {method} | {scores[:, 0].mean():.3f} | {late.mean():.3f} [{low:.3f}, {high:.3f}] |"
                f" {metrics['plasticity/net/zero_activation_ratio']:.2f} | {metrics['plasticity/net/srank']:.0f} |"
            )
            print(lines[-1], flush=True)
    wall, processor = time.perf_counter() - start, time.process_time() - processor_start
    lines += ["", f"Took {wall:.0f} s, {processor:.0f} s of processor time."]
    print(lines[-1])
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
        plot(results, args.output.with_suffix(".png"))
        scores = {
            kind: {m: s.round(4).tolist() for m, s in methods.items()} for kind, methods in results.items()
        }
        args.output.with_suffix(".json").write_text(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
