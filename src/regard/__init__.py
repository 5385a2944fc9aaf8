"""Every Transformer, one attention.

The front door; each name is imported when first used, so that ``import regard`` costs nothing over torch:

- ``load(folder)``, ``save(model, folder)``, ``build(size)``: models (:mod:`regard.zoo`).
- ``tokenizer(folder)``: the tokenizer saved beside a model.
- ``predict(run, texts)``: what a trained run answers.
- ``generate(model, prompt, ...)``: tokens that a model writes (:mod:`regard.generate`).
- ``embed(model, texts)``: vectors of texts (:mod:`regard.tasks.embed`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.front import embed, predict, tokenizer
    from regard.generate.front import generate
    from regard.zoo import build, load, save

    __version__: str

__all__ = ["build", "embed", "generate", "load", "predict", "save", "tokenizer"]

_HOMES = {
    "build": "regard.zoo",
    "embed": "regard.front",
    "generate": "regard.generate.front",
    "load": "regard.zoo",
    "predict": "regard.front",
    "save": "regard.zoo",
    "tokenizer": "regard.front",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("regard")
    if name not in _HOMES:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
