"""The campaign on a GPU, part by part.

    python -m benchmarks.gpu check --output DIR     is it right? at most 3 minutes
    python -m benchmarks.gpu speed --output DIR     how fast is it? at most 6 minutes
    python -m benchmarks.gpu h1 --output DIR        FIRE's figure 4(b) on h1-walk; twice, at most 9.5 minutes each
    python -m benchmarks.gpu atari --output DIR     DQN on Asterix, none and FIRE from one midpoint; at most 9.5 minutes

Each part stops by itself, keeps in DIR what it has measured whatever happens, and goes on from there when it is called
again. ``--rehearse`` runs it on the CPU at tiny sizes, in a folder of its own. docs/gpu.md says more.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from common.threads import let_idle_threads_sleep

MINUTES = {"check": 3.0, "speed": 6.0, "h1": 9.5, "atari": 9.5}
ENDING = 10  # seconds kept back to save and to print


def main(argv: list[str]) -> int:
    """Run one part; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=MINUTES)
    parser.add_argument("--output", type=Path, required=True, help="folder of JSON, Markdown and figures")
    parser.add_argument(
        "--runs", type=Path, help="h1, atari: folder of the runs, large (default: OUTPUT/runs)"
    )
    parser.add_argument("--minutes", type=float, help="time of this call (default: that of the part)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument(
        "--seeds", type=int, default=3, help="h1, atari: seeds of each reset (default: 3; atari: 1)"
    )
    parser.add_argument(
        "--precision", choices=("float32", "tf32", "bf16"), default="float32", help="h1, atari"
    )
    args = parser.parse_args(argv)
    let_idle_threads_sleep()
    import torch

    from benchmarks.gpu.record import Record, TimeUp

    if not args.rehearse and not torch.cuda.is_available():
        print("error: PyTorch sees no CUDA device; --rehearse runs on the CPU", file=sys.stderr)
        return 2
    args.device = "cpu" if args.rehearse else "cuda"
    args.runs = args.runs or args.output / "runs"
    seconds = 60 * (args.minutes or MINUTES[args.part]) - (0 if args.rehearse else ENDING)
    part = importlib.import_module(f"benchmarks.gpu.{args.part}")
    record = Record(args.output, args.part, seconds, args.device, args.rehearse, shlex.join(argv))
    try:
        with record:
            part.run(record, args)
    except TimeUp:
        print(f"{args.part}: stopped; the same command goes on", flush=True)
    part.conclude(record, args)
    record.write()
    print(record.table())
    print(f"figures: {args.output / args.part}.json, .md" + ("" if not args.rehearse else " (rehearsal)"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
