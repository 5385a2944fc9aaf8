"""The options that say where a model computes, and in which precision."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from regard.cli.parser import Parser

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")


def add_place(parser: Parser) -> None:
    """Let a verb take ``--device`` and ``--dtype``."""
    parser.add_argument(
        "--device",
        metavar="D",
        help="cpu, cuda:0 ..., or auto: a GPU with what fits there (default: the first)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")


def dtype_of(name: str | None) -> "torch.dtype | None":
    """torch's type of this name."""
    import torch

    return None if name is None else getattr(torch, name)


def placed(args: Namespace) -> dict[str, Any]:
    """What the two options ask of :func:`regard.load`."""
    from regard.train.fit import default_device

    return {"device": args.device or default_device(), "dtype": dtype_of(args.dtype)}


def tell_place(args: Namespace, model: Any) -> None:
    """Say where ``--device auto`` has led."""
    if args.device == "auto":
        from regard.blocks.offload import offloaded

        parameter = next(model.parameters())
        away = len(offloaded(model))
        others = f", with {away} blocks on the CPU" if away else ""
        sys.stderr.write(f"regard: on {parameter.device}, in {str(parameter.dtype).removeprefix('torch.')}{others}\n")
