"""``regard convert``: the same model in another layout or precision."""

import sys
from pathlib import Path

from regard.cli.parser import Parser
from regard.core.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")


def run(argv: list[str]) -> int:
    """Load a checkpoint and write it again."""
    parser = Parser("convert", "Write a checkpoint in another layout or precision, with its tokenizer.")
    parser.add_argument("source", metavar="SRC", help="the folder of a checkpoint or run, in either layout")
    parser.add_argument("target", metavar="DST", help="the folder to write")
    parser.add_argument("--to", choices=("regard", "hf"), required=True, help="our own layout, or the published one")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: as they are)")
    args = parser.parse(argv)

    import torch

    from regard import zoo
    from regard.data.tokenize import Tokenizer

    target = Path(args.target)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target}: there is something already; name a folder that is new or empty")
    source = zoo.checkpoint_folder(args.source)
    model = zoo.load(source, dtype=getattr(torch, args.dtype) if args.dtype else None)
    tokenizer = Tokenizer.load(source) if Path(source, "tokenizer.json").exists() else None
    zoo.save(model, args.target, layout=args.to)
    if tokenizer is not None:
        tokenizer.save(args.target)
    else:
        sys.stderr.write(f"regard: {source} has no tokenizer.json; copy the files of its tokenizer yourself\n")
    return 0
