"""Where a name leads, without a network: a folder here, the local cache of the hub, or one clear line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from regard.checkpoint.files import read, write
from regard.checkpoint.hub import resolve
from regard.core.errors import CheckpointError, MissingExtra

OFFLINE = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise SystemExit(f"network used: {event} {arguments}")
sys.addaudithook(refuse)
from regard.checkpoint.hub import resolve
from regard.core.errors import RegardError
try:
    print(resolve(sys.argv[1]))
except RegardError as error:
    print("error:", error)
print("huggingface_hub" in sys.modules)
"""


def resolved(name: str, folder: Path, **environment: str) -> list[str]:
    """What resolve says in a process of its own, whose cache is ``folder`` and which dies if it uses the network."""
    variables = os.environ | {"HF_HUB_CACHE": str(folder), "HF_HUB_OFFLINE": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, name], capture_output=True, text=True, env=variables, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def cache(tmp_path) -> Path:
    """The hub's cache as huggingface_hub lays it out, with one repository in it."""
    repository = tmp_path / "models--paper--base"
    snapshot = repository / "snapshots" / ("0" * 40)
    write(repository / "blobs", {"t": torch.arange(3)}, {"model_type": "x"})
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return tmp_path


def test_a_folder_never_touches_the_network(cache) -> None:
    (cache / "here").mkdir()
    assert resolved("here", cache, HF_HUB_OFFLINE="0") == ["here", "False"]


def test_a_folder_wins_over_a_hub_name(cache) -> None:
    (cache / "paper" / "base").mkdir(parents=True)
    assert resolved("paper/base", cache, HF_HUB_OFFLINE="0") == ["paper/base", "False"]


def test_a_mistyped_path_is_not_looked_for_on_the_hub(cache) -> None:
    (cache / "runs" / "mine").mkdir(parents=True)
    message = "error: runs/mien: no such folder (did you mean 'runs/mine'?)"
    assert resolved("runs/mien", cache, HF_HUB_OFFLINE="0") == [message, "False"]


def test_a_hub_name_is_found_in_the_cache_and_read_through_its_links(cache) -> None:
    folder, used_hub = resolved("paper/base", cache)
    assert used_hub == "True"
    assert torch.equal(read(Path(folder))["t"], torch.arange(3))
    assert json.loads((Path(folder) / "config.json").read_text()) == {"model_type": "x"}


def test_a_hub_name_that_cannot_be_reached_is_one_line(cache) -> None:
    assert resolved("paper/big", cache)[0] == (
        "error: paper/big: no folder here, and the hub cannot be reached, and it was not downloaded before"
    )


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtra, match=r"'paper/base' is no folder here.*pip install 'regard\[hub\]'"):
        resolve("paper/base")


@pytest.mark.parametrize(
    "name", ["./paper/base", "/no/where", "bass", "a/b/c", "~/nowhere-at-all", "", "paper/", "-x/y z"]
)
def test_what_looks_like_a_path_is_a_path(tmp_path, monkeypatch, name) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    if name == "":
        with pytest.raises(CheckpointError, match="no name of a folder"):
            resolve(name)
        return
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        resolve(name)
    assert ("did you mean 'base'" in str(caught.value)) == (name == "bass")


def test_a_file_is_not_a_folder(tmp_path) -> None:
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder it is in"):
        resolve(tmp_path / "model.safetensors")


def test_an_interrupted_save_is_finished_before_anything_is_read(tmp_path) -> None:
    write(tmp_path, {"t": torch.ones(1)}, {"value": 1})
    write(tmp_path / "new", {"t": torch.ones(1)}, {"value": 2})
    staged = (tmp_path / "new").rename(tmp_path / ".saved")
    (staged / ".names.json").write_text('["config.json", "model.safetensors"]')
    assert json.loads((resolve(tmp_path) / "config.json").read_text()) == {"value": 2}
