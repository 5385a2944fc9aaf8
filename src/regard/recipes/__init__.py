"""Functions that return a recipe, one file for each task. A public function here is a recipe by its own name."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping

from regard.core.errors import ConfigError, did_you_mean
from regard.train.recipe import Recipe


@functools.cache
def recipes() -> Mapping[str, Callable[[], Recipe]]:
    """Every recipe by name, with hyphens: the public functions that the files of this room define."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_"):
                found[name.replace("_", "-")] = function
    return found


def find(name: str) -> Recipe:
    """The recipe called ``name``; an underscore may stand for a hyphen. Raises ConfigError with the nearest name."""
    known = recipes()
    key = name.replace("_", "-")
    if key not in known:
        raise ConfigError(f"no recipe '{name}'{did_you_mean(key, known)}; there are {', '.join(known)}")
    return known[key]()
