"""The comparisons that textbooks ask for: functions from a recipe to a study. A public function is one by its name.

The functions of a file vary the same recipe, which it calls ``BASE``.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

from regard.core.errors import ConfigError, did_you_mean
from regard.train.recipe import Recipe
from regard.train.study import Study


class Plan(NamedTuple):
    """How a study is made: the recipe that it varies as it stands, and the study of a recipe."""

    base: Callable[[], Recipe]
    study: Callable[[Recipe], Study]


@functools.cache
def studies() -> Mapping[str, Plan]:
    """Every study by name: the public functions that the files of this room define."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and name != "BASE" and not name.startswith("_"):
                found[name.replace("_", "-")] = Plan(module.BASE, function)
    return found


def find(name: str) -> Plan:
    """The study called ``name``. Raises ConfigError with the nearest name."""
    known = studies()
    key = name.replace("_", "-")
    if key not in known:
        raise ConfigError(f"no study '{name}'{did_you_mean(key, known)}; there are {', '.join(known)}")
    return known[key]
