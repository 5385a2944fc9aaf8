"""Decoding: functions over logits and iterators over steps.

The package is also the front door's function: importing any of its modules makes ``regard.generate`` this package, so
calling it does what :func:`regard.generate.front.generate` does.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from regard.generate.front import generate

        return generate(*args, **options)


sys.modules[__name__].__class__ = _Room
