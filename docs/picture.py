"""Draw the pictures of these pages: ``python docs/picture.py alignment runs/demo``, ``... bleu runs/NAME``."""

import json
import re
import sys
from pathlib import Path

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
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "regard"  # the same picture is the same file
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    points = [(line["seconds"] / 60, line["bleu"]) for line in log if "bleu" in line]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), marker="o", color="#2f4bb3")
    axes.set(xlabel="minutes of training", ylabel="BLEU, 200 validation pairs", xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "bleu.svg", metadata={"Date": None})


if __name__ == "__main__":
    {"alignment": alignment, "bleu": bleu}[sys.argv[1]](Path(sys.argv[2]))
