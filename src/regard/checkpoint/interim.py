"""Checkpoint files: safetensors, one or sharded, read through the page cache and written whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regard.core.errors import CheckpointError, nearest

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 5 * 10**9


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a checkpoint folder has one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: damaged, a JSON object is expected")
    return value


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder, memory-mapped: bytes are read when they are used.

    Raises:
        CheckpointError: no weights, weights in a format that can run code, a damaged or truncated file, an index that
            does not agree with its shards or points outside the folder.
    """
    if (folder / WEIGHTS).is_file():
        return _read_shard(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_sharded(folder)
    unsafe = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in sorted(folder.glob(pattern))]
    if unsafe:
        raise CheckpointError(f"{folder}: {unsafe[0]} is a pickle, which can run code; convert it to {WEIGHTS} first")
    raise CheckpointError(f"{folder}: no {WEIGHTS} and no {INDEX}")


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, though the index names it") from None
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: damaged or truncated ({error})") from None


def _read_sharded(folder: Path) -> dict[str, Tensor]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{folder / INDEX}: damaged, no weight_map of keys to file names")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{folder / INDEX}: {name!r} is not a file name within the folder")
        tensors.update(_read_shard(folder / name))
    if tensors.keys() != index.keys():
        odd = sorted(tensors.keys() ^ index.keys())
        raise CheckpointError(f"{folder / INDEX}: index and shards disagree on {len(odd)} tensors, first {odd[0]}")
    return tensors


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write tensors to ``folder`` as safetensors, in shards with an index when they are larger than one shard.

    Meant for the folder that :func:`whole_folder` yields. Raises CheckpointError when the disk does not take them.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i, _ in enumerate(shards, 1)]
    for name, shard in zip(names, shards, strict=True):
        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in shard.items()}
        try:
            save_file(contiguous, folder / name, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder / name}: could not be written ({error})") from None
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        placed = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))})


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = max_bytes
    for key in sorted(tensors):
        if shards[-1] and tensors[key].nbytes > room:
            shards.append({})
            room = max_bytes
        shards[-1][key] = tensors[key]
        room -= tensors[key].nbytes
    return shards


def write_json(path: Path, value: Any) -> None:
    """Write JSON as people read it. Raises CheckpointError when the disk does not take it."""
    try:
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{path}: could not be written ({error.strerror})") from None


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target`` and put it in its place at the end: readers see the old one or the new one.

    If anything fails, ``target`` stays as it was. A save that was killed leaves a hidden folder, which the next save
    removes.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    target = target.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        fresh = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
        fresh.mkdir()
    except OSError as error:
        raise CheckpointError(f"{target}: could not be written ({error.strerror})") from None
    try:
        yield fresh
        _sync(fresh)
        _swap(fresh, target)
    except OSError as error:
        raise CheckpointError(f"{target}: could not be written ({error.strerror}); what was there is untouched") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync(folder):
    for path in [*folder.iterdir(), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _swap(fresh, target):
    if target.exists():
        old = target.with_name(f".{target.name}.old-{secrets.token_hex(4)}")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    else:
        fresh.rename(target)


def _sweep(target):
    for stale in target.parent.glob(f".{target.name}.new-*"):
        shutil.rmtree(stale, ignore_errors=True)
