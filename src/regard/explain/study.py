"""What a study has found, as a table for a terminal and as one page."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from regard.core.errors import ConfigError
from regard.explain.chart import Series, line_chart, number
from regard.explain.page import curve, document, duration, section
from regard.explain.plot import Axis, Curve, Dot, plot
from regard.explain.report import write_whole

if TYPE_CHECKING:
    from regard.train.study import Findings, Trained


SURE = 3.0
"""How many standard errors of a few seeds are more than chance: for three, nineteen times in twenty it takes 2.9 where
the better one was named beforehand."""


def as_text(found: "Findings") -> str:
    """A line for each variant. Raises ConfigError for a study that was stopped."""
    _check(found)
    rows = [["", "parameters", found.metric, "spread", "time", *(f"{n} tokens" for n in found.study.lengths)]]
    rows += [_cells(found, variant.name) for variant in found.study.variants]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{a:>{w}}" for a, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", verdict(found), ""])


def verdict(found: "Findings") -> str:
    """One sentence: which variant is best, and whether that may be chance.

    The same seed gives two variants the same order of data, so it is the differences, seed by seed, whose mean has the
    standard error that is told.
    """
    first, second = sorted(found.runs, key=found.mean, reverse=True)[:2]
    gap = found.mean(first) - found.mean(second)
    beside = f"{first} is best, {number(gap)} {found.metric} before {second}"
    if found.seeds < 3:
        return f"{beside}; with fewer than three seeds nobody knows whether that is chance."
    pairs = zip(found.runs[first], found.runs[second], strict=True)
    error = stdev(one.score - other.score for one, other in pairs) / found.seeds**0.5
    told = f"{beside}, over {found.seeds} seeds with a standard error of {number(error)}"
    return f"{told}: it may be chance." if gap <= SURE * error else f"{told}."


def write_study(found: "Findings", command: str, path: Path) -> Path:
    """Write the page, whole or not at all. Raises DataError when it cannot be written; also as :func:`as_text`."""
    _check(found)
    study = found.study
    body = [
        f"<header><h1>{escape(study.title)}</h1><p>{escape(study.question)}</p></header>",
        section("What came out", escape(verdict(found)), _scores(found) + _table(found)),
        _longer(found),
        section(
            "How they learned",
            "Held-out figures of the weights that are kept, means over the seeds.",
            f'<div class="charts">{"".join(_curves(found))}</div>',
        ),
        section(
            "How to repeat it",
            "The same command goes on with a study that was stopped.",
            f"<pre>{escape(command)}</pre>",
        ),
    ]
    return write_whole(path, document(study.title, body))


def _check(found: "Findings") -> None:
    if not found.done:
        raise ConfigError(f"the study '{found.study.title}' was stopped: conduct it to its end")


def _cells(found: "Findings", name: str) -> list[str]:
    """What a table says of a variant."""
    runs = found.runs[name]
    size = runs[0]
    learning = "" if size.learning == size.parameters else f" ({size.learning:,} learn)"
    lengths = [number(fmean(run.by_length[length] for run in runs)) for length in found.study.lengths]
    spread = number(found.spread(name)) if len(runs) > 1 else ""
    time = duration(fmean(run.seconds for run in runs))
    return [name, f"{size.parameters:,}{learning}", number(found.mean(name)), spread, time, *lengths]


def _table(found: "Findings") -> str:
    names = ["", "parameters", f"{found.metric}, mean", "standard deviation", "seeds", "time of one"]
    rows = []
    for name, runs in found.runs.items():
        label, size, mean, spread, time, *_ = _cells(found, name)
        each = " · ".join(number(run.score) for run in runs)
        rows.append([label, size, mean, spread, each, time])
    return _html_table(names, rows)


def _html_table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th class="figure">{escape(name)}</th>' for name in names)
    lines = (
        f"<tr><td>{escape(first)}</td>{''.join(f'<td class=figure>{escape(each)}</td>' for each in rest)}</tr>"
        for first, *rest in rows
    )
    return f'<div class="card"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _scores(found: "Findings") -> str:
    """Every run a dot, over the axis, or by the variants' names; a line through the means where there is an axis."""
    variants = found.study.variants
    places = {v.name: float(i) if v.x is None else v.x for i, v in enumerate(variants)}
    dots = [
        Dot(places[name], run.score, 0, f"{name}, seed {run.seed}: {number(run.score)}")
        for name, runs in found.runs.items()
        for run in runs
    ]
    named = found.study.axis == ""
    axis = Axis("", names=[v.name for v in variants]) if named else Axis(found.study.axis, log=True)
    means = [(places[name], found.mean(name)) for name in found.runs]
    curves = [] if named else [Curve(means, 0)]
    title = f"{found.metric}, each dot a run"
    return f'<div class="charts">{plot(title, axis, dots=dots, curves=curves)}</div>'


def _longer(found: "Findings") -> str:
    """The loss on rows of other lengths than were learnt from."""
    lengths = found.study.lengths
    if not lengths:
        return ""
    series = [
        Series(name, [(length, fmean(run.by_length[length] for run in runs)) for length in lengths], marked=True)
        for name, runs in found.runs.items()
    ]
    rows = [[name, *(number(value) for _, value in one.points)] for name, one in zip(found.runs, series, strict=True)]
    chart = line_chart("Nats a token on rows of so many tokens", series, x_label="tokens")
    table = _html_table(["", *(f"{length} tokens" for length in lengths)], rows)
    lead = "The loss on held-out text, read in rows of other lengths than were learnt from; more to look back on helps."
    return section("On longer text", lead, f'<div class="charts">{chart}</div>{table}')


def _curves(found: "Findings") -> list[str]:
    names = [found.metric, *(["valid_loss"] if found.metric != "valid_loss" else [])]
    return [
        line_chart(name, [Series(variant, _mean_curve(runs, name)) for variant, runs in found.runs.items()])
        for name in names
    ]


def _mean_curve(runs: Sequence["Trained"], name: str) -> list[tuple[float, float]]:
    """At each step at which all runs were validated, the mean over them."""
    each = [dict(curve(run.log, name)) for run in runs]
    steps = sorted(set.intersection(*map(set, each)))
    return [(step, fmean(values[step] for values in each)) for step in steps]
