"""The training loop."""

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm

from regard import zoo
from regard.blocks.residual import Stack
from regard.checkpoint.files import replacing
from regard.core.errors import ConfigError, DataError, TrainingError
from regard.core.serial import differences, to_json
from regard.core.types import IGNORE, Batch
from regard.objectives.objective import Objective
from regard.tasks.task import Task
from regard.train.average import Average
from regard.train.freeze import depths, freeze, thaw
from regard.train.optimize import build_optimizer
from regard.train.precision import PrecisionName, autocast, keep_few_kernels, resolve
from regard.train.recipe import Recipe, load_recipe, save_recipe
from regard.train.state import Progress, claim, load_state, save_state
from regard.train.watch import Log, Watch

NOT_MEANS = ("targets", "tokens", "steps", "grad_norm", "seconds")
"""What of a window's sums is not a loss, summed over targets."""


def fit(recipe: Recipe, out: Path, *, resume: bool = False, quiet: bool = False) -> Progress:
    """Train by the recipe, in the folder ``out``; or, with ``resume``, go on there, bit for bit where it stopped.

    A run that ended before its first checkpoint, or never began, goes on from its beginning. One that goes on in
    ``auto`` precision has that which it began in. The folder holds
    recipe.json (as resolved), what the task learnt from the data (tokenizer.json), log.jsonl, and the checkpoints
    best/ and last/, both of the averaged weights; last/ also has what a resume needs. SIGINT and SIGTERM end the run
    cleanly after the step under way.

    Raises:
        TrainingError: the loss is not finite (naming the step), or the folder cannot be used.
        CheckpointError: a checkpoint cannot be written or read.
        DataError, ConfigError: what the recipe names cannot be used, or the run in the folder has another recipe.
    """
    keep_few_kernels()
    with claim(out, resume=resume) as begun:
        torch.manual_seed(recipe.seed)
        task = recipe.data.open(out if begun else None)
        recipe = settled(recipe, task, out)
        run = Run(recipe, task, out)
        if begun:
            run.restore()
        else:
            with replacing(out) as folder:
                task.save(folder)
                save_recipe(recipe, folder / "recipe.json")
        with Watch(recipe.num_steps, step=run.progress.step, quiet=quiet) as watch, interruptions() as stop:
            return run.train(watch, stop)


def settled(recipe: Recipe, task: Task, out: Path) -> Recipe:
    """The recipe with what data, machine and the run so far decide filled in.

    Raises ConfigError where the run in ``out`` has another: a run goes on by its own recipe.
    """
    recipe = replace(recipe, model=task.configure(recipe.model))
    path = out / "recipe.json"
    stored = load_recipe(path) if path.exists() else None
    if recipe.precision == "auto":
        recipe = replace(recipe, precision=stored.precision if stored else resolve("auto", default_device()))
    if stored and (differing := differences(to_json(recipe), to_json(stored))):
        raise ConfigError(f"{out}: a run goes on by its own recipe; it has another {', '.join(differing)}")
    return recipe


def default_device() -> torch.device:
    """A GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ended(recipe: Recipe, progress: Progress) -> bool:
    """Whether the last step was taken, the time is up, or there was nothing better for too long."""
    timed_out = recipe.max_minutes is not None and progress.seconds > 60 * recipe.max_minutes
    return progress.step >= recipe.num_steps or timed_out or 0 < recipe.patience <= progress.stale


def build_model(recipe: Recipe, device: torch.device) -> nn.Module:
    """The model to train, with its parts frozen, recomputed and compiled as the recipe says; raises ConfigError."""
    model = zoo.build(recipe.model, seed=recipe.seed, device=device).train()
    freeze(model, recipe.freeze)
    for stack in [module for module in model.modules() if isinstance(module, Stack)]:
        stack.recompute = recipe.recompute
        if recipe.compile:
            for block in stack.blocks:
                block.compile(dynamic=True)  # batches hardly ever repeat a shape
    return model


class Run:
    """A run under way: the model, its average, the optimiser, the data, and how far they have come."""

    def __init__(self, recipe: Recipe, task: Task, out: Path) -> None:
        self.recipe, self.task, self.out, self.device = recipe, task, out, default_device()
        self.model = build_model(recipe, self.device)
        self.average = Average(self.model, recipe.average)
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self.depths = {part: depth for part, depth in depths(self.model).items() if part.requires_grad}
        self.loader = task.loader(seed=recipe.seed, prepare=recipe.objective.prepare)
        self.progress = Progress(loader=self.loader.state())
        task.validation()  # what is wrong with it is said now, not after the first hours

    def train(self, watch: Watch, stop: threading.Event) -> Progress:
        """Step until the run has ended (:func:`ended`), or ``stop``."""
        recipe, progress = self.recipe, self.progress
        clock = time.perf_counter() - progress.seconds
        batches = iter(self.loader)
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        watch.say(f"{parameters:,} parameters on {self.device}, from step {progress.step} to {recipe.num_steps}")
        with closing(Log(self.out / "log.jsonl", progress.log_bytes)) as log:
            while not ended(recipe, progress) and not stop.is_set():
                self.step(batches)
                progress.seconds = time.perf_counter() - clock
                watch.advance(progress.step)
                if ended(recipe, progress) or progress.step % recipe.log_every == 0:
                    self.record(self.summary(), log, watch)
                if ended(recipe, progress) or progress.step % recipe.valid_every == 0:
                    self.validate(log, watch)
                    progress.seconds = time.perf_counter() - clock
                    self.save(log)
            if not ended(recipe, progress):
                self.save(log)
                watch.say(f"stopped at step {progress.step} and saved; go on with: regard train {self.out} --resume")
            elif 0 < recipe.patience <= progress.stale:
                watch.say(f"ended at step {progress.step}: no better in {progress.stale} validations")
        return progress

    def step(self, batches: Iterator[Batch]) -> None:
        """One optimiser step on the mean loss over all targets of the next batches."""
        recipe, progress = self.recipe, self.progress
        began = time.perf_counter()
        progress.step += 1
        if recipe.unfreeze_every:
            thaw(self.depths, recipe.unfreeze_every, progress.step)
        totals = accumulate(self.model, recipe.objective, self.draw(batches), self.device, recipe.precision)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = float(get_total_norm(gradients)) / totals["targets"]
        if not math.isfinite(totals["loss"]) or not math.isfinite(norm):
            raise TrainingError(
                f"step {progress.step}: the loss is {totals['loss'] / totals['targets']:g} and the gradient's norm "
                f"{norm:g}; lower schedule.lr or lengthen schedule.warmup"
            )
        shrink = min(1.0, recipe.clip_norm / norm) if recipe.clip_norm and norm else 1.0
        torch._foreach_mul_(gradients, shrink / totals["targets"])
        if recipe.clip_value:
            torch._foreach_clamp_min_(gradients, -recipe.clip_value)
            torch._foreach_clamp_max_(gradients, recipe.clip_value)
        lr = recipe.schedule(progress.step, recipe.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(progress.step)
        progress.loader = self.loader.state()
        totals |= {"steps": 1, "grad_norm": norm, "seconds": time.perf_counter() - began}
        progress.window = {name: progress.window.get(name, 0) + value for name, value in totals.items()}

    def draw(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of one step. Raises DataError for one in which no target carries loss, with an example."""
        for batch in islice(batches, self.recipe.accumulate):
            if "targets" in batch and not (batch["targets"] != IGNORE).any():
                raise DataError(
                    f"step {self.progress.step}: every target is masked in batch {self.loader.index} of epoch "
                    f"{self.loader.epoch}, which begins with {self.task.show(batch):.300}"
                )
            yield batch

    def summary(self) -> dict[str, float]:
        """The log's line for the steps since the last one."""
        window, progress = self.progress.window, self.progress
        self.progress.window = {}
        return {
            "step": progress.step,
            "epoch": self.loader.epoch,
            **{name: value / window["targets"] for name, value in window.items() if name not in NOT_MEANS},
            "lr": self.recipe.schedule(progress.step, self.recipe.num_steps),
            "grad_norm": window["grad_norm"] / window["steps"],
            "tokens_per_second": window["tokens"] / window["seconds"],
            "seconds": progress.seconds,
        }

    @torch.no_grad()
    def validate(self, log: Log, watch: Watch) -> None:
        """Measure the averaged weights on held-out data, and keep them if they are the best so far."""
        self.average.validated()
        model = self.average.model.eval()
        sums: Counter[str] = Counter()
        for batch in self.task.validation():
            loss = self.recipe.objective.loss(model, to(batch, self.device))
            parts = {"loss": loss.sum, "targets": loss.count, **loss.parts}
            sums.update({name: float(value) for name, value in parts.items()})
        metrics = {f"valid_{name}": value / sums["targets"] for name, value in sums.items() if name != "targets"}
        metrics |= self.task.metrics(model, metrics["valid_nll"])
        self.model.train()
        self.record({"step": self.progress.step, **metrics, "seconds": self.progress.seconds}, log, watch)
        score, best = metrics[self.task.monitor], self.progress.best
        self.progress.stale = 0 if best is None or score > best else self.progress.stale + 1
        if best is None or score >= best:
            self.progress.best = score
            with replacing(self.out / "best") as folder:
                self.write_model(folder)

    def record(self, line: dict[str, float], log: Log, watch: Watch) -> None:
        """One line to the log and to whoever watches."""
        log.write(line)
        watch.show(line)

    def save(self, log: Log) -> None:
        """Write last/, from which :meth:`restore` goes on."""
        self.progress.log_bytes = log.sync()
        with replacing(self.out / "last") as folder:
            self.write_model(folder)
            save_state(folder, self.progress, self.model, self.optimizer, self.average)

    def write_model(self, folder: Path) -> None:
        """The averaged weights as a checkpoint that :func:`regard.load` reads, with the tokenizer."""
        zoo.save(self.average.model, folder)
        self.task.save(folder)

    def restore(self) -> None:
        """Go on from last/."""
        folder = self.out / "last"
        if self.recipe.average:
            self.average.model.load_state_dict(zoo.load(folder, device=self.device).state_dict())
        self.progress = load_state(folder, self.model, self.optimizer, self.average)
        self.loader.restore(self.progress.loader)


def accumulate(
    model: nn.Module, objective: Objective, batches: Iterable[Batch], device: torch.device, precision: PrecisionName
) -> dict[str, float]:
    """Add the gradient of the summed loss of ``batches``; the caller divides by ``targets``, however they were split.

    Returns:
        sums over the batches: ``loss``, ``targets``, ``tokens`` (padding left out) and the objective's parts.
    """
    totals: dict[str, float] = {}
    for batch in batches:
        with autocast(precision, device):
            loss = objective.loss(model, to(batch, device))
        loss.sum.backward()
        read = int(batch["valid"].sum()) if "valid" in batch else 0  # by an encoder; a decoder alone reads what it says
        sums = {"loss": loss.sum.detach(), "targets": loss.count, "tokens": read + loss.count, **loss.parts}
        totals = {name: totals.get(name, 0) + float(value) for name, value in sums.items()}
    return totals


def to(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set; a second one acts at once. Outside the main thread nothing sets it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, _: Any) -> None:
        event.set()
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
