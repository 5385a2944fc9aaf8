"""Training killed at random, again and again, ends as if nothing had happened (a slow test: some minutes)."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

KILLS = 50
"""Over as many runs as it takes; most are killed several times, some within one epoch, some while they save."""

TRAIN = """
import sys, time
from pathlib import Path
from regard.train import fit as module
from regard.train.recipe import load_recipe
step = module.Run.step
def slowly(self, batches):
    step(self, batches)
    time.sleep(0.03)
module.Run.step = slowly
print("ready", flush=True)
module.fit(load_recipe(Path(sys.argv[1])), Path(sys.argv[2]), resume=True, quiet=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_options):
    """A run of thirty steps that nobody disturbs; it saves at every third."""
    from regard.cli import main

    run = tmp_path_factory.mktemp("whole") / "run"
    steps = ["--num-steps", "30", "--valid-every", "3", "--log-every", "2", "--average", "0.9"]
    assert main(["train", "translate", *tiny_options, *steps, "--out", str(run), "--quiet"]) == 0
    return run


def contents(run: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every tensor that a run leaves, and its log without what depends on the clock."""
    tensors = {}
    for name in ("last/training", "last/model", "best/model"):
        tensors |= {f"{name}.{key}": value for key, value in load_file(run / f"{name}.safetensors").items()}
    clock = ("seconds", "tokens_per_second", "waiting")
    log = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return tensors, [
        ",".join(each for each in line.split(",") if not any(word in each for word in clock)) for line in log
    ]


def start(whole: Path, run: Path) -> subprocess.Popen:
    """A process that is about to train."""
    command = [sys.executable, "-c", TRAIN, str(whole / "recipe.json"), str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_kills_lose_nothing(whole, tmp_path):
    rng, kills, number, run = random.Random(0), 0, 0, tmp_path / "0"
    expected, log = contents(whole)
    process, began = start(whole, tmp_path / "undisturbed"), time.monotonic()
    assert process.wait() == 0
    takes = time.monotonic() - began
    while kills < KILLS:
        process = start(whole, run)
        time.sleep(rng.uniform(0, takes))
        process.kill()
        if process.wait() != 0:
            kills += 1
            continue
        tensors, lines = contents(run)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert lines == log
        number += 1
        run = tmp_path / str(number)
    assert number > 3, "most runs should come to their end"
