"""``regard check``: the conformance suite over one model."""

import json
import sys

from regard.cli.parser import Parser


def run(argv: list[str]) -> int:
    """Check a model; 1 if a check fails."""
    parser = Parser("check", "Run the conformance suite over a model: a line for each check.")
    parser.add_argument("model", metavar="MODEL", help="a size, or the folder of a checkpoint or run")
    parser.add_argument("--sections", metavar="ABC", help="only these sections (default: all that apply)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    args = parser.parse(argv)

    from regard.testing import check_model

    report = check_model(args.model, sections=args.sections)
    if args.json:
        sys.stdout.write(json.dumps([vars(row) for row in report.rows], indent=2) + "\n")
    else:
        width = max(len(row.name) for row in report.rows)
        for row in report.rows:
            reason = f"  {row.reason}" if row.reason else ""
            sys.stdout.write(f"{row.section}  {row.name:<{width}}  {row.status:<14}  {row.seconds:6.2f} s{reason}\n")
    return int(any(row.status == "failed" for row in report.rows))
