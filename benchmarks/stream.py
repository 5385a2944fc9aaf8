"""A corpus larger than memory: tokenised once into the cache, then read by a language model's loader; without a model.

Texts of made-up words, as frequent as words are (Zipf's law), are written as JSONL into a temporary folder. One process
learns a tokenizer from them, the next builds the cache; others, one with a worker and one without, find it there, plan
an epoch, and draw batches as fast as they come. No figure is with a cold disk: the file has just been written.

Memory is in megabytes at its highest, of the process without its workers: ``anonymous_peak`` is what the process itself
needs (sampled twenty times a second), ``resident_peak`` is what the system counts, and so also the pages of mapped
files, which it takes back when memory is short.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from functools import partial
from itertools import islice
from pathlib import Path

import harness
import numpy as np
import torch

from regard.objectives.supervise import Supervise
from regard.tasks.language import PlainText

WORDS, CHUNK, WARM_UP, COUNT = 500_000, 200_000, 20, 2000


def write(path: Path, size: int) -> None:
    """At least ``size`` bytes of ``{"text": ...}`` rows, of some two thousand characters each; always the same."""
    rng = np.random.default_rng(0)
    words = vocabulary(rng)
    shares = np.cumsum(1 / (np.arange(WORDS) + 2.7))  # Mandelbrot's form of Zipf's law
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            numbers = np.searchsorted(shares, rng.random(CHUNK) * shares[-1])
            ends = rng.random(CHUNK) < 1 / 15
            spelled = [
                f"{words[i]}." if end else words[i] for i, end in zip(numbers.tolist(), ends.tolist(), strict=True)
            ]
            cuts = np.cumsum(np.clip(rng.lognormal(5.5, 0.8, CHUNK // 300), 20, 5000).astype(int)).tolist()
            for first, last in zip([0, *cuts], [*cuts, CHUNK], strict=True):
                if words_of := spelled[first:last]:
                    written += file.write(json.dumps({"text": " ".join(words_of)}) + "\n")


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Different words of one to six syllables, short ones first, as the most frequent are."""
    syllables = np.array([a + b + c for a in "bdfghklmnprstvwz" for b in "aeiou" for c in ("", "n", "r", "s", "t")])
    words: dict[str, None] = {}
    while len(words) < WORDS:
        counts = 1 + rng.binomial(5, min(0.9, 0.1 + len(words) / WORDS), 1000)
        words |= dict.fromkeys("".join(rng.choice(syllables, count)) for count in counts)
    return [*words][:WORDS]


def memory(*names: str) -> float:
    """What the system says of this process, in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in names) / 1024


class Peak(threading.Thread):
    """Looks how much memory is anonymous, until it is asked for the most that it saw."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.over = 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.05):
            self.most = max(self.most, memory("RssAnon", "RssShmem"))

    def end(self) -> dict[str, float]:
        self.over.set()
        self.join()
        return {"anonymous_peak": self.most, "resident_peak": memory("VmHWM")}


def data(folder: Path, workers: int = 0) -> PlainText:
    return PlainText(
        train=str(folder / "corpus.jsonl"), vocab_size=32_000, seq_len=1024, max_tokens=16_384, num_workers=workers
    )


def learn(folder: Path) -> dict[str, float]:
    """Learn the tokenizer."""
    peak, began = Peak(), time.perf_counter()
    data(folder).open().save(folder)
    return {"seconds": time.perf_counter() - began, **peak.end()}


def build(folder: Path) -> dict[str, float]:
    """Tokenise the corpus into the cache."""
    peak, began = Peak(), time.perf_counter()
    corpus = data(folder).open(folder).corpus
    seconds, size = time.perf_counter() - began, (folder / "corpus.jsonl").stat().st_size
    return {
        "bytes": size,
        "examples": len(corpus),
        "tokens": len(corpus.columns["text"].tokens),
        "seconds": seconds,
        "megabytes_per_second": size / 1e6 / seconds,
        **peak.end(),
    }


def read(workers: int, folder: Path) -> dict[str, float]:
    """Open the corpus, whose cache is there, and draw batches."""
    peak, began = Peak(), time.perf_counter()
    task = data(folder, workers).open(folder)
    batches = iter(task.loader(seed=0, prepare=Supervise().prepare))
    next(batches)
    first = time.perf_counter() - began
    list(islice(batches, WARM_UP))
    began, tokens = time.perf_counter(), 0
    for batch in islice(batches, COUNT):
        tokens += batch["tokens"].numel()
    seconds = time.perf_counter() - began
    return {"first_batch_seconds": first, "tokens_per_second": tokens / seconds, **peak.end()}


SIDES = {"learn": learn, "build": build, "read 0 workers": partial(read, 0), "read 1 worker": partial(read, 1)}


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--gigabytes", type=float, default=5.0, help="size of the corpus, in 10^9 bytes")
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(1)
        print(json.dumps(SIDES[options.side](Path(os.environ["XDG_CACHE_HOME"]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        write(Path(folder, "corpus.jsonl"), int(options.gigabytes * 1e9))
        sides = {side: harness.run_side(side, options.threads) for side in SIDES}
    print(json.dumps({"benchmark": "stream", **sides, "threads": options.threads}))


if __name__ == "__main__":
    main()
