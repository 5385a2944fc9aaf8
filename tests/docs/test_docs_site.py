"""The site builds without a warning, has a page for every module, and asks for nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_site_is_whole_and_stands_alone(tmp_path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    everything = "".join(pages.values())
    for path in (ROOT / "src" / "regard").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if not any(part.startswith("_") for part in parts):
            assert f'id="{".".join(parts)}"' in everything
    for name, page in pages.items():
        assert re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.?(?:https?:)?//[^>]*>", page) == [], name
        assert ":func:" not in page, name
