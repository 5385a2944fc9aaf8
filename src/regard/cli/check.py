"""``regard check``: the conformance suite over one model."""

import json
import sys
from dataclasses import asdict

from regard.cli.parser import Parser
from regard.cli.show import is_size


def run(argv: list[str]) -> int:
    """Check a model, a line for each check; 1 if one fails."""
    parser = Parser("check", "Run the conformance suite over a model: a line for each check.")
    parser.add_argument("model", metavar="MODEL", help="a size, or the folder of a checkpoint or run")
    parser.add_argument("--sections", metavar="LETTERS", help="only these, such as AC (default: all)")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    args = parser.parse(argv)
    is_size(args.model)

    from regard.testing import check_model

    report = check_model(args.model, sections=args.sections)
    rows = [asdict(row) for row in report.rows]
    sys.stdout.write((json.dumps(rows, indent=2) if args.json else str(report)) + "\n")
    return 1 if report.failures else 0
