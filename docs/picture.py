"""Draw the README's picture, the first attention map in the report of a run: ``python docs/picture.py runs/demo``."""

import re
import sys
from pathlib import Path

STYLE = (
    "<style>.heat{background:#fff}.paper rect{fill:#f4f5f7}.paper path{stroke:#fff;stroke-width:1}"
    ".cells rect{fill:#2f4bb3}text{font:12px system-ui,sans-serif;fill:#222}</style>"
    '<rect width="100%" height="100%" fill="#fff"/>'
)


def main(run: str) -> None:
    """Give the map the colours that the report's page gives it, and room of its own."""
    report = Path(run, "report.html").read_text(encoding="utf-8")
    found = re.search(r'<svg class="heat"([^>]*)>(.*?)</svg>', report, flags=re.DOTALL)
    if found is None:
        raise SystemExit(f"{run}: the report shows no attention map")
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" class="heat"{found[1]}>{STYLE}{found[2]}</svg>\n'
    Path(__file__).with_name("alignment.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
