"""Several processes take the steps of one: losses, gradients and weights agree in float64, however the model is cut."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parallel_runs import LAYOUTS, LONG, recipes

from regard.checkpoint.files import load_tensors
from regard.core.errors import ConfigError, PeerError, TrainingError
from regard.train.fit import fit, settled
from regard.train.launch import culprit, launch
from regard.train.parallel import Parallel, Ranks, joined

ALONE = torch.device("cpu")
WORKER = Path(__file__).with_name("parallel_runs.py")
KEYS = ("step", "loss", "nll", "grad_norm", "valid_loss", "chrf")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pairs lie, and the runs."""
    folder = tmp_path_factory.mktemp("parallel")
    pairs = [f"{'ab' * (i % 5 + 1)} {i}\t{'ba' * (i % 4 + 1)} {i}\n" for i in range(40)]
    (folder / "pairs.tsv").write_text("".join(pairs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    """The weights and the log of a layout's recipe, run by one process."""
    runs = {}

    def run(name):
        if name not in runs:
            fit(replace(recipes(folder, [name])[name], parallel=Parallel()), folder / "alone" / name, quiet=True)
            runs[name] = result(folder / "alone" / name)
        return runs[name]

    return run


@pytest.fixture(scope="module")
def together(folder):
    """Every layout, run by four processes."""
    assert processes(4, folder, folder / "four", "new", *LAYOUTS) == 0
    return folder / "four"


def processes(count, *arguments):
    return launch([sys.executable, str(WORKER), *map(str, arguments)], count, restarts=0)


def result(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return load_tensors(run / "last" / "model.safetensors"), [
        [line[key] for key in KEYS if key in line] for line in log if "health" not in line
    ]


def assert_same(found, expected):
    assert found[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(found[0][name], tensor, rtol=0, atol=1e-9)
    for line, same in zip(found[1], expected[1], strict=True):
        assert line == pytest.approx(same, rel=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_four_processes_take_the_steps_of_one(layout, together, alone):
    assert_same(result(together / layout), alone(layout))


def test_a_run_goes_on_by_other_numbers_of_processes(folder, alone):
    out = folder / "changing"
    assert processes(4, folder, out, "stop", "both", "mean", "stages") == 0
    assert (out / "both" / "last" / "training-00004.safetensors").exists()
    assert processes(2, folder, out, "resume", "both", "stages") == 0
    assert_same(result(out / "stages"), alone("stages"))
    assert not (out / "both" / "last" / "training-00004.safetensors").exists()
    assert_same(result(out / "both"), alone("both"))
    fit(replace(recipes(folder, ["mean"])["mean"], parallel=Parallel()), out / "mean", resume=True, quiet=True)
    files = {path.name for path in (out / "mean" / "last").glob("training*")}
    assert files == {"training.json", "training.safetensors"}
    assert_same(result(out / "mean"), alone("mean"))


def begin(folder, out, *options):
    command = [sys.executable, "-m", "regard", "train", "translate", "--nproc", "2", "--out", str(out), *LONG, *options]
    pairs = str(folder / "pairs.tsv")
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.Popen(
        [*command, "--data.train", pairs, "--data.valid", pairs], stderr=subprocess.PIPE, text=True, env=environment
    )


def steps(out):
    log = out / "log.jsonl"
    return max((json.loads(line)["step"] for line in log.read_text().splitlines()), default=0) if log.exists() else 0


def reach(out, step, process):
    while steps(out) < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_process_that_is_killed_is_started_again(folder, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    process = begin(folder, cut)
    reach(cut, 5, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "process 1 was killed by SIGKILL; all go on from the last checkpoint, restart 1 of 3" in said
    assert "Traceback" not in said
    process = begin(folder, whole)
    process.communicate()
    assert_same(result(cut), result(whole))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_sigterm_stops_all_processes_after_a_step(folder, tmp_path):
    process = begin(folder, tmp_path / "run")
    reach(tmp_path / "run", 3, process)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 130, said
    assert "and saved; go on with" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_no_process_outlives_a_launcher_that_is_killed(folder, tmp_path):
    process = begin(folder, tmp_path / "run", "--num-steps", "100000", "--data.num-workers", "1")
    reach(tmp_path / "run", 3, process)
    left = [Path(f"/proc/{child}") for child in children(process.pid)]
    assert len(left) == 2
    process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and any(running(folder) for folder in left):
        time.sleep(0.05)
    assert not any(running(folder) for folder in left)
    process.communicate()


def running(folder):
    try:
        return ") Z " not in (folder / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


SLOW = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
open(f"{sys.argv[1]}/{os.environ['RANK']}", "w").close()
signal.pause()
if os.environ["RANK"] == "0":
    time.sleep(5)
    open(f"{sys.argv[1]}/saved", "w").close()
sys.exit(130)
"""


def test_a_leader_that_is_asked_to_stop_may_take_its_time_to_save(tmp_path):
    """The others have nothing to write: that they have ended is no reason to end the leader."""

    def ask():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    assert launch([sys.executable, "-c", SLOW, str(tmp_path)], 2) == 130
    asking.join()
    assert (tmp_path / "saved").exists()


def test_a_mistake_is_told_once(tmp_path):
    process = begin(tmp_path, tmp_path / "run")  # there are no pairs there
    said = process.communicate()[1]
    assert process.returncode == 2, said
    assert said.count("pairs.tsv") == 1
    assert "Traceback" not in said


def test_a_mistake_of_all_is_told_once(folder, tmp_path):
    process = begin(folder, tmp_path / "run", "--parallel.shard", "3")
    said = process.communicate()[1]
    assert process.returncode == 2
    assert said.count("does not divide 2 processes; start a multiple of 3") == 1
    assert not (tmp_path / "run").exists()


def test_processes_that_nobody_introduced_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match="RANK is set, but the processes cannot meet"), joined(Parallel(), ALONE):
        pass


def test_what_ended_the_others_is_told():
    assert culprit([PeerError.status, -9]) == (1, -9)
    assert culprit([PeerError.status, 2]) == (1, 2)
    assert culprit([1, PeerError.status]) == (0, 1)
    assert culprit([0, 0]) == (0, 0)


def test_processes_that_cannot_meet_may_begin_again(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (names | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        taken.listen()
        with pytest.raises(PeerError, match="cannot meet"), joined(Parallel(), ALONE):
            pass


def test_shares_that_do_not_divide_the_processes_are_refused():
    with pytest.raises(ConfigError, match="does not divide 1 process; start a multiple of 6"):
        Ranks(Parallel(shard=2, tensor=3), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"parallel.tensor 0"):
        Parallel(tensor=0)


def test_a_step_that_cannot_be_dealt_out_is_refused(folder, alone):
    alone("copies")
    recipe = recipes(folder, ["copies"])["copies"]
    ranks = Ranks(Parallel(), torch.device("cpu"))
    ranks.data_world = 3
    out = folder / "alone" / "copies"
    with pytest.raises(ConfigError, match="a step of 4 batches cannot be dealt out evenly to 3 processes"):
        settled(recipe, recipe.data.open(out), out, ranks)
