"""Where a run stands, on disk: checkpoints that are whole or not there, from which training goes on bit for bit."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.checkpoint.files import load_tensors, save_tensors, settle
from regard.checkpoint.load import tensors_of
from regard.core.errors import CheckpointError, ConfigError, TrainingError
from regard.core.serial import load_json, to_json
from regard.train.average import Average

WEIGHTS, PROGRESS = "training.safetensors", "training.json"


@dataclass
class Progress:
    """How far a run has come; everything about it that is not a tensor.

    Attributes:
        loader: the data loader's state.
        step: optimiser steps taken.
        seconds: time spent, over all sittings.
        window: sums since the last line of the log.
        log_bytes: length of the log.
        best: the monitored metric of the best checkpoint.
        stale: validations since that metric last rose.
    """

    loader: dict[str, int]
    step: int = 0
    seconds: float = 0.0
    window: dict[str, float] = field(default_factory=dict)
    log_bytes: int = 0
    best: float | None = None
    stale: int = 0


def save_state(
    folder: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average
) -> None:
    """Write training.safetensors (weights in training, optimiser, average, random state) and training.json."""
    tensors = {f"model.{name}": value for name, value in tensors_of(model).items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
    tensors |= {f"average.{name}": value for name, value in average.state().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_tensors(folder / WEIGHTS, tensors)
    (folder / PROGRESS).write_text(json.dumps(to_json(progress), indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> Progress:
    """Put everything back as :func:`save_state` found it; the averaged weights themselves are the caller's to load.

    Raises:
        CheckpointError: the files are missing, damaged, or of another model.
    """
    file = folder / WEIGHTS
    tensors = load_tensors(file)
    try:
        progress = load_json(Progress, folder / PROGRESS)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    try:
        for name, value in tensors_of(model).items():
            value.copy_(tensors[f"model.{name}"])
        torch.set_rng_state(tensors["random.cpu"])
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: does not fit this model ({error})") from None
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimizer.", tensors).items():
        i, key = name.split(".", 1)
        moments.setdefault(int(i), {})[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    average.restore(_below("average.", tensors))
    return progress


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


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
            yield (run / "last" / WEIGHTS).exists()
        finally:
            if not held and all(path.name == ".lock" for path in run.iterdir()):  # nothing came of it
                (run / ".lock").unlink()
                run.rmdir()
