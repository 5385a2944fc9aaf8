"""``regard search``: the texts of a file that are nearest in meaning to a question."""

import sys
from collections.abc import Iterator, Sequence

from regard.cli.lines import standard_input
from regard.cli.parser import Parser, positive

WIDTH = 100
"""How many characters of a text are shown."""


def run(argv: list[str]) -> int:
    """Find texts for each question."""
    parser = Parser(
        "search",
        "Find the texts of a file that are nearest in meaning to a question: for each its score (a cosine), its number "
        "in the file and its beginning. Their vectors are made once, and kept in a cache.",
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a checkpoint that embeds texts")
    parser.add_argument(
        "file", metavar="FILE", help="the texts: a column of a JSONL, CSV or Parquet table, or the lines of a text file"
    )
    parser.add_argument(
        "questions", nargs="*", metavar="TEXT", help="what to look for (default: the lines of standard input)"
    )
    parser.add_argument("--column", default="text", metavar="NAME", help="of the table (default: text)")
    parser.add_argument("--count", type=positive, default=5, metavar="N", help="texts for a question (default: 5)")
    args = parser.parse(argv)

    from regard.data.source import mapped, values
    from regard.data.tables import table, text
    from regard.tasks.embed import Embedder
    from regard.tasks.search import Search
    from regard.train.fit import default_device

    rows = table(args.file, [args.column])
    texts = [*values(mapped(lambda row: text(row, args.column), rows))]
    search = Search.cached(Embedder.load(args.model, device=default_device()), texts)
    for question in asked(args.questions):
        sys.stdout.write(f"{question}\n")
        for found in search.find(question, args.count):
            sys.stdout.write(f"  {found.score:.3f}  {found.number + 1:>6}  {shortened(found.text)}\n")
        sys.stdout.flush()
    return 0


def asked(questions: Sequence[str]) -> Iterator[str]:
    """The questions given, or the lines of standard input as they come."""
    if questions:
        yield from questions
        return
    for lines in standard_input(1):
        yield from (line for line in lines if line.strip())


def shortened(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[:WIDTH]}…"
