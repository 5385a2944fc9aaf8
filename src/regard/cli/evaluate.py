"""``regard evaluate``: a run's scores on held-out data."""

import json
import sys
from typing import TYPE_CHECKING, Any

from regard.cli.parser import Parser, positive
from regard.core.errors import DataError

if TYPE_CHECKING:
    from regard.evaluate.translation import Evaluation


def run(argv: list[str]) -> int:
    """Translate held-out sources and score the answers."""
    parser = Parser("evaluate", "Score a run: BLEU and chrF with sacreBLEU's signatures, and exact match.")
    parser.add_argument("run", metavar="RUN", help="the folder of a run")
    parser.add_argument(
        "--data", metavar="F", help="pairs to score on, as for training (default: the recipe's held-out)"
    )
    parser.add_argument("--beam", type=positive, default=4, metavar="N", help="hypotheses kept (default: 4)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse(argv)

    from regard.evaluate.translation import evaluate
    from regard.front import method, open_run

    task, model = open_run(args.run)
    splits = {} if args.data else held_out(task, args.run)
    used = args.data or next(split for split in ("test", "valid") if splits[split])
    found = evaluate(task, model, task.data.read(args.data) if args.data else splits[used], method(args.beam))
    sys.stdout.write((json.dumps(as_object(found, used)) if args.json else as_text(found, used)) + "\n")
    return 0


def held_out(task: Any, run: str) -> Any:
    """The splits that the run's recipe names. Raises DataError that says where they are named."""
    try:
        return task.data.splits
    except DataError as error:
        where = f"{run}/recipe.json names it, as seen from where the run was trained"
        raise DataError(f"{error}; {where}; give --data F") from None


def as_object(found: "Evaluation", used: str) -> dict[str, Any]:
    """The scores with what is needed to compare them, for other programs."""
    return {**found.scores, "data": used, "num_examples": found.num_examples, "signatures": found.signatures}


def as_text(found: "Evaluation", used: str) -> str:
    """The scores with what is needed to compare them, for a reader."""
    exact = found.scores["exact_match"]
    return "\n".join(
        [
            f"BLEU         {found.scores['bleu']:6.2f}   {found.signatures['bleu']}",
            f"chrF         {found.scores['chrf']:6.2f}   {found.signatures['chrf']}",
            f"exact match  {100 * exact:6.2f}%  {round(exact * found.num_examples)} of {found.num_examples} ({used})",
        ]
    )
