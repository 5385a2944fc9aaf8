"""Draw the pictures of these pages: ``python docs/picture.py alignment RUN``, ``bleu RUN``, ``studies STUDY ...``."""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
STYLE = (
    "<style>.heat{background:#fff}.paper rect{fill:#f4f5f7}.paper path{stroke:#fff;stroke-width:1}"
    ".cells rect{fill:#2f4bb3}text{font:12px system-ui,sans-serif;fill:#222}</style>"
    '<rect width="100%" height="100%" fill="#fff"/>'
)


def alignment(run: Path) -> None:
    """The first attention map of a run's report, with the colours that the report's page gives it."""
    report = (run / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<svg class="heat"([^>]*)>(.*?)</svg>', report, flags=re.DOTALL)
    if found is None:
        raise SystemExit(f"{run}: the report shows no attention map")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" class="heat"{found[1]}>{STYLE}{found[2]}</svg>\n'
    (HERE / "alignment.svg").write_text(svg, encoding="utf-8")


def bleu(run: Path) -> None:
    """BLEU of the validations in a run's log over minutes of training."""
    points = [(line["seconds"] / 60, line["bleu"]) for line in log(run) if "bleu" in line]
    figure = blank(1)
    (axes,) = figure.axes
    axes.plot(*zip(*points, strict=True), marker="o", color="#2f4bb3")
    axes.set(xlabel="minutes of training", ylabel="BLEU, 200 validation pairs", xlim=(0, None), ylim=(0, None))
    figure.savefig(HERE / "bleu.svg", metadata={"Date": None})


def studies(*folders: Path) -> None:
    """Held-out loss over steps, the mean of the seeds, a panel for each study and a curve for each variant."""
    figure = blank(len(folders))
    for axes, folder in zip(figure.axes, folders, strict=True):
        for name, points in curves(folder):
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set(title=folder.name.removesuffix("-study"), xlabel="steps", ylabel="held-out loss, nats a character")
        axes.legend(frameon=False)
    figure.savefig(HERE / "studies.svg", metadata={"Date": None})


def curves(folder: Path) -> Iterator[tuple[str, list[tuple[int, float]]]]:
    """Each variant's name and its points, in the order in which a study trains them."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(folder.glob("*-*/"), key=lambda run: (run / "log.jsonl").stat().st_mtime):
        for line in log(run):
            if "valid_loss" in line:
                found[run.name.rpartition("-")[0]][line["step"]].append(line["valid_loss"])
    for name, losses in found.items():
        yield name.replace("-", " "), [(step, fmean(each)) for step, each in losses.items()]


def log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def blank(panels: int) -> "Figure":
    """Panels, two beside each other, to draw in."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "regard"  # the same picture is the same file
    rows, columns = -(-panels // 2), min(panels, 2)
    figure = Figure(figsize=(6 if columns == 1 else 9, 3 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.spines[["top", "right"]].set_visible(False)
    for spare in figure.axes[panels:]:
        spare.remove()
    return figure


if __name__ == "__main__":
    {"alignment": alignment, "bleu": bleu, "studies": studies}[sys.argv[1]](*map(Path, sys.argv[2:]))
