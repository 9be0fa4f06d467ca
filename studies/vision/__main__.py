"""Which resets let an image classifier go on learning when its data grow?

    python -m studies.vision                                                   # digits, a small CNN, minutes on a CPU
    python -m studies.vision --protocol continual --arms none full fire_paper
    python -m studies.vision --dataset cifar10 --data cifar-10-python.tar.gz --network resnet18 --precision bf16

The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.command import (
    SHARED_QUESTIONS,
    Parser,
    add_shared_flags,
    chosen_arms,
    main,
    positive,
    positive_float,
)

# Names as in data.py, networks.py and protocols.py, which import PyTorch; networks are the paper's for the data sets.
DATA_SETS = ("digits", "cifar10", "cifar100", "tiny_imagenet")
NETWORKS = ("small_cnn", "resnet18", "vit_tiny", "vgg16")
PROTOCOLS = ("warm_start", "continual", "class_incremental")
# Epochs of a chunk on digits: as published where there are two chunks; ten of them would take five times as long.
EPOCHS = {"warm_start": 100, "continual": 30, "class_incremental": 30}
PUBLISHED_EPOCHS = 100
ARMS = (
    "none",
    "full",
    "shrink_perturb",
    "dash",
    "redo",
    "cbp:maturity=100,replacement_rate=1e-3",  # as published it would not recycle any unit in a chunk of 600 updates
    "snr",
    "l2_init",
    "parseval",
    "random_orthogonal",
    "fire_paper",
)
# FIRE on the vision transformer as published: queries and keys only.
VIT_ARMS = (*ARMS[:-1], "fire_paper:include=*.to_q+*.to_k", "fire_paper")
QUESTIONS = {
    **SHARED_QUESTIONS,
    "scale": (
        *SHARED_QUESTIONS["scale"],
        "random_orthogonal",
        "random_orthogonal:scale=mean_singular_value",
    ),
    "layers": (
        "none",
        "fire_paper",
        "fire_paper:roles=hidden",
        "fire_paper:roles=input+hidden",
        "fire_paper:roles=input",
    ),
    "repeated": ("none", "fire_paper", "fire_paper@1", "fire_paper@5", "fire_paper@9"),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ConfigError: an unknown flag or value.
    """
    parser = Parser(
        "python -m studies.vision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shared_flags(parser, arms=ARMS, questions=QUESTIONS, output="runs/vision")
    group = parser.add_argument_group("study")
    group.add_argument("--protocol", choices=PROTOCOLS, default="warm_start", help="(default: %(default)s)")
    group.add_argument("--dataset", choices=DATA_SETS, default="digits", help="(default: %(default)s)")
    group.add_argument(
        "--data", type=Path, metavar="PATH", help="archive or folder of the data set; digits need none"
    )
    group.add_argument(
        "--network", choices=NETWORKS, help="(default: small_cnn for digits, the paper's pair for the others)"
    )
    group.add_argument(
        "--epochs",
        type=positive,
        help="of a chunk (default: 100 as published; 30 for digits with many chunks)",
    )
    group.add_argument("--batch-size", type=positive, default=256, help="(default: %(default)s)")
    group.add_argument(
        "--learning-rate", type=positive_float, default=1e-3, help="of Adam (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    args.network = args.network or dict(zip(DATA_SETS, NETWORKS, strict=True))[args.dataset]
    args.epochs = args.epochs or (EPOCHS[args.protocol] if args.dataset == "digits" else PUBLISHED_EPOCHS)
    args.arms = chosen_arms(args, VIT_ARMS if args.network == "vit_tiny" else ARMS, QUESTIONS)
    return args


def run(args: argparse.Namespace) -> str:
    """Run the study and return its table."""
    # PyTorch is imported here, so that --help and a misspelt flag are answered at once.
    import torch
    from torch import nn

    from agents.make import pick_device
    from studies.arms import parse_arm
    from studies.chunks import Batch, Recipe, Study, drawn
    from studies.runner import run_study
    from studies.vision.data import load_images
    from studies.vision.networks import NETWORKS as MAKERS
    from studies.vision.protocols import chunk_of, portions

    arms = [parse_arm(spec) for spec in args.arms]
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    data = load_images(args.dataset, args.data)
    channels, side = data.images.shape[1:3]
    MAKERS[args.network](channels, side, data.num_classes)  # its errors before the data move
    data = data.to(device)

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(module(batch[0]).float(), batch[1])

    settings = (
        "protocol",
        "dataset",
        "network",
        "epochs",
        "batch_size",
        "learning_rate",
        "optimizer",
        "evaluations",
    )
    study = Study(
        settings={"study": "vision", "precision": args.precision}
        | {key: getattr(args, key) for key in settings},
        build=lambda generator: drawn(
            lambda: MAKERS[args.network](channels, side, data.num_classes), generator
        ),
        loss=loss,
        chunks=lambda seed: [
            chunk_of(portion, data, args.epochs, args.batch_size)
            for portion in portions(args.protocol, data, seed)
        ],
        recipe=Recipe(
            optimizer=lambda module: torch.optim.Adam(module.parameters(), lr=args.learning_rate),
            fresh_optimizer=args.optimizer == "fresh",
            evaluations=args.evaluations,
            precision=args.precision,
            compile=args.compile,
        ),
        metrics={"test_accuracy": "test accuracy"},
        device=device,
    )
    return run_study(study, arms, range(args.seeds), args.output)


if __name__ == "__main__":
    sys.exit(main(parse, run, sys.argv[1:]))
