"""Where a run's log goes besides its own file: TensorBoard, Weights & Biases."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args

import xxhash

from regard.core.errors import MissingExtra
from regard.core.serial import to_json
from regard.train.watch import Record

TrackerName = Literal["tensorboard", "wandb"]

NOT_DRAWN = ("step", "seconds")


class Tracker(Protocol):
    """What takes the records of a log elsewhere. Whatever it raises ends it, not the run."""

    def write(self, record: Record) -> None: ...

    def close(self) -> None: ...


def check_installed(names: Sequence[TrackerName]) -> None:
    """Raise MissingExtra, naming the extra, for a tracker that is not installed."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is not the library
            raise MissingExtra(f"track {name}", name)


class Trackers:
    """The trackers that a recipe names. One that fails is heard of once, and let go.

    Args:
        names: which.
        run: the run's folder.
        recipe: of the run.
        step: where the run stands; what a killed process reported after it is taken back, as far as that goes.
        warn: tells the user.
    """

    def __init__(
        self, names: Sequence[TrackerName], run: Path, recipe: Any, step: int, warn: Callable[[str], None]
    ) -> None:
        makers: dict[str, Callable[[], Tracker]] = {
            "tensorboard": lambda: TensorBoard(run / "tensorboard", step),
            "wandb": lambda: WandB(run, recipe),
        }
        assert makers.keys() == set(get_args(TrackerName))
        self.warn = warn
        self.trackers: dict[str, Tracker] = {}
        for name in names:
            made = self._try(name, makers[name])
            if made is not None:
                self.trackers[name] = made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in self.trackers.items():
            self._try(name, tracker.close)

    def write(self, record: Record) -> None:
        """Pass a record on."""
        for name, tracker in list(self.trackers.items()):
            self._try(name, partial(tracker.write, record))

    def _try(self, name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # of another library's making: a lost picture is not worth a lost run
            self.trackers.pop(name, None)
            self.warn(f"{name} is no longer told of this run ({type(error).__name__}: {_first_line(error)})")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


class TensorBoard:
    """Writes event files into ``folder``; on resuming, what they hold after ``step`` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Numbers as scalars, the rest as text; all is on disk when this returns."""
        step = record["step"]
        for name, value in numbers(record):
            self.writer.add_scalar(name, value, step)
        for name, text in texts(record):
            self.writer.add_text(name, text, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB:
    """Sends to a run of Weights & Biases that goes by the run's folder, so that a resumed run goes on there.

    Its project, its mode (such as offline) and the rest are as its environment variables say.
    """

    def __init__(self, run: Path, recipe: Any) -> None:
        import wandb

        self.run = wandb.init(
            dir=run,
            name=run.name,
            id=f"{run.name}-{xxhash.xxh3_64_hexdigest(str(run.resolve()).encode())}",
            resume="allow",
            config=to_json(recipe),
        )

    def write(self, record: Record) -> None:
        """Numbers and texts, by step."""
        self.run.log({**dict(numbers(record)), **dict(texts(record))}, step=record["step"])

    def close(self) -> None:
        """Wait until all is sent."""
        self.run.finish()


def numbers(record: Record) -> Iterator[tuple[str, float]]:
    """The numbers of a record, those in objects and lists by their path: ``dead_units/encoder.0.ffn``."""
    for name, value in record.items():
        if name not in NOT_DRAWN:
            yield from _leaves(name, value)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{path}/{name}", inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(f"{path}/{i}", inner)


def texts(record: Record) -> Iterator[tuple[str, str]]:
    """What is to be read: the model's answers to its samples, and what ails the run."""
    for i, sample in enumerate(record.get("samples", [])):
        yield f"samples/{i}", f"{sample['source']} → {sample['output']}"
    if "health" in record:
        yield "health", f"{record['health']}: {record['message']}"
