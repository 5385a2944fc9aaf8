"""``regard compare``: runs side by side."""

import sys
from pathlib import Path

from regard.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Print what tells the runs apart, and write it with their curves to a page."""
    parser = Parser("compare", "Put runs side by side: their best figures, their settings, their curves.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run; two to eight of them")
    parser.add_argument(
        "--out", type=Path, default=Path("compare.html"), metavar="FILE", help="the page (default: compare.html)"
    )
    args = parser.parse(argv)

    from regard.explain.compare import as_text, read_runs, write_comparison

    runs = read_runs(args.runs)
    sys.stdout.write(as_text(runs))
    sys.stderr.write(f"regard: the page is {write_comparison(runs, args.out)}\n")
    return 0
