"""Which resets keep a small network able to learn one task after another, made of scikit-learn's 8 x 8 digits?

    python -m studies.digits                                              # 9 methods, 2 kinds of tasks, 13 CPU minutes
    python -m studies.digits --tasks relabelled --output runs/scales \\
        --arms fire_paper:scale=preserve_norm random_orthogonal:scale=mean_singular_value

Before each task but the first a reset is applied. ``relabelled``: 400 images get random labels, the score is the share
memorised. ``permuted``: the pixels are permuted and the true labels predicted, the score is test accuracy. All seeds of
an arm run as one batched network (an ensemble with nothing shared), every arm on the same first weights and the same
tasks. Intervals are 95 % bootstrap intervals over seeds. --output gets summary.md, figure.png and scores.json.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from common.files import replace_bytes, to_json
from common.stats import bootstrap_interval
from configs.errors import ConfigError
from fire.metrics.cheap import measure
from fire.network.slot import NetworkSlot
from fire.resets.registry import Reset, reset_networks
from studies.arms import Arm, parse_arm
from studies.command import Parser, chosen_arms, positive
from studies.command import main as command
from studies.figures import CONTROLS
from studies.vision.data import load_images

ARMS = (
    "none",
    "optimizer_only",
    "full",
    "shrink_perturb",
    "redo",
    "random_orthogonal",
    "fire_paper:method=newton_schulz",
    "fire_paper",
    "fire_paper:scale=mean_singular_value",
)
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


def scores_of(
    kind: str, reset: Reset, num_seeds: int, num_tasks: int, steps: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Scores (seeds, tasks) at the end of every task, and plasticity metrics at the end of the last."""
    data = load_images("digits", None)
    images = torch.cat([data.images, data.test_images]).flatten(1).float()
    images = (images - images.mean()) / images.std()
    labels = torch.cat([data.labels, data.test_labels])

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


def plot(results: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """One panel for each kind of task: mean score with its interval over tasks."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(5 * len(results) + 2.5, 4.2), squeeze=False, layout="constrained"
    )
    for axis, (kind, arms) in zip(axes[0], results.items(), strict=True):
        for arm, scores in arms.items():
            x = np.arange(1, scores.shape[1] + 1)
            style = "--" if arm in CONTROLS else "-"
            (line,) = axis.plot(x, scores.mean(axis=0), style, label=arm, linewidth=1.5)
            low, high = zip(*(bootstrap_interval(task) for task in scores.T), strict=True)
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axis.set_title(f"{kind} digits, {scores.shape[0]} seeds")
        axis.set_xlabel("task (a reset before each but the first)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel("share memorised" if kind == "relabelled" else "test accuracy")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ConfigError: an unknown flag, value or arm.
    """
    parser = Parser(
        "python -m studies.digits", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", metavar="ARM", help=f"(default: {' '.join(ARMS)})")
    parser.add_argument("--seeds", type=positive, default=8, help="seeds 0, 1, ... (default: %(default)s)")
    parser.add_argument("--num-tasks", type=positive, default=20, help="(default: %(default)s)")
    parser.add_argument(
        "--steps", type=positive, default=400, help="gradient updates per task (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/digits"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.set_defaults(question=None)
    args = parser.parse_args(argv)
    args.arms = [_between_tasks(parse_arm(spec)) for spec in chosen_arms(args, ARMS, {})]
    return args


def _between_tasks(arm: Arm) -> Arm:
    """Return ``arm``; ConfigError if it does more than reset before every task, which nothing here would heed."""
    if arm.borders or arm.ewc or arm.l2_init or arm.parseval or arm.reset.tracker() is not None:
        raise ConfigError(f"arm {arm.spec}: only what a reset does before every task is studied here")
    return arm


def run(args: argparse.Namespace) -> str:
    """Run every arm on every kind of tasks, print its row, write the files; returns the last line of the table."""
    torch.set_num_threads(args.threads)
    start, processor_start = time.perf_counter(), time.process_time()
    results: dict[str, dict[str, np.ndarray]] = {}
    lines = [
        f"Date {datetime.date.today()}, torch {torch.__version__}, CPU, {args.threads} thread(s): {args.seeds}"
        f" seeds, {args.num_tasks} tasks of {args.steps} updates, reset at every task boundary.",
        "",
        "| tasks | reset | first task | second half of the tasks | 95 % interval | zero units | srank |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for kind in args.tasks:
        results[kind] = {}
        for arm in args.arms:
            scores, metrics = scores_of(kind, arm.reset, args.seeds, args.num_tasks, args.steps)
            results[kind][arm.spec] = scores
            late = scores[:, args.num_tasks // 2 :].mean(axis=1)
            low, high = bootstrap_interval(late)
            lines.append(
                f"| {kind} | `{arm.spec}` | {scores[:, 0].mean():.3f} | {late.mean():.3f} | {low:.3f} to {high:.3f} |"
                f" {metrics['plasticity/net/zero_activation_ratio']:.2f} | {metrics['plasticity/net/srank']:.0f} |"
            )
            print(lines[-1], flush=True)
    wall, processor = time.perf_counter() - start, time.process_time() - processor_start
    lines += ["", f"Took {wall:.0f} s, {processor:.0f} s of processor time.", ""]
    args.output.mkdir(parents=True, exist_ok=True)
    replace_bytes(args.output / "summary.md", "\n".join(lines).encode())
    plot(results, args.output / "figure.png")
    rounded = {
        kind: {arm: scores.round(4).tolist() for arm, scores in arms.items()}
        for kind, arms in results.items()
    }
    replace_bytes(args.output / "scores.json", (to_json(rounded) + "\n").encode())
    return "\n".join(lines[-3:])


if __name__ == "__main__":
    sys.exit(command(parse, run, sys.argv[1:], "stopped; the same command begins anew"))
