"""What long work says on standard error."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

SECONDS = 10.0
"""Between the lines that tell how far work has come, where there is no terminal."""


_quiet = ContextVar("_quiet", default=False)


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Consoles made within the block show nothing, if ``quiet``."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


def console() -> Any:
    """A console on standard error, unless :func:`quietly`; if its reader leaves, the work goes on unseen."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

        def _check_buffer(self) -> None:  # where all that is shown is written
            try:
                super()._check_buffer()
            except OSError as error:
                if error.errno != errno.EIO:  # of a terminal that was closed
                    raise
                self.on_broken_pipe()

    return Lasting(stderr=True, quiet=_quiet.get(), highlight=False, soft_wrap=True)


def _large(number: float) -> str:
    """A number of characters, in millions where it is one or more."""
    return f"{number / 1e6:,.1f} million" if number >= 1e6 else f"{number:,.0f}"


def told(items: Iterable[T], characters: Callable[[T], int], what: str) -> Iterator[T]:
    """The items as they come; where that takes long, how many characters of them have come, and how fast.

    Args:
        items: what the work is done on.
        characters: how many an item has.
        what: the name of the work.
    """
    began = spoke = time.monotonic()
    done, status, terminal = 0, None, sys.stderr.isatty()
    with ExitStack() as shown:
        for item in items:
            yield item
            done += characters(item)
            now = time.monotonic()
            if now - spoke < (1.0 if terminal else SECONDS):
                continue
            spoke, rate = now, done / (now - began)
            line = f"{what}: {_large(done)} characters, {_large(rate)} a second"
            if not terminal:
                console().print(line, markup=False)
            elif status is None:
                status = shown.enter_context(console().status(line))
            else:
                status.update(line)
