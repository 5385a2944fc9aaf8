"""``regard profile``: where the time and memory of a recipe's training step go."""

import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from regard.cli.parser import Parser, positive

if TYPE_CHECKING:
    import torch

    from regard.train.recipe import Recipe

USAGE = "regard profile RECIPE [--FIELD VALUE ...] [--steps N]"
WARM_UP = 3
"""Steps before the clock runs: kernels are compiled, memory is found."""


def run(argv: list[str]) -> int:
    """Train for some steps, and say where their time went."""
    parser = Parser("profile", "Where a training step's time goes, part by part.", usage=USAGE)
    parser.add_argument("what", metavar="RECIPE", help="a recipe's name; its fields are set as for 'regard train'")
    parser.add_argument("--steps", type=positive, default=10, metavar="N", help="how many to measure (default: 10)")
    args, fields = parser.parse_known_args(argv)
    from regard.recipes import find
    from regard.train.recipe import override

    recipe = override(find(args.what), fields, f"regard train {args.what}", parser.names)
    sys.stdout.writelines(f"{line}\n" for line in lines(recipe, args))
    return 0


def lines(recipe: "Recipe", args: Namespace) -> Iterator[str]:
    """What was measured."""
    import tempfile
    from dataclasses import replace
    from itertools import islice
    from pathlib import Path

    import torch

    from regard.explain.chart import number
    from regard.explain.page import size
    from regard.explain.profile import Stopwatch, flops, peak, table
    from regard.train.fit import Run, default_device
    from regard.train.memory import settle_memory
    from regard.train.precision import resolve
    from regard.train.recipe import fitted

    settle_memory()
    torch.manual_seed(recipe.seed)
    task, device = recipe.data.open(), default_device()
    precision = resolve(recipe.precision, device)
    recipe = replace(fitted(recipe, task), precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        trained = Run(recipe, task, Path(folder))
        batches = iter(trained.loader)
        for _ in range(WARM_UP):
            trained.step(batches)
        watch = Stopwatch(trained.model, trained.optimizer)
        tokens = trained.progress.window["tokens"]
        with watch.attached():
            for _ in range(args.steps):
                watch.begin()
                trained.step(batches)
                watch.end()
        tokens = (trained.progress.window["tokens"] - tokens) / watch.times.total
        held = islice(batches, recipe.accumulate)
        work = flops(trained.model, lambda: trained.step(held))
    most = peak(torch.bfloat16 if precision == "bfloat16" else torch.float32, device)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    yield f"{parameters:,} parameters on {device}, {precision}, {args.steps} steps: {number(tokens)} tokens/s"
    yield ""
    yield from table(watch.times, work, most)
    yield ""
    yield f"peak     {number(most)} FLOP/s: the fastest product of two matrices here"
    yield f"memory   {size(used(device))} at most, of this whole process"


def used(device: "torch.device") -> int:
    """The most bytes that this process has held, on its device."""
    import resource

    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
