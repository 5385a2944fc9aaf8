"""``regard train``: learn a model by a recipe, go on with a run, or run a run's recipe again."""

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.parser import Parser
from regard.core.errors import ConfigError

if TYPE_CHECKING:
    from regard.train.recipe import Recipe

USAGE = "regard train RECIPE [--FIELD VALUE ...] [--out DIR] [--resume] [--nproc N] [--quiet]"
EPILOG = """\
'regard train RECIPE --help' shows the fields of a recipe, such as --data.train FILE or --model.dropout P; 'regard show'
lists the recipes. DIR gets recipe.json, log.jsonl, the checkpoints best/ and last/, and report.html.
"""


def run(argv: list[str]) -> int:
    """Train, then write the report; 130 if interrupted on the way."""
    parser = Parser("train", "Learn a model by a recipe, or resume a run.", usage=USAGE, add_help=False, epilog=EPILOG)
    parser.add_argument("what", metavar="RECIPE", help="a recipe's name, or the folder of a run to resume or repeat")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--resume", action="store_true", help="go on where the run in the folder stopped, if there is one"
    )
    parser.add_argument("--nproc", type=int, metavar="N", help="train with N processes of this machine")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    if {"-h", "--help"} & set(argv) and argv[0].startswith("-"):
        sys.stdout.write(parser.format_help())
        return 0
    args, fields = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(fields):
        sys.stdout.write(parser.format_usage() + "\n")  # the recipe's own help follows
    recipe, out = plan(args, fields, parser.names)
    if args.nproc is not None and "RANK" not in os.environ:
        from regard.train.launch import launch

        return launch([sys.executable, "-m", "regard", "train", *argv], args.nproc)

    from regard.explain.report import write_report
    from regard.train.fit import ended, fit

    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"  # by torchrun, after a process died
    progress = fit(recipe, out, resume=args.resume or restarted, quiet=args.quiet)
    if not ended(recipe, progress):
        return 130
    if os.environ.get("RANK", "0") != "0":
        return 0
    report = write_report(out)
    sys.stderr.write(f"regard: the report is in {report}\n")
    return 0


def plan(args: Namespace, fields: list[str], own: Sequence[str]) -> tuple["Recipe", Path]:
    """The recipe to train by and the folder to train in. Raises ConfigError for a name or field that is not there."""
    from regard.recipes import find
    from regard.train.recipe import load_recipe, override
    from regard.train.tune import ASKED

    if "/" in args.what or Path(args.what).is_dir():
        from regard.checkpoint.hub import existing

        existing(args.what)
    if Path(args.what, ASKED).exists():
        raise ConfigError(f"{args.what} is a search: 'regard tune {args.what} --resume' goes on with it")
    stored = Path(args.what, "recipe.json")
    again = stored.exists()
    base = load_recipe(stored) if again else find(args.what)
    recipe = override(base, fields, f"regard train {args.what}", own)
    if again and args.resume:
        out = args.out or Path(args.what)
    elif again and args.out is None:
        raise ConfigError(f"{args.what} is a run: add --resume to go on with it, or --out DIR to repeat it elsewhere")
    else:
        out = args.out or Path("runs", args.what)
    return recipe, out
