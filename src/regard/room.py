"""Whether a model's weights fit where they are to go: found out before any of them is read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from regard.blocks.residual import Block, Stack
from regard.core.errors import ConfigError, did_you_mean

AUTO = "auto"
"""In place of a device: the GPU with the most room, with as many blocks as fit there; the CPU where none does."""

Devices = torch.device | str | Mapping[str, torch.device | str] | None
"""Where a model goes: a device, ``auto``, None for the CPU, or a map (:func:`mapped`)."""


@dataclass(frozen=True)
class Need:
    """What a model takes, in bytes.

    Attributes:
        weights: all of them.
        block: those of the largest block; a device that computes wants about as much again for what it computes.
        half: all weights in bfloat16.
        dtype: of the weights; None = as they are stored.
        mapped: whether a CPU reads them from the file as it needs them, so that they take no memory there.
        blocks: those of each block, by its name, in order.
    """

    weights: int
    block: int
    half: int
    dtype: torch.dtype | None
    mapped: bool
    blocks: Mapping[str, int] = field(default_factory=dict)

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
    total = whole if dtype else stored
    sizes = {name: _size(block, dtype) * total // max(whole, 1) for name, block in blocks(model).items()}
    largest = max(sizes.values(), default=total)
    return Need(total, largest, half, dtype, mapped=dtype is None or whole == stored, blocks=sizes)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model's stacks by name, in order; one that stands in several places, once."""
    stacks = [name for name, stack in model.named_modules() if isinstance(stack, Stack)]
    prefixes = tuple(f"{name}.blocks." for name in stacks)
    return {
        name: block for name, block in model.named_modules() if name.startswith(prefixes) and isinstance(block, Block)
    }


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
    with suppress(OSError, ValueError):
        group = system / "sys/fs/cgroup"
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(limit - used + _reclaimable(group / "memory.stat"))
    return min(found, default=None)


def _reclaimable(stat: Path) -> int:
    """The bytes of files' pages that a control group gives back; 0 where it does not say."""
    with suppress(OSError, ValueError):
        return int(dict(line.split() for line in stat.read_text().splitlines()).get("inactive_file", 0))
    return 0


def rooms(device: Devices) -> dict[torch.device, int | None]:
    """What is free on the device that is asked for, or on each GPU for ``auto``, and on the CPU."""
    cpu = torch.device("cpu")
    if isinstance(device, Mapping):  # who maps knows
        return {}
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


@dataclass(frozen=True)
class Plan:
    """Where a model goes.

    Attributes:
        device: which computes, and has all weights but some.
        elsewhere: the blocks whose weights lie on another device, by name (:mod:`regard.blocks.offload`).
    """

    device: torch.device
    elsewhere: Mapping[str, torch.device] = field(default_factory=dict)


def planned(devices: Devices, what: Need, there: Mapping[torch.device, int | None]) -> Plan:
    """Where a model goes. Raises ConfigError as :func:`chosen`, and as :func:`mapped`."""
    if isinstance(devices, Mapping):
        return mapped(devices, what)
    return (_shared(what, there) if devices == AUTO else None) or Plan(chosen(devices, what, there))


def _shared(what: Need, there: Mapping[torch.device, int | None]) -> Plan | None:
    """As many blocks on the GPU with the most room as fit beside two to compute with, and the last on the CPU.

    None where one device has room for all, or these two have not.
    """
    cpu, gpus = torch.device("cpu"), [each for each in there if each.type == "cuda"]
    if not gpus or any(what.fits(each, there[each]) for each in gpus):
        return None
    largest = max(gpus, key=lambda each: there[each] or 0)
    left, out = what.weights + 2 * what.block - (there[largest] or 0), dict[str, int]()
    stacks = dict.fromkeys(name.rpartition(".")[0] for name in what.blocks)
    # An encoder's go first: it runs once for a text, and a decoder for each token.
    for name in (f"{stack}.{i}" for stack in stacks for i in reversed(range(len(what.blocks)))):
        if left > 0 and name in what.blocks:
            out[name] = what.blocks[name]
            left -= out[name]
    room = there.get(cpu)
    if left > 0 or not (what.mapped or room is None or sum(out.values()) <= room):
        return None
    return Plan(largest, dict.fromkeys(out, cpu))


def mapped(devices: Mapping[str, torch.device | str], what: Need) -> Plan:
    """The plan that a map says: ``{"": "cuda:0", "decoder.blocks.7": "cpu"}``; "" is the device that computes.

    Raises ConfigError for a name of no block, or where the map does not say what computes.
    """
    if "" not in devices:
        raise ConfigError("a map of devices says under '' which of them computes")
    place, named = exact(devices[""]), {name: exact(each) for name, each in devices.items() if name}
    for name, each in named.items():
        if name not in what.blocks:
            raise ConfigError(f"'{name}' is no block of this model{did_you_mean(name, what.blocks)}")
        if place.type == "cpu" and each.type == "cuda":
            raise ConfigError(f"'{name}' cannot lie on {each} while the CPU computes; name a GPU under ''")
    return Plan(place, {name: each for name, each in named.items() if each != place})


def spelled(count: int) -> str:
    """Bytes as a reader wants them."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
