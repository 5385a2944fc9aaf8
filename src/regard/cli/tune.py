"""``regard tune``: search for settings that train a recipe better."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.parser import Parser, positive
from regard.core.errors import ConfigError

if TYPE_CHECKING:
    from regard.train.recipe import Recipe
    from regard.train.tune import Asked

USAGE = (
    "regard tune RECIPE [--space FIELD=VALUES ...] [--trials N] [--jobs N] [--out DIR] [--resume] [--FIELD VALUE ...]"
)
EPILOG = """\
VALUES are LOW..HIGH, such as --space schedule.lr=1e-4..1e-2, or choices, such as model.norm_order=pre,post; FIELDs are
those of the recipe, which 'regard train RECIPE --help' shows. A range above 0 whose end is ten times its beginning is
searched by its logarithm. The score is the task's own, the higher the better, on held-out data. Trial 0 is the recipe
as it stands; those that do worse than most are given up early. DIR gets a run for each trial, and tune.html.
"""


def run(argv: list[str]) -> int:
    """Search, then write the page; 130 if interrupted on the way."""
    parser = Parser("tune", "Search for settings that train a recipe better.", usage=USAGE, epilog=EPILOG)
    parser.add_argument(
        "what", metavar="RECIPE", help="a recipe's name, or the folder of a run, or of a search to resume"
    )
    parser.add_argument(
        "--space", nargs="+", action="extend", metavar="FIELD=VALUES",
        help="what to search (default: rate, warm-up, dropout and what else regularises)",
    )  # fmt: skip
    parser.add_argument("--trials", type=positive, metavar="N", help="how many, in all (default: 10)")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="how many at a time (default: 1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the search (default: runs/RECIPE-tune)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in the folder, if there is one")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args, fields = parser.parse_known_args(argv)
    recipe, want, out = plan(args, fields, parser.names)

    from regard.explain.search import as_text, write_search
    from regard.train.tune import tune

    found = tune(recipe, want, out, jobs=args.jobs, resume=args.resume, quiet=args.quiet)
    if not found.done:
        again = f"regard tune {out} --resume" + f" --jobs {args.jobs}" * (args.jobs > 1)
        sys.stderr.write(f"regard: stopped after {len(found.trials)} of {want.trials} trials; go on with: {again}\n")
        return 130
    sys.stdout.write(as_text(found))
    sys.stderr.write(f"regard: the page is {write_search(found, out / 'tune.html')}\n")
    return 0


def plan(args: Namespace, fields: list[str], own: Sequence[str]) -> tuple["Recipe", "Asked", Path]:
    """The recipe, what to search and how long, and the folder.

    Raises ConfigError for a name or field that is not there.
    """
    from regard.recipes import find
    from regard.train.recipe import load_recipe, override
    from regard.train.space import default_space
    from regard.train.tune import ASKED, Asked, asked

    what = Path(args.what)
    if (what / ASKED).exists():
        if not args.resume or args.out or args.space or fields:
            raise ConfigError(
                f"{what} is a search: go on with --resume, which takes --trials and --jobs, no other option"
            )
        past = asked(what)
        return load_recipe(what / "recipe.json"), replace(past, trials=args.trials or past.trials), what
    if "/" in args.what or what.is_dir():
        from regard.checkpoint.hub import existing

        existing(what)
    stored = what / "recipe.json"
    base = load_recipe(stored) if stored.exists() else find(args.what)
    recipe = override(base, fields, f"regard train {args.what}", own)
    out = args.out or Path("runs", f"{what.name}-tune")
    trials = asked(out).trials if args.resume and (out / ASKED).exists() else 10
    space = tuple(args.space or default_space(recipe))
    elsewhere = ("--out", f"{out}-best") if stored.exists() else ()  # a run is repeated elsewhere
    return recipe, Asked(space, args.trials or trials, (args.what, *fields, *elsewhere)), out
