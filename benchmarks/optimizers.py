"""Every optimiser with every schedule: one small translation model, the same batches, the loss that each pair reaches.

Each pair trains in a process of its own, on one thread, in float32, as ``regard train`` would. What it measured becomes
a line of a file beside the page, from which the same command goes on where it was stopped; the page and its picture are
made of these lines. The command fails where a pair does not reach the loss that is asked for.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, get_args

import harness

from regard.core.errors import TrainingError, did_you_mean
from regard.core.serial import to_json
from regard.data.log import read_log
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.tasks.translate import ParallelText
from regard.train.fit import fit
from regard.train.optimize import Optimizer, OptimizerName
from regard.train.recipe import Recipe
from regard.train.schedule import Schedule, Shape

LOSS, UNTUNED = 4.1, 4.28
"""What each pair is to reach on held-out pairs, in nats a token; and where Adam ends at torch's own rate, 1e-3."""

TRIED: dict[OptimizerName, dict[float, float]] = {
    "sgd": {0.1: 5.27, 0.3: 4.85, 1.0: 4.98, 3.0: 50.17},
    "rmsprop": {1e-4: 5.28, 3e-4: 4.80, 1e-3: 4.86},
    "adam": {3e-3: 4.82, 1e-2: 4.60, 3e-2: 5.00},
    "adamw": {3e-3: 4.82, 1e-2: 4.59, 3e-2: 4.99},
    "adafactor": {1e-2: 5.16, 3e-2: 4.61, 1e-1: 4.71},
    "muon": {3e-3: 4.57, 1e-2: 3.97, 3e-2: 4.03},
}
"""By peak, the held-out loss on Multi30k after 150 steps at a constant rate: the best is used in all pairs."""

OPTIMIZERS = [Optimizer(name, weight_decay=0.01 if name in ("adamw", "muon") else 0.0) for name in TRIED]
Pair = tuple[Optimizer, Schedule]
MODEL = TransformerConfig(
    vocab_size=0, embed_dim=64, ffn_dim=256, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
    norm_order="pre", dropout=0.0,
)  # fmt: skip
PAGE = """# Optimisers and schedules

Every optimiser with every schedule on {data}: {steps} steps each of one small model ({layers} + {layers} layers
of {dim}, a vocabulary of {vocab:,}), from the same weights and over the same batches of at most {tokens:,} tokens, in
float32. Each pair is to come down to {loss:g} nats a token on all held-out pairs: {good} of {count} do.
(Adam, left at the rate that torch gives it, a constant 0.001, ends at {untuned} on Multi30k.)

<!-- test: skip because the data are not part of the repository and training takes long -->
```bash
{command}
```

That made this page, with {minutes:.0f} minutes of training in all, one thread for each pair. In a cell: the held-out
loss after the last step, and in brackets the step by which the training loss (the mean of {every} steps) was down
to {loss:g}. Bold: not reached.

{table}

![Training losses over steps: a panel for each optimiser, a curve for each schedule]({picture})

No pair needs leaving out. Each schedule rises for {warmup} steps, and falls as far as it does within the run: its
periods are shares of the run, as one that is longer would only be the beginning of another schedule.

An optimiser has one peak for all its schedules: the best of those tried for 150 steps at a constant rate, by the
held-out loss on Multi30k (`--steps 150 --only adam/constant --lr 0.003 --out rates.md`).

{rates}
"""
STEPS, VOCAB, TOKENS, EVERY = 500, 2000, 1000, 10


def schedules(lr: float, steps: int) -> list[Schedule]:
    """One of each shape, which falls as far as it can within the run: none has a period that is longer."""
    warmup = max(1, steps // 10)
    third = max(1, math.ceil((steps - warmup) / 3))
    periods: dict[Shape, int] = {
        "cosine_restarts": third + 1,  # the second of two, twice as long, ends with the run
        "step": third,
        "cyclical": 2 * warmup,
        "warmup_stable_decay": max(1, steps // 5),
    }
    return [
        Schedule(shape, lr, warmup, final=0.2 if shape == "exponential" else 0.0, period=periods.get(shape, 1))
        for shape in get_args(Shape)
    ]


def pairs(steps: int, lr: float | None) -> dict[str, Pair]:
    """All of them, by names such as ``adam/cosine``."""
    return {
        f"{optimizer.name}/{schedule.shape}": (optimizer, schedule)
        for optimizer in OPTIMIZERS
        for schedule in schedules(lr or min(TRIED[optimizer.name], key=TRIED[optimizer.name].__getitem__), steps)
    }


def text(folder: str | None, tokenizer: str | None = None) -> ParallelText:
    """Multi30k in a folder, or the embedded phrases."""
    files = {"train": f"{folder}/train.tsv.gz", "valid": f"{folder}/val.tsv.gz", "target": "de"} if folder else {}
    return ParallelText(**files, tokenizer=tokenizer, vocab_size=VOCAB, max_tokens=TOKENS, num_scored=1)


def train(optimizer: Optimizer, schedule: Schedule, steps: int, data: ParallelText) -> dict[str, Any]:
    """Train by one pair: the loss of every ten steps, the held-out one at the end (None: diverged), and the time."""
    recipe = Recipe(
        MODEL, data, Supervise(label_smoothing=0.0), optimizer, schedule, num_steps=steps, average=0.0,
        precision="float32", log_every=EVERY, valid_every=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        try:
            fit(recipe, run, quiet=True)
        except TrainingError as error:
            print(f"{optimizer.name}/{schedule.shape}: {error}", file=sys.stderr)
        log = read_log(run / "log.jsonl")
    return {
        "valid": next((line["valid_nll"] for line in log if "valid_nll" in line), None),
        "curve": [(line["step"], round(line["loss"], 4)) for line in log if "loss" in line],
        "seconds": round(log[-1]["seconds"], 1) if log else 0.0,
    }


class Results:
    """What pairs have measured, as lines of a file; those from other settings, data or steps do not count.

    Nothing tells of another model: after a change of it, remove the file.
    """

    def __init__(self, path: Path, chosen: dict[str, Pair], steps: int, data: str) -> None:
        self.path = path
        self.settings = {
            name: {"pair": name, "steps": steps, "data": data, "optimizer": to_json(one), "schedule": to_json(other)}
            for name, (one, other) in chosen.items()
        }
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.lines = [json.loads(line) for line in text.splitlines()]

    def get(self, name: str) -> dict[str, Any] | None:
        """What the pair measured, if it has."""
        settings = self.settings[name].items()
        return next((line for line in self.lines if settings <= line.items()), None)

    def add(self, name: str, measured: dict[str, Any]) -> None:
        """Keep what the pair measured, in place of what it had."""
        settings = self.settings[name]
        self.lines = [line for line in self.lines if not settings.items() <= line.items()] + [settings | measured]
        write(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))


def write(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def run(results: Results, data: str | None, jobs: int) -> None:
    """Train by the pairs that have not been measured, ``jobs`` at a time."""
    missing = [name for name in results.settings if results.get(name) is None]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        learnt = text(data).open()
        learnt.save(Path(folder))
        len(learnt.corpus)  # tokenised into the cache, once for all
        sys.argv.append(f"--tokenizer={folder}")
        waiting = {pool.submit(harness.run_side, name, 1): name for name in missing}
        for count, done in enumerate(as_completed(waiting), start=1):
            measured = done.result()
            results.add(waiting[done], measured)
            line = f"{count} of {len(missing)}: {waiting[done]} {measured['valid']} in {measured['seconds']} s"
            print(line, file=sys.stderr, flush=True)


def reached(curve: Sequence[Sequence[float]], loss: float) -> int | None:
    """The first step whose training loss, the mean of ten steps, is not above ``loss``."""
    return next((int(step) for step, value in curve if value <= loss), None)


def table(corner: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A Markdown table; rows may be shorter than its head."""
    head = [corner, *columns]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    lines = [[*line, *[""] * (len(head) - len(line))] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(line: Mapping[str, Any] | None, loss: float) -> str:
    """What one pair reached, and when in training; bold if that is not enough."""
    if line is None:
        return ""
    if line["valid"] is None:
        return "**diverged**"
    step = reached(line["curve"], loss)
    figure = f"{line['valid']:.2f}" if line["valid"] <= loss else f"**{line['valid']:.2f}**"
    return f"{figure} ({step or 'never'})"


def page(lines: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, picture: str) -> str:
    """What was run, the table, the curves, and how the rates were chosen."""
    names = [name for name in TRIED if any(pair.startswith(f"{name}/") for pair in lines)]
    shapes = [shape for shape in get_args(Shape) if any(pair.endswith(f"/{shape}") for pair in lines)]
    rows = {name: [cell(lines.get(f"{name}/{shape}"), options.loss) for shape in shapes] for name in names}
    tried = {name: [f"{rate:g}: {loss:.2f}" for rate, loss in TRIED[name].items()] for name in TRIED}
    return PAGE.format(
        command=command(options),
        data="Multi30k, English to German" if options.data else "the embedded phrases",
        steps=options.steps,
        warmup=max(1, options.steps // 10),
        loss=options.loss,
        untuned=UNTUNED,
        good=sum(line["valid"] is not None and line["valid"] <= options.loss for line in lines.values()),
        count=len(lines),
        minutes=sum(line["seconds"] for line in lines.values()) / 60,
        dim=MODEL.embed_dim,
        layers=MODEL.num_encoder_layers,
        vocab=VOCAB,
        tokens=TOKENS,
        every=EVERY,
        table=table("", shapes, rows),
        picture=picture,
        rates=table("", ["peak: loss"] * max(map(len, TRIED.values())), tried),
    )


def command(options: argparse.Namespace) -> str:
    """What made the page, without what is as usual or changes nothing about it."""
    usual = {"steps": STEPS, "only": "", "loss": LOSS, "lr": None}
    said = {name: getattr(options, name) for name, value in usual.items() if getattr(options, name) != value}
    said |= {"data": "multi30k"} if options.data else {}
    return " ".join(["python benchmarks/optimizers.py", *(f"--{name} {value}" for name, value in said.items())])


def draw(lines: Mapping[str, Mapping[str, Any]], loss: float, path: Path) -> None:
    """The training losses of each optimiser, a curve for each schedule."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "regard", "svg.fonttype": "none"}  # the same picture is the same file, and small
    names = [name for name in TRIED if any(pair.startswith(f"{name}/") for pair in lines)]
    figure = Figure(figsize=(9, 3 * math.ceil(len(names) / 3) + 0.6), layout="constrained")
    panels = figure.subplots(math.ceil(len(names) / 3), 3, sharex=True, sharey=True, squeeze=False).flat
    for name, axes in zip(names, panels, strict=False):
        for hue, shape in enumerate(get_args(Shape)):
            if line := lines.get(f"{name}/{shape}"):
                axes.plot(*zip(*line["curve"], strict=True), color=f"C{hue}", label=shape, linewidth=1)
        axes.axhline(loss, color="#888", linestyle=":", linewidth=1)
        axes.set(title=name, xlabel="step", ylabel="training loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.label_outer()
    for axes in panels:
        axes.set_axis_off()
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for handles, labels in legends for handle, label in zip(handles, labels, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder with Multi30k's train.tsv.gz and val.tsv.gz; else the embedded phrases")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=2, help="pairs that train at the same time, one thread each")
    parser.add_argument("--only", default="", help="optimisers or pairs, such as adam,muon/cosine")
    parser.add_argument("--loss", type=float, default=LOSS, help="the held-out loss that each pair is to reach")
    parser.add_argument("--lr", type=float, help="the peak of every schedule, instead of the optimiser's own")
    parser.add_argument("--out", type=Path, default=Path("docs/optimizers.md"), help="the page; its figures lie beside")
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = pairs(options.steps, options.lr)
    if options.side:
        print(json.dumps(train(*chosen[options.side], options.steps, text(options.data, options.tokenizer))))
        return
    if options.only:
        wanted = options.only.split(",")
        if unknown := [each for each in wanted if each not in {*chosen, *TRIED}]:
            parser.error(f"no pair '{unknown[0]}'{did_you_mean(unknown[0], {*chosen, *TRIED})}")
        chosen = {name: pair for name, pair in chosen.items() if {name, name.split("/")[0]} & {*wanted}}
    data = "multi30k" if options.data else "phrases"
    results = Results(options.out.with_suffix(".jsonl"), chosen, options.steps, data)
    run(results, options.data, options.jobs)
    lines = {name: line for name in chosen if (line := results.get(name))}
    picture = options.out.with_suffix(".svg")
    draw(lines, options.loss, picture)
    write(options.out, page(lines, options, picture.name))
    if missed := [name for name, line in lines.items() if line["valid"] is None or line["valid"] > options.loss]:
        raise SystemExit(f"{len(missed)} of {len(lines)} do not reach {options.loss}: {', '.join(missed)}")


if __name__ == "__main__":
    main()
