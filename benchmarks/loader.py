"""The loader alone, without a model: tokens per second made in this process and by 1 and 2 workers; and planning.

Translation pairs are collated from the mapped cache, as ``regard train translate`` has them; streams are rows cut from
the corpus laid end to end, as a language model has them. Padding is not counted. Planning groups as many examples as
``--examples`` says into the batches of one epoch: its seconds, and what it adds to the memory of the process.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

from regard.core.types import IGNORE
from regard.data.cache import tokenised
from regard.data.loader import Loader, plan
from regard.data.pack import Stream, packed
from regard.recipes import find

WARM_UP, LENGTH = 20, 256


def loader(kind: str, workers: int, folder: Path) -> Loader[Any]:
    """Batches of the embedded phrases, in the sizes of the ``translate_small`` recipe."""
    data = find("translate_small").data
    task, pairs = data.open(), data.splits["train"]
    source = folder / "pairs.json"
    source.write_text(json.dumps(pairs), encoding="utf-8")
    end = [] if kind == "pairs" else [task.tokenizer.eos]
    corpus = tokenised(pairs, task.tokenizer, [source], columns=("source", "target"), end=end, folder=folder)
    common = {"max_tokens": data.max_tokens, "identity": corpus.key, "num_workers": workers}
    if kind == "pairs":
        return Loader(corpus, corpus.sizes + 1, task.batch, **common)
    stream = Stream(corpus.columns["target"], LENGTH)
    return Loader(stream, stream.sizes, lambda rows: packed(rows, task.tokenizer.pad), **common)


def read(kind: str, workers: int, count: int) -> dict[str, float]:
    """Draw ``count`` batches, as fast as they come."""
    with tempfile.TemporaryDirectory() as folder:
        batches = iter(loader(kind, workers, Path(folder)))
        list(islice(batches, WARM_UP))
        began, tokens = time.perf_counter(), 0
        for batch in islice(batches, count):
            tokens += int(batch["valid"].sum())
            if kind == "pairs":
                tokens += int((batch["targets"] != IGNORE).sum())
        return {"tokens_per_second": tokens / (time.perf_counter() - began)}


def planning(examples: int) -> dict[str, float]:
    """Plan an epoch of pairs whose lengths are as those of sentences."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3, 0.6, examples), 2, 256).astype(np.int64)
    sizes = np.stack([lengths, np.clip(lengths + rng.integers(-4, 5, examples), 2, 256)], axis=1)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    batches = plan(sizes, 4096, random.Random(0))
    seconds = time.perf_counter() - began
    added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"batches": len(batches), "seconds": seconds, "megabytes": added / 1024}


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--batches", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=5_000_000, help="of the epoch that is planned")
    options = parser.parse_args()
    if options.side == "plan":
        print(json.dumps(planning(options.examples)))
        return
    if options.side:
        torch.set_num_threads(1)
        kind, workers, _ = options.side.split()
        print(json.dumps(read(kind, int(workers), options.batches)))
        return
    for kind in ("pairs", "stream"):
        for workers in (1, 2):
            harness.compare(
                "loader", "tokens_per_second", f"{kind} {workers} workers", f"{kind} 0 workers",
                options.rounds, options.threads, batches=options.batches,
            )  # fmt: skip
    planned = harness.run_side("plan", options.threads)
    print(json.dumps({"benchmark": "plan", "examples": options.examples, **planned}))


if __name__ == "__main__":
    main()
