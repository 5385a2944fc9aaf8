"""Charts of lines and cells as inline SVG, coloured by the page's style sheet so that they read in light and dark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 38
MOST_POINTS = 400
CELL_HEIGHT, MOST_CELLS, FAINTEST = 17, 80, 0.06


@dataclass(frozen=True)
class Series:
    """One line: its name, its points (x, y) by rising x, and whether to mark each point (for sparse lines)."""

    name: str
    points: Sequence[tuple[float, float]]
    marked: bool = False


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str = "step", span: tuple[float, float] | None = None
) -> str:
    """A figure with one chart of up to eight lines and a legend that gives each line's last value.

    The vertical axis covers ``span``, or what the points need. Points that are not finite are left out; a series with
    more than 400 points is averaged down to that.
    """
    thinned = [Series(one.name, _thin(one.points), one.marked) for one in series]
    shown = {i: one for i, one in enumerate(thinned) if one.points}  # a line keeps its colour where others are missing
    if not shown:
        return ""
    xs = [x for one in shown.values() for x, _ in one.points]
    ys = [y for one in shown.values() for _, y in one.points]
    x_ticks, y_ticks = ticks(0, max(xs)), ticks(*(span or _range(ys)))
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * (x / max(xs) if max(xs) else 0)
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - low) / (high - low)

    parts = [_rule(at(0, y)[1], number(y)) for y in y_ticks]
    parts += [_tick(at(x, low)[0], number(x)) for x in x_ticks if x <= max(xs)]
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    for i, one in shown.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in one.points))
        parts.append(f'<polyline class="line line{i}" points="{path}"/>')
        if one.marked or len(one.points) == 1:
            parts += [_dot(i, *at(x, y), f"{one.name}: {number(y)} at {x_label} {number(x)}") for x, y in one.points]
    legend = "".join(
        f'<span class="key"><i class="key{i}"></i>{escape(one.name)} <small>last</small> '
        f"<b>{number(one.points[-1][1])}</b></span>"
        for i, one in shown.items()
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><div class="keys">{legend}</div></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def cell_chart(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    x_label: str = "step",
    span: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """A figure with a cell for each row and column, the stronger its colour, the larger its value.

    Args:
        title: of the figure.
        columns: their names, of which some are written under the cells; of more than 80 some are left out.
        rows: by name, a value for each column; none where it is None.
        x_label: what the columns are.
        span: what the palest and the strongest colour stand for; the least and the largest value unless given.
        log: whether equal steps of colour are equal ratios; values that are not above 0 are then as pale as the least.
    """
    chosen = spread(len(columns), MOST_CELLS)
    table = {name: [values[i] for i in chosen] for name, values in rows.items()}
    known = [
        v for values in table.values() for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)
    ]
    if not known:
        return ""
    low, high = span or (min(known), max(known))
    left = 14 + 6.7 * max(map(len, table))
    width, bottom = (WIDTH - left - RIGHT) / len(chosen), CELL_HEIGHT * len(table)

    def strength(value: float) -> float:
        if not high > low:
            return 1.0
        share = math.log(max(value, low) / low) / math.log(high / low) if log else (value - low) / (high - low)
        return FAINTEST + (1 - FAINTEST) * min(max(share, 0.0), 1.0)

    cells = [
        f'<rect x="{left + k * width:.1f}" y="{CELL_HEIGHT * i}" width="{width:.1f}" height="{CELL_HEIGHT - 1}" '
        f'fill-opacity="{strength(value):.2f}"><title>{escape(name)}, {escape(x_label)} {escape(columns[chosen[k]])}: '
        f"{number(value)}</title></rect>"
        for i, (name, values) in enumerate(table.items())
        for k, value in enumerate(values)
        if value is not None and math.isfinite(value)
    ]
    names = [
        f'<text class="part" x="{left - 8:.0f}" y="{CELL_HEIGHT * (i + 0.7):.1f}" text-anchor="end">'
        f"{escape(name)}</text>"
        for i, name in enumerate(table)
    ]
    below = [
        f'<text class="axis" x="{left + (k + 0.5) * width:.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{escape(columns[chosen[k]])}</text>"
        for k in spread(len(chosen), 6)
    ]
    below.append(f'<text class="axis" x="{left - 8:.0f}" y="{bottom + 16}" text-anchor="end">{escape(x_label)}</text>')
    legend = f'<span class="key">{number(low)} <i class="ramp"></i> {number(high)}</span>'
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><div class="keys">{legend}</div></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + 22}" role="img" aria-label="{escape(title)}">'
        f'<g class="cells" shape-rendering="crispEdges">{"".join(cells)}</g>{"".join(names + below)}</svg></figure>'
    )


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly, the first and the last among them."""
    if count <= most:
        return [*range(count)]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that cover low to high, about ``count`` of them."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, low + (abs(low) or 1) / 2
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(times for times in (1, 2, 5, 10) if rough <= times * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as a reader wants it: 1.5M, 12k, 3.142, 0.0005, 2e-07."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            scaled = value / (1e3 if name == "k" else unit)
            return f"{scaled:.4g}{name}"
    if size < 1e-12:
        return "0"
    return f"{value:.1e}".replace(".0e", "e") if size < 1e-4 else f"{value:.4g}"


def _range(ys: Sequence[float]) -> tuple[float, float]:
    """From the smallest to the largest, and from zero where zero is near."""
    low, high = min(ys), max(ys)
    return (0.0, high) if 0 <= low < high / 2 else (low, high)


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(y)]
    stride = math.ceil(len(finite) / MOST_POINTS)
    if stride <= 1:
        return finite
    runs = [finite[i : i + stride] for i in range(0, len(finite), stride)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def _rule(y: float, label: str) -> str:
    return (
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _tick(x: float, label: str) -> str:
    return f'<text class="axis" x="{x:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{label}</text>'


def _dot(i: int, x: float, y: float, says: str) -> str:
    return f'<circle class="dot dot{i}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(says)}</title></circle>'
