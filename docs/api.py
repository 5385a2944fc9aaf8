"""A hook of mkdocs: one API page for each room of the package, made from its docstrings when the site is built."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PACKAGE = Path(__file__).parent.parent / "src" / "regard"


def rooms() -> dict[str, list[str]]:
    """The public modules of every room, a room being a sub-package or a module at the top."""
    found: dict[str, list[str]] = {"regard": ["regard"]}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = [part for part in path.relative_to(PACKAGE).with_suffix("").parts if part != "__init__"]
        if parts and not any(part.startswith("_") for part in parts):
            found.setdefault(parts[0], []).append(".".join(["regard", *parts]))
    return found


def on_config(config: MkDocsConfig) -> None:
    """Put the pages into the navigation."""
    nav: list[Any] = config.nav or []
    config.nav = [*nav, {"API": [{room: f"api/{room}.md"} for room in rooms()]}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, which stand in no folder."""
    for room, modules in rooms().items():
        content = f"# {room}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
        files.append(File.generated(config, f"api/{room}.md", content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles that docstrings have before names of functions and classes."""
    return re.sub(r":(?:func|class|meth|mod):(?=<code>)", "", html)
