"""What a model attends to: its maps, how sharply a map aligns two texts, and pictures of it.

A map is [Q K]: row q says how much query q (a token being written) takes from each key k (a token being read). Maps go
by their path: side, layer and part, as in ``decoder.1.cross``.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.core.errors import InputError, Unsupported, did_you_mean

CELL, MINI = 22, 5


def attention_maps(model: nn.Module, **inputs: Tensor) -> dict[str, Float[Tensor, "B H Q K"]]:
    """Run ``model`` on ``inputs`` (as its ``forward`` takes them) and return every attention map by its path.

    Runs in evaluation mode without gradients and leaves the model as it was. Maps are float32, on the CPU.

    Raises:
        Unsupported: the model has no attention, or recorded no maps.
    """
    takes = inspect.signature(model.forward).parameters.values()
    if not any(each.name == "weights" or each.kind is each.VAR_KEYWORD for each in takes):
        raise Unsupported(f"{type(model).__name__} has no attention to show")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            output = model(**inputs, weights=True)
    finally:
        model.train(training)
    if not output.weights:
        raise Unsupported(f"{type(model).__name__} records no attention maps")
    return {path: weights.float().cpu() for path, weights in output.weights.items()}


def cross_maps(maps: Mapping[str, Float[Tensor, "B H Q K"]]) -> dict[str, Float[Tensor, "B H Q K"]]:
    """The maps in which a decoder reads its encoder, in the model's order. Raises :class:`Unsupported` if none does."""
    found = {path: weights for path, weights in maps.items() if "cross" in path.split(".")}
    if not found:
        raise Unsupported("this model has no cross-attention: its maps are " + ", ".join(maps))
    return found


def alignment(weights: Float[Tensor, "Q K"]) -> float:
    """How much a map says about which key belongs to which query, from 0 (nothing) to 1 (one to one).

    It is the mutual information of query and key, I = H(mean_q p) - mean_q H(p) with p = p(key | query) and every
    query equally likely, as a share of its largest value log(min(Q, K)). A blurred map scores 0, and so does a sharp
    one in which every query looks at the same key, as heads that rest on the end token do.
    """
    chance = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    shared = _entropy(chance.mean(dim=0)) - _entropy(chance).mean()
    most = torch.tensor(float(min(weights.shape))).log()
    return float((shared / most).clamp(0, 1)) if most > 0 else 0.0


def _entropy(chance: Float[Tensor, "... K"]) -> Float[Tensor, "..."]:
    return -torch.special.xlogy(chance, chance).sum(dim=-1)


@dataclass(frozen=True)
class Choice:
    """One map among a model's: the attention at ``path``, one ``head`` of it, or the average of all for ``None``."""

    path: str
    head: int | None = None

    def __str__(self) -> str:
        return f"{self.path}, " + ("average of all heads" if self.head is None else f"head {self.head}")

    def of(self, maps: Mapping[str, Float[Tensor, "B H Q K"]], row: int = 0) -> Float[Tensor, "Q K"]:
        """The map itself, for one row of the batch. Raises :class:`InputError` for a path or head that is not there."""
        if self.path not in maps:
            raise InputError(f"no attention at '{self.path}'{did_you_mean(self.path, maps)}")
        heads = maps[self.path][row]
        if self.head is None:
            return heads.mean(dim=0)
        if not 0 <= self.head < len(heads):
            raise InputError(f"'{self.path}' has {len(heads)} heads, counted from 0: no head {self.head}")
        return heads[self.head]


def choices(maps: Mapping[str, Float[Tensor, "B H Q K"]]) -> list[Choice]:
    """The average over heads of every layer, then every head of it."""
    return [Choice(path, head) for path, weights in maps.items() for head in (None, *range(weights.shape[1]))]


def sharpest(samples: Iterable[Mapping[str, Float[Tensor, "1 H Q K"]]], *, heads: bool = False) -> Choice:
    """The layer average (with ``heads``, or the single head) whose mean :func:`alignment` over samples is largest.

    Each sample holds the maps of one text alone, so that no padding counts.
    """
    samples = list(samples)
    candidates = [choice for choice in choices(samples[0]) if heads or choice.head is None]
    return max(candidates, key=lambda choice: sum(alignment(choice.of(maps)) for maps in samples))


def labels(pieces: Sequence[str]) -> list[str]:
    """Names for the tokens of a picture from what ``Tokenizer.pieces`` says of them, special tokens by name.

    Spaces around a piece are dropped; one that goes on a word of letters starts with "·" instead.
    """
    names = []
    for before, piece in zip(("", *pieces), pieces, strict=False):
        goes_on = piece[:1].isalpha() and before[-1:].isalpha()
        names.append(f"·{piece.strip()}" if goes_on else piece.strip() or ("␣" if piece else "…"))
    return names


def heat_map(weights: Float[Tensor, "Q K"], rows: Sequence[str], columns: Sequence[str], *, about: str) -> str:
    """An SVG picture of one map: ``columns`` are read (keys, along the top), ``rows`` are written (queries, down).

    A cell is as opaque as its weight and names it when pointed at. Colours come from the page (see ``report.css``).

    Raises:
        InputError: as many names as the map has rows and columns were not given.
    """
    if weights.shape != (len(rows), len(columns)):
        raise InputError(f"a map of {tuple(weights.shape)} cannot have {len(rows)} row and {len(columns)} column names")
    left = 16 + 7.5 * max(len(_short(name)) for name in rows)
    top = 20 + 5.6 * max(len(_short(name)) for name in columns)
    width, height = left + CELL * len(columns) + 48, top + CELL * len(rows) + 4
    cells = [
        f'<rect x="{left + k * CELL:.0f}" y="{top + q * CELL:.0f}" width="{CELL}" height="{CELL}" '
        f'fill-opacity="{share:.2f}"><title>{escape(rows[q])} ← {escape(columns[k])}: {share:.0%}</title></rect>'
        for q, row in enumerate(weights.tolist())
        for k, share in enumerate(row)
        if share >= 0.005
    ]
    across = [
        f'<text transform="translate({left + (k + 0.62) * CELL:.0f} {top - 7:.0f}) rotate(-48)">'
        f"{escape(_short(name))}</text>"
        for k, name in enumerate(columns)
    ]
    down = [
        f'<text x="{left - 8:.0f}" y="{top + (q + 0.68) * CELL:.0f}" text-anchor="end">{escape(_short(name))}</text>'
        for q, name in enumerate(rows)
    ]
    return (
        f'<svg class="heat" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(about)}"><g class="paper">{_paper(left, top, len(columns), len(rows), CELL)}</g>'
        f'<g class="cells">{"".join(cells)}</g><g class="names">{"".join(across + down)}</g></svg>'
    )


def head_grid(maps: Mapping[str, Float[Tensor, "B H Q K"]], *, row: int = 0, marked: Choice | None = None) -> str:
    """Small pictures of every head, a line per layer; the first of each line is the average of its heads."""
    lines = []
    for path in maps:
        figures = [
            _mini(choice.of(maps, row), "average" if choice.head is None else f"head {choice.head}", choice == marked)
            for choice in choices({path: maps[path]})
        ]
        lines.append(f'<div class="layer"><h4>{escape(path)}</h4><div class="heads">{"".join(figures)}</div></div>')
    return f'<div class="grid">{"".join(lines)}</div>'


def _mini(weights: Float[Tensor, "Q K"], name: str, marked: bool) -> str:
    rows, columns = weights.shape
    cells = "".join(
        f'<rect x="{k * MINI}" y="{q * MINI}" width="{MINI}" height="{MINI}" fill-opacity="{share:.2f}"/>'
        for q, line in enumerate(weights.tolist())
        for k, share in enumerate(line)
        if share >= 0.02
    )
    return (
        f'<figure class="mini{" marked" if marked else ""}"><svg viewBox="0 0 {columns * MINI} {rows * MINI}" '
        f'width="{columns * MINI}"><g class="paper">{_paper(0, 0, columns, rows, MINI, ruled=False)}</g>'
        f'<g class="cells">{cells}</g></svg><figcaption>{name} · {alignment(weights):.2f}</figcaption></figure>'
    )


def _paper(left: float, top: float, columns: int, rows: int, cell: int, ruled: bool = True) -> str:
    width, height = columns * cell, rows * cell
    sheet = f'<rect x="{left:.0f}" y="{top:.0f}" width="{width}" height="{height}"/>'
    if not ruled:
        return sheet
    lines = [f"M{left:.0f} {top + q * cell:.0f}h{width}" for q in range(rows + 1)]
    lines += [f"M{left + k * cell:.0f} {top:.0f}v{height}" for k in range(columns + 1)]
    return f'{sheet}<path d="{"".join(lines)}"/>'


def _short(name: str, most: int = 16) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
