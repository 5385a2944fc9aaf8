"""Whether a model's weights fit where they are to go: found out before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from regard.blocks.residual import Stack
from regard.core.errors import ConfigError

AUTO = "auto"
"""In place of a device: the GPU with the most room if the model fits there, else the CPU."""


@dataclass(frozen=True)
class Need:
    """What a model takes, in bytes.

    Attributes:
        weights: all of them.
        block: those of the largest block; a device that computes wants about as much again for what it computes.
        half: all weights in bfloat16.
        dtype: of the weights; None = as they are stored.
        mapped: whether a CPU reads them from the file as it needs them, so that they take no memory there.
    """

    weights: int
    block: int
    half: int
    dtype: torch.dtype | None
    mapped: bool

    def fits(self, device: torch.device, room: int | None) -> bool:
        """Whether it fits into the room that is on a device; where nobody knows, it may try."""
        return room is None or (self.mapped and device.type == "cpu") or self.weights + self.block <= room

    def __str__(self) -> str:
        kind = "as stored" if self.dtype is None else f"in {str(self.dtype).removeprefix('torch.')}"
        return f"its weights take {spelled(self.weights)} {kind} ({spelled(self.block)} in the largest block)"


def need(model: nn.Module, stored: int, dtype: torch.dtype | None) -> Need:
    """What a model takes.

    Args:
        model: of which only shapes and kinds of number count; it may be on the meta device.
        stored: bytes of its weights in files.
        dtype: of the weights; None = as stored.
    """
    whole, half = _size(model, dtype), _size(model, torch.bfloat16)
    blocks = [block for stack in model.modules() if isinstance(stack, Stack) for block in stack.blocks]
    largest = max((_size(block, dtype) for block in blocks), default=whole)
    if dtype is None:
        return Need(stored, stored * largest // max(whole, 1), half, None, mapped=True)
    return Need(whole, largest, half, dtype, mapped=whole == stored)


def _size(model: nn.Module, dtype: torch.dtype | None) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(
        each.numel() * (dtype if dtype and each.is_floating_point() else each.dtype).itemsize for each in tensors
    )


def free(device: torch.device) -> int | None:
    """The bytes that are free on a device; None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return _free_memory() if device.type == "cpu" else None


def _free_memory(system: Path = Path("/")) -> int | None:
    """What the kernel says is free, or less where a control group allows less."""
    found = []
    with suppress(OSError, ValueError):
        lines = (system / "proc/meminfo").read_text().splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError, KeyError):
        group = system / "sys/fs/cgroup"
        taken = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(taken["inactive_file"])  # pages that it gives back
        found.append(int((group / "memory.max").read_text()) - used)
    return min(found, default=None)


def rooms(device: torch.device | str | None) -> dict[torch.device, int | None]:
    """What is free on the device that is asked for, or on each GPU for ``auto``, and on the CPU."""
    cpu = torch.device("cpu")
    asked = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] if device == AUTO else [exact(device)]
    return {each: free(each) for each in dict.fromkeys([*asked, cpu])}


def exact(device: torch.device | str | None) -> torch.device:
    """The device, a GPU with its number."""
    place = torch.device(device or "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if str(place) == "cuda" else place


def chosen(device: torch.device | str | None, what: Need, there: Mapping[torch.device, int | None]) -> torch.device:
    """Where a model goes.

    Args:
        device: a device, ``auto``, or None, which is the CPU.
        what: the model takes.
        there: what is free, as :func:`rooms` tells.

    Raises:
        ConfigError: it does not fit; one line with what it takes, what there is, and what to do.
    """
    ranked = sorted(there, key=lambda each: (each.type == "cpu", -(there[each] or 0)))
    fitting = [each for each in ranked if what.fits(each, there[each])]
    place = (fitting or ranked)[0] if device == AUTO else exact(device)
    if place in fitting:
        return place
    advice = [f"device='{each}'" for each in fitting]
    smaller = replace(what, weights=what.half, block=what.block * what.half // max(what.weights, 1), mapped=False)
    if what.half < what.weights and smaller.fits(place, there[place]):
        advice.append("dtype=torch.bfloat16")
    if place.type == "cpu" and not what.mapped:
        advice.append("no dtype, for then the CPU maps the files")
    found = ", ".join(f"{each} has {spelled(room)}" for each, room in there.items() if room is not None)
    do = f"load it with {' or '.join(advice)}" if advice else "write it smaller elsewhere (regard convert --dtype)"
    raise ConfigError(f"{what}, and as much again as that block to compute with; free: {found}; {do}")


def spelled(count: int) -> str:
    """Bytes as a reader wants them."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
