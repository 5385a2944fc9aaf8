"""What training asks of a task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from regard.core.types import Batch
from regard.data.loader import Loader

Prepare = Callable[[Batch, torch.Generator], Batch]


class Task(Protocol):
    """Examples of one kind: how they are read, encoded, batched, predicted and scored."""

    monitor: str
    """The metric, higher is better, by which the best checkpoint is chosen."""

    def configure(self, model: Any) -> Any:
        """A model's configuration with what the data decides filled in (vocabulary size, special tokens)."""
        ...

    def loader(self, *, seed: int, prepare: Prepare) -> Loader[Any]:
        """The training batches."""
        ...

    def validation(self) -> Sequence[Batch]:
        """The held-out batches, always the same."""
        ...

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Predict held-out examples and score the answers."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was learnt from the data (a tokenizer), so that ``Data.open(folder)`` finds it."""
        ...


class Data(Protocol):
    """A recipe's ``data``: a frozen dataclass that says what to learn from, and opens it as a task."""

    task: ClassVar[str]

    def open(self, folder: Path | None = None) -> Task:
        """The task, with what :meth:`Task.save` wrote to ``folder``, or learning it from the data."""
        ...
