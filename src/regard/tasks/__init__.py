"""One file per task: what an example is, how it is encoded, decoded and scored."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any


@functools.cache
def datas() -> Mapping[str, Any]:
    """The ``data`` dataclass of every task, by the task's name: each file of this room but ``task`` has one, DATA."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    found = [module.DATA for module in modules if hasattr(module, "DATA")]
    return {data.task: data for data in found}
