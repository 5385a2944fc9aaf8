"""Where a checkpoint is: a folder here, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from regard.checkpoint.files import settle
from regard.core.errors import CheckpointError, MissingExtra, nearest

WANTED = ["*.safetensors", "*.json", "*.model", "*.spm", "vocab.txt", "merges.txt", "chat_template.jinja"]
"""What is downloaded of a repository: tensors, configurations, tokenizers. Pickles never are."""

PARTS = ["[0-9]_*/config.json"]
"""And of its folders: how sentence-transformers say what comes after the model."""


def resolve(name: str | Path) -> Path:
    """The folder of a checkpoint, given as a folder or as ``organisation/name`` on the hub, ready to be read.

    A folder never touches the network. Neither does a name whose first part is a folder here: that is a mistyped path.

    Raises:
        CheckpointError: no such folder (names the nearest there is), or the hub has no such repository.
        MissingExtra: a hub name without the ``hub`` extra.
    """
    if not str(name):
        raise CheckpointError("'': no name of a folder; '.' is the one you are in")
    try:
        folder = Path(name).expanduser()
        there, folder_there = folder.exists(), folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{str(name)[:60]!r}: no name that a folder can have ({error})") from None
    if folder_there:
        settle(folder)
        return folder
    if there:
        raise CheckpointError(f"{folder}: is a file; give the folder it is in")
    if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not folder.parent.exists():
        return _download(name)
    raise CheckpointError(f"{name}: no such folder{_neighbour(folder)}")


def existing(folder: str | Path) -> Path:
    """The folder, ready to be read. Raises CheckpointError, with the nearest there is, where it is none."""
    folder = Path(folder).expanduser()
    if folder.is_dir():
        settle(folder)
        return folder
    raise CheckpointError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}{_neighbour(folder)}")


def _neighbour(folder: Path) -> str:
    """The ending of an error line: the nearest folder beside the one that is not there."""
    if not folder.parent.is_dir():
        return f" (nor '{folder.parent}')"
    close = nearest(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
    return f" (did you mean '{folder.with_name(close[0])}'?)" if close else ""


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise MissingExtra(f"'{name}' is no folder here, and fetching it from the hub", "hub") from None
    try:
        snapshot_download(name, allow_patterns=PARTS)
        return Path(snapshot_download(name, allow_patterns=WANTED, ignore_patterns=["*/*"]))
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private"
    except LocalEntryNotFoundError:
        reason = "the hub cannot be reached, and it was not downloaded before"
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
    raise CheckpointError(f"{name}: no folder here, and {reason}")
