"""Points and curves over any axis, linear, logarithmic or of names, as inline SVG in the colours of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from regard.explain.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, number, ticks

MARGIN = 0.04
"""The share of the width that is left free on each side."""


@dataclass(frozen=True)
class Dot:
    """A point: where it lies, its colour of eight, and what it says when pointed at."""

    x: float
    y: float
    hue: int
    says: str


@dataclass(frozen=True)
class Curve:
    """A line through points (x, y), and its colour of eight."""

    points: Sequence[tuple[float, float]]
    hue: int


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its label; whether it is logarithmic; or the names that stand at 0, 1, 2 ..."""

    label: str
    log: bool = False
    names: Sequence[str] = ()

    def place(self, x: float) -> float:
        """Where a value lies, in units of the axis."""
        return math.log10(x) if self.log else x

    def ticks(self, low: float, high: float) -> list[tuple[float, str]]:
        """The places to label between two places, with their labels."""
        if self.names:
            return [(float(i), name) for i, name in enumerate(self.names)]
        if not self.log:
            return [(x, number(x)) for x in ticks(low, high) if low <= x <= high]
        steps = (1,) if high - low > 2 else (1, 2, 5)
        powers = range(math.floor(low), math.ceil(high) + 1)
        values = [times * 10.0**power for power in powers for times in steps]
        return [(math.log10(x), number(x)) for x in values if low <= math.log10(x) <= high]


def plot(
    title: str,
    axis: Axis,
    *,
    dots: Sequence[Dot] = (),
    curves: Sequence[Curve] = (),
    marks: Sequence[tuple[float, str]] = (),
    keys: Sequence[tuple[int, str]] = (),
) -> str:
    """A figure of dots over curves; nothing where there is neither.

    Args:
        title: above it.
        axis: what is across; a value that it cannot place must not be given.
        dots: points.
        curves: lines.
        marks: values of x at which an upright line stands, with what it says.
        keys: the legend: a colour of eight, and its meaning.
    """
    points = [(dot.x, dot.y) for dot in dots] + [point for curve in curves for point in curve.points]
    if not points:
        return ""
    xs = [axis.place(x) for x in [x for x, _ in points] + [x for x, _ in marks]]
    left, right = (min(xs), max(xs)) if max(xs) > min(xs) else (xs[0] - 0.5, xs[0] + 0.5)
    left, right = left - MARGIN * (right - left), right + MARGIN * (right - left)
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = y_ticks[0], y_ticks[-1]

    def across(place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (place - left) / (right - left)

    def at(x: float, y: float) -> tuple[float, float]:
        return across(axis.place(x)), HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = [_label(LEFT - 8, at(points[0][0], y)[1] + 4, number(y), "end") for y in y_ticks]
    parts += [_rule(LEFT, WIDTH - RIGHT, y, y) for y in (at(points[0][0], y)[1] for y in y_ticks)]
    parts += [_label(across(x), HEIGHT - BOTTOM + 17, name, "middle") for x, name in axis.ticks(left, right)]
    parts.append(_label(WIDTH - RIGHT, HEIGHT - 4, axis.label, "end"))
    for i, (x, says) in enumerate(marks):  # each label below the one before: their lines may be close
        place = across(axis.place(x))
        parts.append(f'<polyline class="line line1" points="{place:.1f},{TOP} {place:.1f},{HEIGHT - BOTTOM}"/>')
        parts.append(_label(place + 6, TOP + 12 + 16 * i, says, "start"))
    for curve in curves:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in curve.points))
        parts.append(f'<polyline class="line line{curve.hue}" points="{path}"/>')
    for dot in dots:
        x, y = at(dot.x, dot.y)
        parts.append(
            f'<circle class="dot dot{dot.hue}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">'
            f"<title>{escape(dot.says)}</title></circle>"
        )
    legend = "".join(f'<span class="key"><i class="key{hue}"></i>{escape(name)}</span>' for hue, name in keys)
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><div class="keys">{legend}</div></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def bars(title: str, shares: Sequence[tuple[str, float]]) -> str:
    """A figure of named shares of 1, one bar each."""
    step, left = 26, 190
    rows = []
    for i, (name, share) in enumerate(shares):
        y, width = TOP + step * i, (WIDTH - left - 60) * share
        rows.append(_label(left - 8, y + 14, name, "end"))
        rows.append(f'<g class="cells"><rect x="{left}" y="{y}" width="{width:.1f}" height="18" rx="2"/></g>')
        rows.append(_label(left + width + 8, y + 14, f"{share:.0%}", "start"))
    height = TOP + step * len(shares)
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(rows)}</svg></figure>'
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="rule" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
