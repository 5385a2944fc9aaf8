"""``regard find``: how much to put into a batch, and the learning rate to begin with."""

import shlex
import sys
from pathlib import Path

from regard.cli.parser import Parser, positive

USAGE = "regard find RECIPE [--FIELD VALUE ...] [--only batch|rate] [--steps N] [--out FILE]"
EPILOG = """\
The batch first: data.max_tokens is doubled for as long as it makes training faster and fits into the memory. Then, with
that batch, the rate is raised step by step until the loss is lost. No run is touched, and nothing but the page is kept.
"""


def run(argv: list[str]) -> int:
    """Measure, print what was found and the options to use, and write the page."""
    parser = Parser("find", "Find a batch size and a learning rate to begin with.", usage=USAGE, epilog=EPILOG)
    parser.add_argument("what", metavar="RECIPE", help="a recipe's name; its fields are set as for 'regard train'")
    parser.add_argument("--only", choices=("batch", "rate"), help="find one alone (default: both)")
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="of the rising rate (default: 100)")
    parser.add_argument(
        "--out", type=Path, default=Path("find.html"), metavar="FILE", help="the page (default: find.html)"
    )
    args, fields = parser.parse_known_args(argv)

    from regard.explain.find import rate_lines, size_lines, write_found
    from regard.recipes import find
    from regard.train.find import find_rate, find_size
    from regard.train.recipe import override

    prog = f"regard train {args.what}"
    recipe = override(find(args.what), fields, prog, parser.names)
    sizes = rates = None
    options: list[str] = []
    if args.only != "rate":
        sizes = find_size(recipe)
        sys.stdout.writelines(f"{line}\n" for line in [*size_lines(sizes), ""])
        options += ["--data.max-tokens", str(sizes.proposed)]
        recipe = override(recipe, options, prog)
    if args.only != "batch":
        rates = find_rate(recipe, args.steps)
        sys.stdout.writelines(f"{line}\n" for line in [*rate_lines(rates), ""])
        options += ["--schedule.lr", f"{rates.proposed:g}"]
    command = shlex.join(["regard", "train", args.what, *fields, *options])
    sys.stdout.write(f"{command}\n")
    sys.stderr.write(
        f"regard: the page is {write_found(f'To begin with: {args.what}', sizes, rates, command, args.out)}\n"
    )
    return 0
