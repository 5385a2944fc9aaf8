"""Losses, each exact as sum and count."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping


@functools.cache
def objectives() -> Mapping[str, type]:
    """Every objective by name: each file of this room that has one calls it OBJECTIVE."""
    modules = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return {name: module.OBJECTIVE for name, module in modules.items() if hasattr(module, "OBJECTIVE")}
