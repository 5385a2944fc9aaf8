"""What the benchmarks share: each side in a process of its own, in turn, threads pinned, medians of ratios.

A measurement is one JSON line: what was done, on what, the figure of each side in each round, and the median ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any

import torch


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs; the median ratio is quoted")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each side")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    return parser


def run_side(side: str, threads: int) -> dict[str, Any]:
    """Run this benchmark again in a new process as one side; what it printed last, as JSON."""
    arguments = [argument for argument in sys.argv if not argument.startswith("--side")]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments, f"--side={side}"],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(name: str, figure: str, ours: str, theirs: str, rounds: int, threads: int, **facts: Any) -> dict[str, Any]:
    """Run both sides in turn, and print one line with the median of the ratios ours / theirs of ``figure``."""
    pairs = []
    for number in range(rounds):
        pairs.append((run_side(ours, threads), run_side(theirs, threads)))
        print(f"round {number + 1} of {rounds}: {pairs[-1][0][figure] / pairs[-1][1][figure]:.2f}", file=sys.stderr)
    ratios = [a[figure] / b[figure] for a, b in pairs]
    line = {
        "benchmark": name,
        "figure": figure,
        ours: [a[figure] for a, _ in pairs],
        theirs: [b[figure] for _, b in pairs],
        "median_ratio": statistics.median(ratios),
        "ratios": ratios,
        "threads": threads,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        **facts,
    }
    print(json.dumps(line))
    return {"line": line, "last": pairs[-1]}
