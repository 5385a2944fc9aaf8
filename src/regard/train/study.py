"""A study: a recipe in several variants, each trained with several seeds, to see what a choice is worth."""

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import torch

from regard import zoo
from regard.checkpoint.files import replacing
from regard.core.console import console, quietly
from regard.core.errors import ConfigError, TrainingError
from regard.core.serial import differences, to_json
from regard.data.log import read_log
from regard.objectives.supervise import likelihood
from regard.train.fit import default_device
from regard.train.freeze import freeze
from regard.train.interrupt import interruptions
from regard.train.recipe import Recipe, load_recipe, save_recipe
from regard.train.trial import Worker, validations

POLL = 0.2
"""Seconds after which an interruption is seen."""


@dataclass(frozen=True)
class Variant:
    """One of the things that are compared.

    Attributes:
        name: as a reader knows it, such as "8 heads".
        recipe: what it is trained by; the study sets the seed.
        x: where it stands on the study's axis, if that has numbers.
    """

    name: str
    recipe: Recipe
    x: float | None = None


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        title: in a few words.
        question: what is to be seen, and where it was asked.
        variants: two or more.
        axis: what ``x`` of the variants counts.
        lengths: tokens of rows on which language models are scored besides, with the weights that were kept.
        sets: fields that it sets in every variant, or must not find set, such as ``model.num_heads``.
    """

    title: str
    question: str
    variants: Sequence[Variant]
    axis: str = ""
    lengths: tuple[int, ...] = ()
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """A variant, trained with one seed.

    Attributes:
        seed: of weights, data order and dropout.
        score: the best of its validations.
        parameters: numbers in the model; ``learning``: those of them that were trained.
        seconds: of training, validations included.
        log: the run's, line by line.
        by_length: nats a token on rows of so many tokens.
    """

    seed: int
    score: float
    parameters: int
    learning: int
    seconds: float
    log: Sequence[Mapping[str, Any]]
    by_length: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What a study has found: for each variant its runs, by seed.

    Attributes:
        study: what was asked.
        metric: the score's name; higher is better.
        runs: of each variant, in order; fewer where the study was interrupted.
        seeds: how many runs each variant is to have.
    """

    study: Study
    metric: str
    runs: Mapping[str, Sequence[Trained]]
    seeds: int

    @property
    def done(self) -> bool:
        """Whether all runs have come to their end."""
        return all(len(runs) == self.seeds for runs in self.runs.values())

    def mean(self, name: str) -> float:
        """The mean of a variant's scores."""
        return fmean(run.score for run in self.runs[name])

    def spread(self, name: str) -> float:
        """The standard deviation of a variant's scores over seeds; 0 of a single one."""
        scores = [run.score for run in self.runs[name]]
        return stdev(scores) if len(scores) > 1 else 0.0


def conduct(study: Study, out: Path, *, seeds: int = 3, jobs: int = 1, quiet: bool = False) -> Findings:
    """Train every variant with every seed, and score what came of it.

    Each is a run of its own in ``out``, as ``regard train`` makes them. Runs that are there and have ended are not
    trained again, one that was cut short goes on. A script calls this under ``if __name__ == "__main__"``.

    Args:
        study: what to compare.
        out: its folder.
        seeds: 0 to ``seeds - 1``.
        jobs: how many runs at a time, each in a process of its own; they share this process' number of threads.
        quiet: show nothing.

    Raises:
        ConfigError: fewer than two variants, two of one name, or the folder has a study of other recipes.
        TrainingError: a variant cannot be trained, or the folder cannot be used.
        DataError: what the recipes name cannot be used.
    """
    names = [slug(variant.name) for variant in study.variants]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"a study compares two variants or more, each of its own name; these are {', '.join(names)}")
    with quietly(quiet), interruptions() as stop:
        monitor = study.variants[0].recipe.data.open().monitor  # what is wrong with the data is said first
        todo = [
            Job(variant.name, seed, replace(variant.recipe, seed=seed))
            for seed in range(seeds)
            for variant in study.variants
        ]
        _begin(out, todo)
        done = _train(out, todo, monitor, jobs, stop)
        with console().status("scoring"):  # rows of several lengths take minutes
            runs = {
                variant.name: [_scored(job, out, study, monitor) for job in done if job.variant == variant.name]
                for variant in study.variants
            }
        return Findings(study, monitor, runs, seeds)


@dataclass(frozen=True)
class Job:
    """One run of a study: of which variant, and with which seed."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{slug(self.variant)}-{self.seed}"


def slug(name: str) -> str:
    """A variant's name as part of a folder's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _begin(out: Path, todo: Sequence[Job]) -> None:
    """Write the recipes, or make sure that those in the folder are the same."""
    for job in todo:
        path = out / f"{job.name}.json"
        if path.exists() and (differing := differences(to_json(job.recipe), to_json(load_recipe(path)))):
            raise ConfigError(
                f"{path}: a study goes on by its own recipes; this has another {', '.join(differing)}; "
                "--out names another folder"
            )
    with replacing(out) as folder:
        for job in todo:
            save_recipe(job.recipe, folder / f"{job.name}.json")


def _train(out: Path, todo: Sequence[Job], monitor: str, jobs: int, stop: threading.Event) -> list[Job]:
    """Train what is not yet trained; the jobs that have come to their end."""
    waiting, done = list(reversed(todo)), list[Job]()
    team = [Worker[Job](monitor, max(torch.get_num_threads() // jobs, 1)) for _ in range(jobs)]
    lines = console()
    try:
        with lines.status("") as status:
            while busy := _assign(team, waiting, out, stop):
                status.update(f"training {', '.join(worker.job.name for worker in busy.values() if worker.job)}")
                for pipe in wait(busy, POLL):
                    worker = busy[cast(Connection, pipe)]
                    job, (kind, *said) = worker.job, worker.read()
                    assert job is not None, "it is busy"
                    if kind == "validated":
                        worker.answer(False)  # go on
                        continue
                    worker.job = None
                    if kind == "failed":
                        raise TrainingError(f"{job.name}: {said[0]}")
                    if kind == "complete":
                        done.append(job)
                        lines.print(f"{len(done):>3} of {len(todo)}   {job.name}", markup=False)
    finally:
        for worker in team:
            worker.end()
    return sorted(done, key=todo.index)


def _assign(
    team: Sequence[Worker[Job]], waiting: list[Job], out: Path, stop: threading.Event
) -> dict[Connection, Worker[Job]]:
    """Give the idle something to do, or have all stop; those that are busy, by their pipes."""
    for worker in team:
        if stop.is_set():
            worker.stop()
        elif worker.job is None and waiting:
            job = waiting.pop()
            worker.begin(job, out / f"{job.name}.json", out / job.name)
    return {worker.pipe: worker for worker in team if worker.job}


@torch.inference_mode()
def _scored(job: Job, out: Path, study: Study, monitor: str) -> Trained:
    """What came of a run."""
    run = out / job.name
    log, validated = read_log(run / "log.jsonl"), [*validations(run)]
    recipe, model = load_recipe(run / "recipe.json"), zoo.load(run / "best", device=default_device())
    parameters = dict(model.named_parameters())
    freeze(model, recipe.freeze)
    by_length = {}
    for length in study.lengths:
        data: Any = recipe.data
        nll, count = likelihood(model, replace(data, seq_len=length).open(run).validation())
        by_length[length] = nll / count
    return Trained(
        job.seed,
        max(line[monitor] for line in validated),
        sum(parameter.numel() for parameter in parameters.values()),
        sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad),
        validated[-1]["seconds"],
        log,
        by_length,
    )
