"""Write the report on runs or on an experiment: a page, figures, tables.

python report.py runs/demo
python report.py runs/dqn-CartPole-v1-*-quick-seed*
python report.py --help
"""

from __future__ import annotations

import argparse
import signal
import sys
import webbrowser
from pathlib import Path

if __name__ == "__main__":  # nothing here needs more of Ctrl-C than the end
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from common.files import RunFileError
from configs.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python report.py",
        description="Write a report: report.html (one page, no network needed), report.md, PNG and CSV files.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="RUN|EXPERIMENT",
        help="run folders, folders that hold some, or one experiment: its folder or its YAML file",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the report (default: beside what it reports on)"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="METHOD",
        help="methods with which the others are compared (default: the baseline, and fire)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="FACTOR",
        help="factors whose combinations are the methods, such as agent.layer_norm reset (default: the reset)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    args = parser.parse_args(argv)

    from reports.write import write_report

    try:
        path = write_report(args.sources, args.output, args.against, args.compare)
    except (ConfigError, RunFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"report: {path}")
    if args.open and not webbrowser.open(path.resolve().as_uri()):
        print("no browser found; open the page yourself", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
