"""The site builds without a warning, has a page for every module, and asks for nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_module_has_its_place(site) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    for path in (ROOT / "src" / "regard").rglob("*.py"):
        parts = path.relative_to(ROOT / "src").with_suffix("").parts
        if parts[-1].strip("_") == parts[-1]:
            assert f'id="{".".join(parts)}"' in pages


def test_the_site_works_without_a_network(site) -> None:
    for path in site.rglob("*.html"):
        needed = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=.?(?:https?:)?//[^>]*>", path.read_text())
        assert needed == [], path.name


def test_no_page_shows_markup_of_docstrings(site) -> None:
    for path in (site / "api").glob("*.html"):
        assert ":func:" not in path.read_text(encoding="utf-8"), path.name
