"""Every Transformer, one attention.

The front door. Each name below is imported when first used, so that ``import regard`` costs nothing over torch.

- ``load(folder)``, ``save(model, folder)``, ``build(name)``: models.
- ``tokenizer(folder)``: the tokenizer saved beside a model.
- ``predict(run, texts)``: what a trained run answers.
- ``generate(model, tokenizer, prompt)``: text from a model, piece by piece.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.zoo import build, load, save

    __version__: str

__all__ = ["build", "load", "save"]

_HOMES = {"build": "regard.zoo", "load": "regard.zoo", "save": "regard.zoo"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - a tenth of the import time, rarely asked for

        return version("regard")
    if name not in _HOMES:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
