"""What a search for better settings has found, as a table for a terminal and as one page."""

from collections.abc import Sequence
from html import escape
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from regard.explain.chart import number
from regard.explain.page import document, duration, section
from regard.explain.plot import Axis, Curve, Dot, bars, plot
from regard.explain.report import write_whole

if TYPE_CHECKING:
    from regard.train.tune import Outcome, Trial

COMPLETE, STANDING, EARLY = 0, 1, 7
"""Colours: of a trial trained to its end, of the recipe as it stands, and of a trial that was given up."""

KEYS = ((COMPLETE, "trained to the end"), (EARLY, "given up"), (STANDING, "the recipe as it stands"))

_HINT = " How much a field counts is by PED-ANOVA (Watanabe et al. 2023): a hint, where trials are few."

ENDINGS = {"complete": "", "early": "given up", "failed": "failed"}


def as_text(found: "Outcome") -> str:
    """The settings of the best trial beside the recipe's, what they gain, and the command that trains with them."""
    best, standing = found.best, found.baseline
    rows = [("", "recipe", f"trial {best.number}", "importance" * bool(found.importance))]
    rows += [(name, standing.settings[name], best.settings[name], _share(found, name)) for name in found.space]
    rows.append((found.metric, _score(standing), _score(best), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{a:>{w}}" for a, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", verdict(found), found.train(), ""])


def verdict(found: "Outcome") -> str:
    """One sentence: what the search has gained."""
    best, standing = found.best, found.baseline
    if best.number == 0 or best.score is None or standing.score is None:
        return f"Of {len(found.trials)} trials none is better than the recipe as it stands."
    gain = number(best.score - standing.score)
    return f"Trial {best.number} of {len(found.trials)} has {gain} more {found.metric} than the recipe as it stands."


def write_search(found: "Outcome", path: Path) -> Path:
    """Write the page, whole or not at all. Raises DataError when it cannot be written."""
    title = f"A search for better settings: {found.command[0]}" if found.command else "A search for better settings"
    charts = [_history(found), *(_field(found, name) for name in found.space), _importance(found)]
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(verdict(found))}</p></header>",
        _tiles(found),
        section(
            "What was tried",
            f"Each dot is a trial, with the best {escape(found.metric)} that it reached."
            + _HINT * bool(found.importance),
            f'<div class="charts">{"".join(charts)}</div>',
        ),
        section(
            "How to train with the best",
            f"Its run is in trial-{found.best.number:03}.",
            f"<pre>{escape(found.train())}</pre>",
        ),
        section("All trials", "The best is set in bold.", _table(found)),
    ]
    return write_whole(path, document(title, body))


def _tiles(found: "Outcome") -> str:
    facts = {
        f"Best {found.metric}": _score(found.best),
        "The recipe as it stands": _score(found.baseline),
        "Trials": str(len(found.trials)),
        "Given up early": str(sum(trial.ending == "early" for trial in found.trials)),
        "Training time": duration(sum(trial.seconds for trial in found.trials)),
    }
    tiles = "".join(f'<div class="tile"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items())
    return f'<dl class="tiles">{tiles}</dl>'


def _history(found: "Outcome") -> str:
    whole = [
        (trial.number, trial.score) for trial in found.trials if trial.ending == "complete" and trial.score is not None
    ]
    best = list(accumulate(whole, lambda so_far, each: (each[0], max(so_far[1], each[1]))))
    stairs = [point for before, after in pairwise(best) for point in (before, (after[0], before[1]))] + best[-1:]
    dots = [_dot(found, trial, trial.number) for trial in _scored(found)]
    return plot(
        f"{found.metric}, trial by trial, and the best so far",
        Axis("trial"),
        dots=dots,
        curves=[Curve(stairs, COMPLETE)],
        keys=KEYS,
    )


def _importance(found: "Outcome") -> str:
    shares = sorted(found.importance.items(), key=lambda each: -each[1])
    return bars("What it takes to be among the best", shares) if shares else ""


def _field(found: "Outcome", name: str) -> str:
    space = found.space[name]
    held = [trial for trial in _scored(found) if name in trial.params]
    if space.texts:
        dots = [_dot(found, trial, space.texts.index(trial.params[name])) for trial in held]
        return plot(name, Axis(name, names=space.texts), dots=dots)
    return plot(name, Axis(name, log=space.log), dots=[_dot(found, trial, trial.params[name]) for trial in held])


def _scored(found: "Outcome") -> list["Trial"]:
    return [trial for trial in found.trials if trial.score is not None]


def _dot(found: "Outcome", trial: "Trial", x: float) -> Dot:
    hue = STANDING if trial.number == 0 else COMPLETE if trial.ending == "complete" else EARLY
    settings = ", ".join(f"{name} {value}" for name, value in trial.settings.items())
    return Dot(x, trial.score or 0.0, hue, f"trial {trial.number}: {found.metric} {_score(trial)}; {settings}")


def _table(found: "Outcome") -> str:
    names = ["trial", found.metric, "", "steps", "time", *found.space]
    head = "".join(f'<th class="figure">{escape(name)}</th>' for name in names)
    rows = "".join(_row(trial, bold=trial is found.best) for trial in found.trials)
    return f'<div class="card"><table><tr>{head}</tr>{rows}</table></div>'


def _row(trial: "Trial", *, bold: bool) -> str:
    ending = ENDINGS[trial.ending] + (f": {trial.why}" if trial.why else "")
    texts = [str(trial.number), _score(trial), ending, f"{trial.steps:,}", duration(trial.seconds)]
    cells: Sequence[str] = [escape(text) for text in [*texts, *trial.settings.values()]]
    return "".join(
        ["<tr>", *(f'<td class="figure">{f"<b>{cell}</b>" if bold else cell}</td>' for cell in cells), "</tr>"]
    )


def _score(trial: "Trial") -> str:
    return "" if trial.score is None else number(trial.score)


def _share(found: "Outcome", name: str) -> str:
    return f"{found.importance[name]:.0%}" if name in found.importance else ""
