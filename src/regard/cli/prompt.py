"""``regard prompt``: classes and choices by a language model as it is, without any training."""

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.cli.evaluate import as_text
from regard.cli.parser import Parser
from regard.cli.place import add_place, placed, tell_place
from regard.cli.search import asked
from regard.core.errors import ConfigError

if TYPE_CHECKING:
    from regard.tasks.classify import Labelled
    from regard.tasks.prompt import Item, Prompting

LANGUAGES = "languages"
"""The name of the examples that need no file: phrases, whose class is their language."""

SHOTS = 4
"""How many examples are shown where a file of them is named, and no number."""


def run(argv: list[str]) -> int:
    """Answer each text by the likeliest label, or score the answers to a file of examples."""
    parser = Parser(
        "prompt",
        "Ask a language model which label is likeliest after a text, or after a question which of its choices: with or "
        "without solved examples before it. Files are those of the task classify, or 'languages', which needs none.",
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a language model with its tokenizer")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to answer (default: lines of standard input)")
    parser.add_argument("--data", metavar="F", help="score the answers to these examples instead")
    parser.add_argument(
        "--labels", default="", metavar="L=WORDS,...",
        help="the labels, and the words that stand for each (default: the labels in the files, themselves)",
    )  # fmt: skip
    parser.add_argument(
        "--choices", action="store_true", help="each example of a file has choices of its own, in a column of this name"
    )
    parser.add_argument(
        "--template", metavar="T",
        help="how an example is written: '{text}' and '{pair}' in it, '{label}' at its end, \\n for a new line",
    )  # fmt: skip
    parser.add_argument("--examples", metavar="F", help="where solved examples are drawn from")
    parser.add_argument("--shots", type=int, metavar="K", help=f"how many (default: {SHOTS} where there are some)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default: 0)")
    parser.add_argument(
        "--per", choices=("token", "character", "choice"), default="token",
        help="what a choice's log-probability is divided by; 'choice' does not divide (default: token)",
    )  # fmt: skip
    parser.add_argument(
        "--calibrate", action="store_true", help="divide by what the model says after texts without content"
    )
    for name, default in (("text", "text"), ("pair", None), ("label", "label")):
        parser.add_argument(f"--{name}", default=default, metavar="COLUMN", help=f"of the files' tables: {name}")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each text, or of the scores")
    add_place(parser)
    args = parser.parse(argv)
    if args.texts and args.data:
        raise ConfigError("give texts or --data, not both")
    if args.choices and not args.data:
        raise ConfigError("--choices needs --data F, whose questions have choices")
    if args.shots and not args.examples:
        raise ConfigError(f"--shots {args.shots} needs --examples F to draw them from")
    if args.choices:
        answer_choices(args)
    else:
        answer_classes(args)
    return 0


def answer_choices(args: Namespace) -> None:
    """Score the answers to questions with choices of their own."""
    from regard.data.source import values
    from regard.tasks.prompt import CHOOSE, questions

    known = [*values(questions(args.examples))] if args.examples else []
    score(args, prompting(args, known, CHOOSE), [*values(questions(args.data))])


def answer_classes(args: Namespace) -> None:
    """Say the class of each text, or score the answers to a file."""
    from regard.tasks.encoder import sides
    from regard.tasks.prompt import CLASSIFY, Item, classes, fields

    known, asked_ = (labelled(args, spec, split) for spec, split in ((args.examples, "train"), (args.data, "test")))
    labels = words(args.labels, known + asked_)
    template = CLASSIFY.replace("{text}", "{text}\n{pair}") if args.pair else CLASSIFY
    model = prompting(args, classes(known, labels), template)
    if args.data:
        score(args, model, classes(asked_, labels))
        return
    for text in asked(args.texts):
        (shares,) = model.shares([model.asked(Item(fields(sides(text, args.pair)), tuple(labels.values())))])
        told = dict(zip(labels, shares.tolist(), strict=True))
        best = max(told, key=told.__getitem__)
        sys.stdout.write(
            (json.dumps({"label": best, "shares": told}, ensure_ascii=False) if args.json else best) + "\n"
        )
        sys.stdout.flush()


def labelled(args: Namespace, spec: str | None, split: str) -> "list[Labelled]":
    """The examples of a file, or the embedded ones."""
    from regard.data.source import values
    from regard.tasks.classify import LabelledText, languages

    if spec is None:
        return []
    if spec == LANGUAGES and not Path(spec).exists():
        found: Any = languages()
        return [*found[split]]
    return [*values(LabelledText(text=args.text, pair=args.pair, label=args.label).rows(spec))]


def words(said: str, examples: "Sequence[Labelled]") -> dict[str, str]:
    """The words that stand for each label.

    Raises ConfigError where there are fewer than two labels, or one is named twice.
    """
    parted = [[part.strip() for part in each.partition("=")] for each in said.split(",")] if said else []
    named = [label for label, _, _ in parted]
    if twice := [label for label in named if named.count(label) > 1]:
        raise ConfigError(f"--labels: '{twice[0]}' is named twice")
    found = {label: words if equals else label for label, equals, words in parted}
    found = found or {label: label for label in sorted({each.label for each in examples})}
    if len(found) < 2 or not all(found.values()):
        raise ConfigError(
            "there must be two labels or more, each with words: give --labels A=WORDS,B=WORDS, --examples or --data"
        )
    return found


def prompting(args: Namespace, known: "Sequence[Item]", usual: str) -> "Prompting":
    """The model, as it is to be asked."""
    from regard import zoo
    from regard.data.tokenize import Tokenizer
    from regard.tasks.prompt import Prompting, Template, drawn

    folder = zoo.checkpoint_folder(args.model)
    model = zoo.load(folder, **placed(args))
    tell_place(args, model)
    count = args.shots if args.shots is not None else min(SHOTS, len(known))
    return Prompting(
        model,
        Tokenizer.load(folder),
        Template(usual if args.template is None else args.template.replace("\\n", "\n")),
        drawn(known, count, args.seed),
        per=args.per,
        calibrate=args.calibrate,
    )


def score(args: Namespace, model: "Prompting", items: "Sequence[Item]") -> None:
    """Print what the answers are worth."""
    found = model.score(items)
    about: Mapping[str, Any] = {**found.scores, "data": args.data, "num_examples": len(items), "notes": found.notes}
    sys.stdout.write((json.dumps(about) if args.json else as_text(found, args.data, len(items))) + "\n")
