"""The benchmarks still run and their two sides still agree; how fast they are is no matter here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lines(*arguments: str) -> list[dict]:
    command = [sys.executable, "-W", "ignore", *arguments, "--rounds", "1", "--threads", "1"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.timeout(300)
def test_training_gives_the_losses_of_transformers() -> None:
    speed, losses = lines("benchmarks/train.py", "--check", "--steps", "8")
    assert speed["benchmark"] == "train"
    assert len(speed["ratios"]) == 1
    assert losses["steps"] == 8
    assert losses["largest_difference"] < 1e-4


@pytest.mark.timeout(300)
def test_beam_search_gives_the_answers_of_transformers() -> None:
    _, answers = lines("benchmarks/beam.py", "--sentences", "4", "--limit", "6")
    assert answers == {"benchmark": "beam answers", "sentences": 4, "identical": 4}


@pytest.mark.timeout(300)
def test_a_corpus_is_tokenised_and_read() -> None:
    (line,) = lines("benchmarks/stream.py", "--gigabytes", "0.001")
    assert line["build"]["bytes"] >= 1_000_000
    assert line["read 0 workers"]["tokens_per_second"] > 0
    assert line["read 1 worker"]["anonymous_peak"] < 1000
