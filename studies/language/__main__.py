"""Which resets let a language model learn a second corpus, and what do they leave of the first?

    python -m studies.language                                       # Python's documentation, then its source
    python -m studies.language --question steps
    python -m studies.language --corpus-a wikitext.txt --corpus-b texts/ --depth 12 --width 768 --heads 12 \\
        --context 1024 --precision bf16 --compile

A GPT is trained on corpus A, reset, and trained on a mixture of A and B. Both held-out losses are in nats per byte,
whatever the tokens. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from configs.errors import ConfigError
from studies.command import (
    SHARED_QUESTIONS,
    Parser,
    add_shared_flags,
    chosen_arms,
    main,
    positive,
    positive_float,
    share,
)

FIVE_STEPS = "fire_paper:method=newton_schulz,num_iters=5,tied=change"
ARMS = (
    "none",
    "full",
    "shrink_perturb:shrink_factor=0.5",
    FIVE_STEPS,
    "fire_paper:tied=change",
    "fire_paper",
    "fire_paper:include=*.qkv,parts=0+1",
)
QUESTIONS = {
    **SHARED_QUESTIONS,
    "layers": (
        "none",
        "fire_paper",
        "fire_paper:tied=change",
        "fire_paper:include=*.qkv,parts=0+1",
        "fire_paper:include=*.qkv",
        "fire_paper:include=*.up+*.down",
        "random_orthogonal:include=*.up+*.down",
    ),
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line.

    Raises:
        ConfigError: an unknown flag or value.
    """
    parser = Parser(
        "python -m studies.language",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_shared_flags(parser, arms=ARMS, questions=QUESTIONS, output="runs/language")
    data = parser.add_argument_group("corpora")
    data.add_argument(
        "--corpus-a",
        type=Path,
        metavar="PATH",
        help="text or Parquet file, or a folder of them (default: pydoc_data)",
    )
    data.add_argument(
        "--corpus-b", type=Path, metavar="PATH", help="(default: source of the standard library)"
    )
    data.add_argument(
        "--share-of-a", type=share, default=0.1, help="of the crops after the border (default: %(default)s)"
    )
    data.add_argument(
        "--max-bytes",
        type=positive,
        help="take the first so many of each corpus (default: all, 2 GiB at most)",
    )
    data.add_argument(
        "--tokenizer",
        default="bytes",
        metavar="bytes|bpe|FILE",
        help="every byte a token, byte pairs learned from both corpora, or those of a tokenizer.json "
        "(default: %(default)s)",
    )
    data.add_argument(
        "--vocabulary", type=positive, default=2048, help="tokens of --tokenizer bpe (default: %(default)s)"
    )
    data.add_argument("--prompt", default="def ", help="what samples begin with (default: %(default)r)")
    model = parser.add_argument_group("model")
    for name, default in (("depth", 4), ("width", 128), ("heads", 4), ("context", 64)):
        model.add_argument(f"--{name}", type=positive, default=default, help="(default: %(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--updates-a", type=positive, default=1000, help="on corpus A (default: %(default)s)"
    )
    training.add_argument(
        "--updates-b", type=positive, default=280, help="on the mixture (default: %(default)s)"
    )
    training.add_argument("--batch-size", type=positive, default=16, help="crops (default: %(default)s)")
    training.add_argument(
        "--learning-rate",
        type=positive_float,
        default=1e-3,
        help="of AdamW, the largest (default: %(default)s)",
    )
    training.add_argument(
        "--validation-crops", type=positive, default=64, help="of each corpus (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if not args.prompt:
        raise ConfigError("--prompt must not be empty: samples begin with it")
    args.arms = chosen_arms(args, ARMS, QUESTIONS)
    return args


def run(args: argparse.Namespace) -> str:
    """Run the study and return its tables."""
    # PyTorch is imported here, so that --help and a misspelt flag are answered at once.
    import torch
    from torch import nn

    from agents.make import pick_device
    from studies.arms import parse_arm
    from studies.chunks import Recipe, Study, drawn
    from studies.language.data import (
        chunk_of,
        documentation,
        loss_of,
        make_corpus,
        read_text,
        split,
        standard_library,
    )
    from studies.language.gpt import FUSED, GPT, adamw, continuation
    from studies.language.tokens import make_tokenizer
    from studies.runner import run_study

    arms = [parse_arm(spec) for spec in args.arms]
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    texts = [
        built_in()[: args.max_bytes] if path is None else read_text(path, args.max_bytes)
        for path, built_in in ((args.corpus_a, documentation), (args.corpus_b, standard_library))
    ]
    names = (str(args.corpus_a or "documentation"), str(args.corpus_b or "standard library"))
    tokenizer = make_tokenizer(
        args.tokenizer, [part for text in texts for part in split(text)[0]], args.vocabulary
    )
    a, b = (
        make_corpus(name, text, args.context, tokenizer).to(device)
        for name, text in zip(names, texts, strict=True)
    )

    def make() -> nn.Module:
        return GPT(
            tokenizer.vocabulary, args.context, depth=args.depth, width=args.width, num_heads=args.heads
        )

    def sample(module: nn.Module) -> str:
        assert isinstance(module, GPT)
        prompt = tokenizer.encode([args.prompt.encode()]).long().to(device)
        module.eval()
        text = continuation(module, prompt, 300, torch.Generator().manual_seed(0))
        return tokenizer.decode(text.tolist())

    make()  # its errors before any training
    crops = {
        "batch_size": args.batch_size,
        "context": args.context,
        "validation_crops": args.validation_crops,
    }
    settings = (
        *("depth", "width", "heads", "context", "updates_a", "updates_b", "batch_size", "learning_rate"),
        *("share_of_a", "validation_crops", "optimizer", "evaluations", "precision"),
    )
    study = Study(
        settings={
            "study": "language",
            "corpora": [f"{c.name}, {c.num_bytes} bytes, {c.digest}" for c in (a, b)],
            "tokenizer": tokenizer.name,
        }
        | {key: getattr(args, key) for key in settings},
        build=lambda generator: drawn(make, generator),
        loss=loss_of,
        chunks=lambda seed: [
            chunk_of("A", (a, b), 1.0, args.updates_a, **crops),
            chunk_of("A and B", (a, b), args.share_of_a, args.updates_b, **crops),
        ],
        recipe=Recipe(
            optimizer=lambda module: adamw(module, args.learning_rate),
            schedule="cosine",
            max_warmup=2_000,
            clip=1.0,
            fresh_optimizer=args.optimizer == "fresh",
            evaluations=args.evaluations,
            precision=args.precision,
            compile=args.compile,
        ),
        metrics={"loss_b": "loss on B (nats per byte)", "loss_a": "loss on A (nats per byte)"},
        device=device,
        fused=FUSED,
        sample=sample,
    )
    return run_study(study, arms, range(args.seeds), args.output)


if __name__ == "__main__":
    sys.exit(main(parse, run, sys.argv[1:]))
