"""The trials of a search: ordinary runs, by processes that say how it goes and are told when to give up."""

import json
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from regard.core.errors import RegardError, TrainingError
from regard.train.fit import ended, fit
from regard.train.interrupt import end_after
from regard.train.recipe import Recipe, load_recipe, override

if TYPE_CHECKING:
    import optuna

RECIPE = "recipe.json"
"""In a search's folder, what its trials change."""

Ending = Literal["complete", "early", "failed", "stopped"]


class Worker:
    """A process that trains one trial at a time.

    Args:
        out: the folder of the search.
        monitor: the score's name.
        threads: how many it computes with.

    Attributes:
        trial: the one that it trains, if any.
    """

    trial: "optuna.Trial | None" = None
    process: Any = None

    def __init__(self, out: Path, monitor: str, threads: int) -> None:
        self.args, self.stopped = (out, monitor, threads), False

    def begin(self, trial: "optuna.Trial", options: list[str]) -> None:
        """Have it train a trial, or go on with it."""
        if self.process is None or not self.process.is_alive():
            context = multiprocessing.get_context("spawn")  # torch's threads and CUDA do not survive a fork
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(theirs, *self.args))
            resource_tracker.ensure_running()  # it would unblock signals as it begins
            mask = {signal.SIGINT, signal.SIGHUP}  # a terminal's come to all processes
            before = signal.pthread_sigmask(signal.SIG_BLOCK, mask)
            try:
                self.process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.trial = trial
        self.answer((trial.number, options))

    def read(self) -> tuple[Any, ...]:
        """What it says next. Raises TrainingError where it failed in a way that no setting should make it fail."""
        with suppress(EOFError, ConnectionError):
            return self.pipe.recv()
        self.process.join()
        code = self.process.exitcode
        if self.stopped:
            return "stopped", ""
        if code >= 0:  # an exception, which it has shown
            raise TrainingError(f"a process that trains ended with exit code {code}; --resume goes on")
        return "failed", f"its process was killed by signal {-code}, perhaps for want of memory"

    def answer(self, value: Any) -> None:
        """Say something to it."""
        with suppress(ConnectionError):  # it is gone: what is read next tells
            self.pipe.send(value)

    def stop(self) -> None:
        """Have it save and end its trial, if it has one, after the step under way."""
        if self.process is not None and not self.stopped:
            self.process.terminate()
        self.stopped = True

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.pipe.close()


def _serve(pipe: Connection, out: Path, monitor: str, threads: int) -> None:
    """What a worker does until its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    end_after(parent.join)
    torch.set_num_threads(threads)
    recipe = load_recipe(out / RECIPE)

    def judged(line: Mapping[str, Any]) -> bool:
        if not math.isfinite(line[monitor]):
            raise TrainingError(f"step {line['step']}: {monitor} is {line[monitor]}")
        pipe.send(("validated", line["step"], line[monitor]))
        return pipe.recv()

    with suppress(EOFError, ConnectionError):
        while True:
            number, options = pipe.recv()
            pipe.send(train(recipe, options, folder(out, number), judged))


def train(
    recipe: Recipe, options: list[str], run: Path, judged: Callable[[Mapping[str, Any]], bool]
) -> tuple[Ending, str]:
    """Train one trial, or go on with it: how it ended, and why.

    The validations of an earlier sitting are judged again: not all of them may have been written down.
    """
    given_up = False

    def report(step: int, metrics: Mapping[str, float]) -> bool:
        nonlocal given_up
        given_up = judged({"step": step, **metrics})
        return given_up

    try:
        recipe = override(recipe, options)
        for line in validations(run):
            if judged(line) and line["step"] < recipe.num_steps:
                return "early", ""
        progress = fit(recipe, run, resume=True, quiet=True, report=report)
    except RegardError as error:
        return "failed", str(error)
    except torch.OutOfMemoryError as error:
        return "failed", str(error).partition(".")[0]
    if ended(recipe, progress):
        return "complete", ""
    return ("early" if given_up else "stopped"), ""


def folder(out: Path, number: int) -> Path:
    """Where a trial is trained."""
    return out / f"trial-{number:03}"


def validations(run: Path) -> Iterator[Mapping[str, Any]]:
    """The validations in a run's log; a line that was cut short is left out."""
    log = run / "log.jsonl"
    for line in log.read_bytes().splitlines(keepends=True) if log.exists() else []:
        if line.endswith(b"\n") and "valid_loss" in (record := json.loads(line)):
            yield record
