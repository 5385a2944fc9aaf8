"""What the finders of batch and learning rate have found, as lines for a terminal and as one page."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from regard.explain.chart import number
from regard.explain.page import document, section
from regard.explain.plot import Axis, Curve, Dot, plot
from regard.explain.report import write_whole

if TYPE_CHECKING:
    from regard.train.find import Rates, Sizes


def size_lines(found: "Sizes") -> Iterator[str]:
    """The sizes that were tried, and what is proposed."""
    yield f"{'data.max_tokens':>15}  {'tokens/s':>9}  {'a step':>9}"
    for size in found.tried:
        star = " *" if size.max_tokens == found.proposed else ""
        yield f"{size.max_tokens:>15}  {number(size.tokens_per_second):>9}  {1e3 * size.seconds:>6.0f} ms{star}"
    yield ""
    yield f"data.max_tokens {found.proposed}: the smallest within 5 % of the highest throughput"
    if found.largest:
        yield f"the largest that fits into the memory: {found.largest}"


def rate_lines(found: "Rates") -> Iterator[str]:
    """What the loss did as the rate rose, and what is proposed."""
    first, lowest = found.smooth[0][1], min(loss for _, loss in found.smooth)
    yield f"loss             {first:.2f} at first, {lowest:.2f} at its lowest, in {len(found.points)} steps"
    yield f"falls fastest    at a rate of {number(found.steepest)}"
    yield f"stops falling    at {number(found.flat)}"
    yield f"diverges         from {number(found.diverged)}" if found.diverged else "diverges         nowhere"
    yield ""
    yield f"schedule.lr {found.proposed:g}: the geometric mean of the fastest fall and its end"


def write_found(title: str, sizes: "Sizes | None", rates: "Rates | None", command: str, path: Path) -> Path:
    """Write the page, whole or not at all. Raises DataError when it cannot be written."""
    body = [
        f"<header><h1>{escape(title)}</h1><p>What to begin with, by some steps on this machine.</p></header>",
        section("How much goes into a batch", "Tokens a second over the tokens of a batch.", _sizes(sizes))
        if sizes
        else "",
        section("The learning rate", _LEAD, _rates(rates)) if rates else "",
        section(
            "How to train with it",
            "A rate belongs to a size of batch: who changes one, finds the other again.",
            f"<pre>{escape(command)}</pre>",
        ),
    ]
    return write_whole(path, document(title, body))


_LEAD = (
    "The rate rises by the same factor in each step (Smith 2017, section 3.3). The line is the mean of neighbouring "
    "losses; the peak of a schedule belongs between where it falls fastest and where it stops falling."
)


def _sizes(found: "Sizes") -> str:
    points = [(float(size.max_tokens), size.tokens_per_second) for size in found.tried]
    dots = [Dot(x, y, 1 if x == found.proposed else 0, f"{number(y)} tokens/s with {x:.0f} tokens") for x, y in points]
    keys = ((0, "tried"), (1, "proposed"))
    axis = Axis("data.max_tokens", log=True)
    figure = plot("Tokens per second", axis, dots=dots, curves=[Curve(points, 0)], keys=keys)
    return f'<div class="charts">{figure}{_card(size_lines(found))}</div>'


def _rates(found: "Rates") -> str:
    most = max(loss for _, loss in found.points[: len(found.points) // 2 + 1])
    shown = [point for point in found.points if point[1] <= 1.2 * most]  # what follows would press it all flat
    smooth = [point for point in found.smooth if point[1] <= 1.2 * most]
    dots = [Dot(rate, loss, 7, f"loss {number(loss)} at rate {number(rate)}") for rate, loss in shown]
    marks = [(found.steepest, "fastest"), (found.proposed, "proposed"), (found.flat, "end of the fall")]
    axis = Axis("learning rate", log=True)
    figure = plot("Loss over the rate", axis, dots=dots, curves=[Curve(smooth, 0)], marks=marks)
    return f'<div class="charts">{figure}{_card(rate_lines(found))}</div>'


def _card(lines: Iterator[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"
