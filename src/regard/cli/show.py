"""``regard show``: what there is, or what one model is made of and what it costs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.parser import Parser
from regard.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from regard.explain.cost import Part


def run(argv: list[str]) -> int:
    """Show the families, sizes and recipes; or, given one, a model's blocks with shapes, parameters, FLOPs and memory."""
    parser = Parser("show", "Families, sizes and recipes; or what a model is made of and what it costs.")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="FAMILY-SIZE, a checkpoint's folder, or a run's")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="tokens read and written (default: 128)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once (default: 1)")
    parser.add_argument("--depth", type=int, default=4, metavar="N", help="how deep to look into blocks (default: 4)")
    args = parser.parse(argv)
    text = overview() if args.model is None else describe(args.model, args.length, args.batch, args.depth)
    sys.stdout.write(text + "\n")
    return 0


def overview() -> str:
    """Every family with its sizes, and every recipe."""
    from regard import zoo
    from regard.cli.train import recipes
    from regard.explain.chart import number
    from regard.explain.cost import parts_of

    lines = ["families and their sizes ('regard show NAME' shows one)"]
    for name, family in sorted(zoo.families().items()):
        for size in family.sizes:
            model = zoo.build(f"{name}-{size}", device="meta")
            lines.append(f"  {f'{name}-{size}':<24}{number(sum(p.numel() for p in model.parameters())):>8} parameters")
    lines += ["", "recipes ('regard train NAME --help' shows one's options)"]
    lines += [f"  {name:<24}{line}" for name, line in recipes().items()]
    return "\n".join(lines)
