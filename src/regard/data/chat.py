"""Chat templates: how the messages of a conversation become the text that a model was trained on.

A template is a small program in Jinja that comes with a published tokenizer. It runs in a sandbox, sees plain data
alone, and what the messages spell is never a special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from regard.core.errors import CheckpointError, ConfigError, InputError, did_you_mean

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"
DEFAULT, WITH_TOOLS = "default", "tool_use"

MARK, ALONE = "\ufdd0", "\ufdd1"
"""MARK is put into names of special tokens that messages spell or could spell together, ALONE before a name of one
character. They are no characters, so no text has them."""


def read_templates(folder: Path, stated: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a checkpoint by name; those in files of their own go before those in tokenizer_config.json.

    Args:
        folder: with chat_template.jinja, and additional_chat_templates for further ones.
        stated: what tokenizer_config.json says: ``chat_template`` is one template, or a list of objects that name each.

    Raises:
        CheckpointError: a file that is not readable, or something else in the place of a template.
    """
    files = [(DEFAULT, folder / FILE)] if (folder / FILE).is_file() else []
    files += [(file.stem, file) for file in sorted((folder / FOLDER).glob("*.jinja"))]
    if files:
        return {name: _read(file) for name, file in files}
    said = stated.get("chat_template") or []
    named = [{"name": DEFAULT, "template": said}] if isinstance(said, str) else said
    try:
        found = {one["name"]: one["template"] for one in named}
    except (KeyError, TypeError):
        found = {"": None}
    if not all(isinstance(text, str) for entry in found.items() for text in entry):
        raise CheckpointError("chat_template is neither a template nor a list of named ones")
    return found


def stated_templates(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """What tokenizer_config.json says of the templates; None where there are none."""
    if templates.keys() == {DEFAULT}:
        return templates[DEFAULT]
    return [{"name": name, "template": text} for name, text in templates.items()] or None


def choose_template(templates: Mapping[str, str], name: str | None, *, tools: bool) -> str:
    """The template called ``name``; else the one for tools, if there are some, or the usual one. Raises ConfigError."""
    if not templates:
        raise ConfigError("this tokenizer has no chat template: the model was not trained to chat")
    usual = WITH_TOOLS if tools and WITH_TOOLS in templates else DEFAULT
    if (name or usual) not in templates:
        hint = did_you_mean(name, templates) if name else ""
        raise ConfigError(f"no chat template '{name or usual}'{hint}; there are {', '.join(sorted(templates))}")
    return templates[name or usual]


def render(template: str, told: Mapping[str, Any], names: dict[str, str], special: Collection[str]) -> str:
    """What a template writes of a conversation.

    Args:
        template: the program.
        told: ``messages``, each with ``role`` and ``content``, and whatever else the template understands; plain data.
        names: of the tokens that it may write, such as ``bos_token``.
        special: names of special tokens. Where ``told`` spells one, or part of one, the text has marks: see `parted`.

    Raises:
        CheckpointError: the template is no program.
        InputError: messages that are no plain data, or that the template refuses.
    """
    try:
        program = _compiled(template)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"the chat template is not readable: {_line(error)}") from None
    try:
        data = json.loads(json.dumps(dict(told)))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"messages must be plain data, texts above all: {_line(error)}") from None
    messages = data["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError("messages must be a list of objects, each with 'role' and 'content'")
    mark = _marking(frozenset(special))
    marked = {name: _marked(value, mark) for name, value in data.items()}
    try:
        return program.render(names | marked)
    except Exception as error:  # whatever a program may raise
        raise InputError(f"the chat template does not take these messages: {_line(error)}") from None


def parted(text: str, special: Collection[str]) -> list[str]:
    """Text, a special token's name, text, and so on in turns; what has marks is text."""
    names = sorted(special, key=len, reverse=True)
    return re.split(
        f"({'|'.join(f'(?<!{ALONE})' * (len(name) == 1) + re.escape(name) for name in names) or '(?!)'})", text
    )


def unmarked(text: str) -> str:
    """The text without marks."""
    return text.replace(MARK, "").replace(ALONE, "")


@lru_cache(maxsize=8)
def _marking(special: frozenset[str]) -> Callable[[str], str]:
    """What puts marks into a text, so that it spells no name, neither alone nor with what stands beside it."""
    rests: dict[str, list[str]] = {}
    for name in special:
        rests.setdefault(name[:1], []).append(re.escape(name[1:]))
    spelled = re.compile(
        "|".join(f"{re.escape(char)}(?={'|'.join(filter(None, found))})" for char, found in rests.items() if any(found))
        or "(?!)"
    )
    single = re.compile("|".join(re.escape(name) for name in special if len(name) == 1) or "(?!)")
    starts = tuple({name[:cut] for name in special for cut in range(1, len(name))})
    ends = tuple({name[cut:] for name in special for cut in range(1, len(name))})

    def edged(text: str) -> str:
        return MARK * text.startswith(ends) + text + MARK * text.endswith(starts)

    def mark(text: str) -> str:
        text = single.sub(rf"{ALONE}\g<0>", spelled.sub(rf"\g<0>{MARK}", unmarked(text)))
        inner = text.strip()
        if inner not in ("", text):  # templates may trim it
            text = text.replace(inner, edged(inner), 1)
        return edged(text)

    return mark


def _marked(value: Any, mark: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, list):
        return [_marked(each, mark) for each in value]
    if isinstance(value, dict):
        return {mark(name): _marked(each, mark) for name, each in value.items()}
    return value


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {said}"


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable ({error})") from None


class _Generation(Extension):
    """The tag around what the model says, which marks it for training: here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


class _Plain(Namespace):
    """A namespace that keeps no name with an underscore in front, which might be one of Python's own."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a template may not set {name!r}")
        super().__setitem__(name, value)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _as_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    """The program, with what templates may call: raise_exception, strftime_now, and a tojson that escapes nothing."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    called: dict[str, Callable[..., Any]] = {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),  # the user's own time, as they would say it
        "namespace": _Plain,
    }
    environment.globals.update(called)
    environment.filters["tojson"] = _as_json
    return environment.from_string(template)
