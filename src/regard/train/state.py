"""Where a run stands, on disk: checkpoints that are whole or not there, from which training goes on bit for bit."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO
from weakref import WeakSet

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from regard.checkpoint.files import load_tensors, read_json, save_tensors, settle
from regard.checkpoint.load import tensors_of
from regard.core.errors import CheckpointError, ConfigError, TrainingError
from regard.core.serial import load_json, to_json
from regard.train.average import Average
from regard.train.parallel import Ranks, local, region, replicated

PROGRESS = "training.json"


@dataclass
class Progress:
    """How far a run has come; everything about it that is not a tensor.

    Attributes:
        loader: the data loader's state.
        step: optimiser steps taken.
        tokens: read and said, without padding.
        seconds: time spent, over all sittings.
        window: sums since the last line of the log.
        log_bytes: length of the log.
        files: how many files the tensors lie in.
        best: the monitored metric of the best checkpoint.
        stale: validations since that metric last rose.
    """

    loader: dict[str, int]
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    log_bytes: int = 0
    files: int = 1
    best: float | None = None
    stale: int = 0


def state_of(ranks: Ranks, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Tensor]:
    """What a run needs to go on: weights in training, optimiser, average, random states. All ranks call this."""
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in tensors_of(model).items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer.{name}.{key}": value for key, value in state.items()}
    tensors |= {f"average.{name}": value for name, value in average.state().items()}
    tensors["random.cpu"] = ranks.gather(torch.get_rng_state())
    if ranks.device.type == "cuda":
        tensors["random.cuda"] = ranks.gather(torch.cuda.get_rng_state())
    return tensors


def save_state(folder: Path, ranks: Ranks, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
    """Write what :func:`state_of` gave to training.safetensors, and training.json.

    Where the model is cut across ranks, all call this, and each writes what it holds: training-00001.safetensors and so
    on, each with a table of where in the whole its parts lie.
    """
    kept = {name: value for name, value in tensors.items() if ranks.keeps(value)}
    progress.files = ranks.world if ranks.sharded else 1
    try:
        if ranks.leader or ranks.sharded:
            shares = {name: local(value) for name, value in kept.items()}
            save_tensors(folder / _file(ranks.rank, progress.files), shares)
        if ranks.sharded:
            table = {name: [list(value.shape), region(value)[1]] for name, value in kept.items()}
            (folder / _table(ranks.rank)).write_text(json.dumps(table), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(f"{folder.parent}: cannot be saved ({reason}); what was there is untouched") from None
    if ranks.leader:
        (folder / PROGRESS).write_text(json.dumps(to_json(progress), indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def load_state(
    folder: Path, ranks: Ranks, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> Progress:
    """Put everything back as :func:`save_state` found it; the averaged weights themselves are the caller's to load.

    How many ranks wrote it, and how the model lay across them, makes no difference; only a rank that was not there has
    no random state to go on from.

    Raises:
        CheckpointError: the files are missing, damaged, or of another model.
    """
    try:
        progress = load_json(Progress, folder / PROGRESS)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    saved = _Saved(folder, progress.files, ranks)
    try:
        named = tensors_of(model)
        for name, value in named.items():
            saved.fill(f"model.{name}", value)
        names = {parameter: name for name, parameter in model.named_parameters()}
        moments = [
            {
                key: saved.copy(f"optimizer.{names[each]}.{key}", each)
                for key in saved.below(f"optimizer.{names[each]}.")
            }
            for each in _parameters(optimizer)
        ]
        average.restore(
            {key: saved.copy(f"average.{key}", named[key.split(".", 1)[1]]) for key in saved.below("average.")}
        )
        saved.random("cpu", torch.set_rng_state)
        if ranks.device.type == "cuda":
            saved.random("cuda", torch.cuda.set_rng_state)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: its training state does not fit this model ({error})") from None
    state = {number: values for number, values in enumerate(moments) if values}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def tidy(folder: Path, progress: Progress) -> None:
    """Remove what an earlier save, by more processes, left beside the files of the last one."""
    files = {_file(rank, progress.files) for rank in range(progress.files)}
    tables = {_table(rank) for rank in range(progress.files)} if progress.files > 1 else set()
    for path in folder.glob("training*"):
        if path.name not in files | tables | {PROGRESS}:
            with suppress(OSError):  # the save itself is whole
                path.unlink()


class Background:
    """Work that is done while training goes on, one piece at a time; what goes wrong is raised at the next one."""

    def __init__(self) -> None:
        self.thread: threading.Thread | None = None
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if error else nullcontext():  # the first thing that went wrong is what is told
            self.wait()

    def start(self, work: Callable[[], None]) -> None:
        """Begin, once what was begun before is done. Raises what that raised."""
        self.wait()

        def run() -> None:
            try:
                work()
            except Exception as error:
                self.failure = error

        self.thread = threading.Thread(target=run, name="saving")
        self.thread.start()

    def wait(self) -> None:
        """Until it is done. Raises what it raised."""
        if self.thread is not None:
            self.thread.join()
        self.thread, failure, self.failure = None, self.failure, None
        if failure is not None:
            raise failure


def put(into: Tensor, full: Tensor) -> None:
    """Copy this rank's share of ``full`` into a tensor, or all of it into one that is not cut."""
    shape, offset = region(into)
    if tuple(full.shape) != tuple(into.shape):
        raise RuntimeError(f"{list(full.shape)} where the model has {list(into.shape)}")
    box = tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))
    local(into).copy_(full[box])


class _Saved:
    """The tensors of a saved state, whichever files their parts lie in."""

    def __init__(self, folder: Path, files: int, ranks: Ranks) -> None:
        self.ranks = ranks
        self.parts: dict[str, list[tuple[list[int], list[int], Tensor]]] = {}
        for rank in range(files):
            mine = rank % ranks.world == ranks.rank  # each file is held against its checksum by one rank
            tensors = load_tensors(folder / _file(rank, files), check=mine)
            table = read_json(folder / _table(rank)) if files > 1 else {}
            for name, part in tensors.items():
                shape, offset = table.get(name) or (list(part.shape), [0] * part.ndim)
                self.parts.setdefault(name, []).append((shape, offset, part))

    def fill(self, name: str, into: Tensor) -> None:
        """Copy this rank's share of the tensor ``name``; raises KeyError or RuntimeError where it does not fit."""
        shape, offset = region(into)
        held = local(into)
        for full, start, part in self.parts[name]:
            if list(into.shape) != full:
                raise RuntimeError(f"{name} is {full} where the model has {list(into.shape)}")
            low = [max(a, b) for a, b in zip(start, offset, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(start, part.shape, offset, shape, strict=True)]
            if all(a < b for a, b in zip(low, high, strict=True)):
                held[_box(low, high, offset)].copy_(part[_box(low, high, start)])

    def below(self, prefix: str) -> list[str]:
        """How the names go on that begin so."""
        return [name.removeprefix(prefix) for name in self.parts if name.startswith(prefix)]

    def copy(self, name: str, like: Tensor) -> Tensor:
        """The share of this rank in the tensor ``name``, cut as the model's ``like``.

        One of another shape (a count, the rows of a factored moment) is whole on every rank.
        """
        shape, _, part = self.parts[name][0]
        same = list(like.shape) == shape
        tensor = torch.empty_like(like, dtype=part.dtype) if same else replicated(like, part.new_empty(shape))
        self.fill(name, tensor)
        return tensor

    def random(self, kind: str, restore: Callable[[Tensor], None]) -> None:
        """Put this rank's random state back, if it had one; ranks that share a batch share it."""
        (_, _, rows), *_ = self.parts[f"random.{kind}"]
        first = self.ranks.rank - self.ranks.rank % self.ranks.parallel.tensor
        if first < len(rows):
            restore(rows[first].clone())


def _box(low: list[int], high: list[int], origin: list[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """In the order in which an optimiser's state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _file(rank: int, files: int) -> str:
    return f"training-{rank + 1:05d}.safetensors" if files > 1 else "training.safetensors"


def _table(rank: int) -> str:
    return f"training-{rank + 1:05d}.json"


_locks: WeakSet[TextIO] = WeakSet()


def _drop_locks() -> None:
    """Close what :func:`claim` opened."""
    for lock in _locks:
        lock.close()


# A lock is let go of when no process has it open any more. One that is forked, such as a loader's worker, may outlive
# its parent by a moment, and must not keep the run from being gone on with.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)


@contextmanager
def claim(run: Path, *, resume: bool) -> Iterator[bool]:
    """Hold a run's folder, alone, until the block ends; a killed process lets go of it by itself.

    Yields whether there is a checkpoint in last/ to go on from.

    Raises:
        TrainingError: another process trains there; or the folder holds something, and ``resume`` is off or what it
            holds is no run.
    """
    import fcntl

    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        _locks.add(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise TrainingError(f"{run}: another process is training in this folder") from None
        for folder in (run, run / "last"):
            settle(folder)
        held = any(not path.name.startswith(".") for path in run.iterdir())
        if held and not resume:
            raise TrainingError(f"{run}: the folder is not empty; --resume goes on with its run, --out names another")
        if held and not (run / "recipe.json").exists():
            raise TrainingError(f"{run}: the folder holds no run to resume; name another folder")
        try:
            yield (run / "last" / PROGRESS).exists()
        finally:
            with suppress(OSError):  # a folder that may no longer be read is not to hide what went wrong
                if not held and all(path.name == ".lock" for path in run.iterdir()):  # nothing came of it
                    (run / ".lock").unlink()
                    run.rmdir()
