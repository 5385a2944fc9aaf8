"""Every command and every snippet of the README and the docs runs, and prints what the page says it prints.

A page is run from top to bottom in a folder of its own: ``bash`` blocks by bash, ``python`` blocks one after the other
in one namespace. In bash, ``make`` only checks that the Makefile has the target and could begin it, save that ``make
slow`` does run ``make demo``. A comment before a block says more:

- ``<!-- test: slow -->``: only ``make slow`` runs it.
- ``<!-- test: skip because ... -->``: nobody runs it, for that reason.
- ``<!-- test: output -->``, before a ``text`` block: this is what the block above it printed, to the letter.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = {"text", "json", "toml", "yaml"}
MAKE = f'make() {{ command make --no-print-directory -n -C "{ROOT}" "$@" > /dev/null; }}\n'
DEMO = f"""make() {{
  test "$1" = demo || set -- -n "$@"
  command make --no-print-directory -C "{ROOT}" "$@" > /dev/null
}}
"""


@dataclass(frozen=True)
class Step:
    """A fenced block of a page: where it starts, what it is, what the comment before it says."""

    line: int
    language: str
    code: str
    directive: str
    indent: int


def steps(text: str) -> Iterator[Step]:
    """The fenced blocks of a page, in order. Raises ValueError for what would never be tested."""
    directive, opened = "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if opened and line.strip() == "```":
            yield opened
            directive, opened = "", None
        elif opened:
            opened = replace(opened, code=f"{opened.code}{line[opened.indent :]}\n")
        elif fence := re.match(r"(\s*)```\s*(\w*)", line):
            opened = Step(number, fence[2], "", directive, indent=len(fence[1]))
            if opened.language not in SHOWN | {"bash", "python"}:
                raise ValueError(f"line {number}: write bash, python, or one of {SHOWN}, not '{opened.language}'")
        elif found := re.search(r"<!-- test: (.*?) -->", line):
            directive = found[1]
            if directive not in ("slow", "output") and not re.fullmatch(r"skip because .{8,}", directive):
                raise ValueError(f"line {number}: no directive '{directive}'")
        elif line.strip() and directive:
            raise ValueError(f"line {number}: the directive '{directive}' stands before no block")
    if opened or directive:
        raise ValueError("line last: the page ends within a block")


def run_page(page: Path, folder: Path, *, slow: bool) -> None:
    """Run a page in ``folder``; with its slow blocks, or without them. Raises AssertionError where it does not hold."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for step in steps(page.read_text(encoding="utf-8")):
        where = f"{page.name}:{step.line}"
        if step.directive == "output":
            assert step.language == "text", f"{where}: output is a text block"
            assert printed is None or printed.strip() == step.code.strip(), f"{where}: printed instead:\n{printed}"
        elif step.language in SHOWN:
            continue
        elif step.directive.startswith("skip") or (step.directive == "slow" and not slow):
            printed = None
        elif step.language == "bash":
            printed = run_bash((DEMO if slow else MAKE) + step.code, folder, where)
        else:
            printed = run_python(step, namespace, page)


def run_bash(code: str, folder: Path, where: str) -> str:
    """What a bash block prints; our own commands come first on its path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_python(step: Step, namespace: dict[str, object], page: Path) -> str:
    """What a python block prints; an exception shows the page's own line."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile("\n" * step.line + step.code, str(page), "exec"), namespace)
    return output.getvalue()


def speeds() -> Iterator[object]:
    """Each page once without its slow blocks and, if it has some or a demo, once with them."""
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        yield pytest.param(page, False, id=name)
        if re.search(r"<!-- test: slow -->|^make demo", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            yield pytest.param(page, True, id=f"{name}-slow", marks=pytest.mark.slow)


@pytest.mark.parametrize(("page", "slow"), speeds())
def test_everything_on_the_page_runs(page: Path, slow: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        run_page(page, tmp_path, slow=slow)


def page_of(folder: Path, text: str) -> Path:
    (folder / "page.md").write_text(text)
    return folder / "page.md"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nfalse | true\n```", r"page\.md:1: exit code 1"),
        ("```bash\nmake no-such-target\n```", "exit code 2(.|\n)*no-such-target"),
        ("```python\nprint(1)\n```\n<!-- test: output -->\n```text\n2\n```", r"page\.md:5: printed instead:\n *1"),
        ("```bash\necho 1\n```\n<!-- test: output -->\n```text\n2\n```", "printed instead"),
    ],
)
def test_a_page_that_is_wrong_fails(tmp_path, text: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run_page(page_of(tmp_path, text), tmp_path, slow=False)


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nls\n```",
        "```\nls\n```",
        "```bash\nls",
        "<!-- test: skip -->\n```bash\nls\n```",
        "<!-- test: later -->\n```bash\nls\n```",
        "<!-- test: slow -->\nwords\n```bash\nls\n```",
    ],
)
def test_a_block_that_would_escape_is_refused(tmp_path, text: str) -> None:
    with pytest.raises(ValueError, match="line "):
        run_page(page_of(tmp_path, text), tmp_path, slow=False)


def test_blocks_share_a_folder_and_a_namespace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
- in a list:

    ```python
    x = 1
    ```

```bash
echo 2 > file
make help
```

<!-- test: slow -->
```bash
echo slow > file
```

<!-- test: skip because it says no -->
```bash
exit 1
```

```python
from pathlib import Path
Path("sum").write_text(str(x + int(Path("file").read_text())))
```
"""
    run_page(page_of(tmp_path, text), tmp_path, slow=False)
    assert (tmp_path / "sum").read_text() == "3"
    with pytest.raises(ValueError, match="invalid literal"):
        run_page(page_of(tmp_path, text), tmp_path, slow=True)
