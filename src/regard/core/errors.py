"""Errors a user can act on: each message says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class RegardError(Exception):
    """Base of the errors that are the user's to mend, told in one line; the command line exits with ``status``."""

    status = 2


class ConfigError(RegardError):
    """A configuration, recipe or option that cannot be used as written."""


class InputError(RegardError, ValueError):
    """Tensors, tokens or text that a model or function cannot take."""


class DataError(RegardError):
    """A data file that is missing, malformed or empty; names the file and the line."""


class CheckpointError(RegardError):
    """A checkpoint that is missing, damaged, or does not fit the model."""


class TrainingError(RegardError):
    """Training that cannot go on: a loss that is not finite, or a run folder that is in use."""


class PeerError(TrainingError):
    """Another process of the run is gone: this one has done nothing wrong, and all may begin again."""

    status = 3


class Unsupported(RegardError):
    """A combination that this kernel or function cannot compute exactly; it never guesses."""


class MissingExtra(RegardError, ImportError):
    """A feature whose optional dependency is not installed; names the extra to install."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs the '{extra}' extra: pip install 'regard[{extra}]'")


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """The choices closest in spelling to ``name``, best first; empty when nothing is close."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.6)


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The ending of an error line: `` (did you mean 'x'?)``, or nothing when no choice is close."""
    close = nearest(name, choices)
    return f" (did you mean '{close[0]}'?)" if close else ""
