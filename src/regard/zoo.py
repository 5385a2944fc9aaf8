"""Finds the families; builds, loads and saves their models."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import regard.models
from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.kernel import kernel as kernel_called
from regard.blocks.init import initialise
from regard.checkpoint.interim import read_json, read_tensors, whole_folder, write_json, write_tensors
from regard.checkpoint.keymap import to_ours, to_theirs
from regard.core.errors import CheckpointError, ConfigError, did_you_mean
from regard.core.serial import from_json, to_json
from regard.family import Family

FORMAT = 1
"""Version of the native layout, written to config.json."""


@functools.cache
def families() -> Mapping[str, Family]:
    """Every family by name: each module of ``regard.models`` has one, called FAMILY."""
    names = [info.name for info in pkgutil.iter_modules(regard.models.__path__)]
    found = [importlib.import_module(f"regard.models.{name}").FAMILY for name in names]
    return {family.name: family for family in found}


def sizes() -> dict[str, Any]:
    """The configuration of every named size of every family."""
    return {name: config for family in families().values() for name, config in family.sizes.items()}


def family_of(config: Any) -> Family:
    """The family whose configuration this is. Raises ConfigError for anything else."""
    for family in families().values():
        if type(config) is family.config:
            return family
    raise ConfigError(f"{type(config).__name__} is no family's configuration; there are {', '.join(families())}")


def build(
    size: Any,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    kernel: KernelName = "auto",
) -> nn.Module:
    """A fresh model, with weights drawn from ``seed``; the global random state is left alone.

    Args:
        size: the name of a size, or a configuration.
        seed: the same seed gives the same weights, on any device.
        dtype: of the weights; float32 unless given.
        device: where they go; the CPU unless given. On ``meta`` the model has shapes and no storage.
        kernel: how attention is computed.

    Raises:
        ConfigError: no such size, or a configuration that cannot be built.
    """
    config = _config(size)
    family = family_of(config)
    model = skeleton(family, config, kernel)
    if torch.device(device or "cpu").type == "meta":
        return model.to(dtype or torch.float32)
    materialise(model, dtype or torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model, matrices=family.matrices, embeddings=family.embeddings)
    return model.to(device or "cpu")


def skeleton(family: Family, config: Any, kernel: KernelName) -> nn.Module:
    """The model without storage, on the meta device. Raises ConfigError."""
    kernel_called(kernel)
    with torch.device("meta"):
        return family.build(config, kernel=kernel)


def materialise(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model on the meta device storage on the CPU, uninitialised; tied tensors stay tied."""
    made: dict[int, nn.Parameter | Tensor] = {}

    def storage(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, storage(parameter))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, storage(buffer))


def _config(size: Any) -> Any:
    if not isinstance(size, str):
        return size
    named = sizes()
    if size not in named:
        raise ConfigError(f"no size '{size}'; there are {', '.join(sorted(named))}{did_you_mean(size, named)}")
    return named[size]


def use_kernel(model: nn.Module, kernel: KernelName) -> None:
    """Let every attention of ``model`` compute with this kernel. Raises ConfigError for an unknown one."""
    kernel_called(kernel)
    for module in model.modules():
        if isinstance(module, Attention):
            module.kernel = kernel


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    kernel: KernelName = "auto",
) -> nn.Module:
    """The model saved in ``folder``, ours or a published one, in evaluation mode; exact or an error.

    Tensors are memory-mapped and stay so where neither type nor layout changes, so opening costs what is read.

    Args:
        folder: a checkpoint folder or a run; or, with the hub extra, a hub id.
        dtype: of floating-point weights; as stored unless given.
        device: where they go; the CPU unless given.
        kernel: how attention is computed.

    Raises:
        CheckpointError: nothing there, damaged files, or tensors that do not fit; all misfits are named together.
        ConfigError: a configuration of no known family, or with settings that the family does not have.
    """
    folder = Path(folder)
    family, config, published = read_config(folder)
    model = skeleton(family, config, kernel)
    found = read_tensors(folder)
    if published:
        found = to_ours(found, family.keymap(config))
    expected = canonical(model)
    reconcile(expected, found, str(folder))
    for name, tensor in found.items():
        wanted = tensor.to(dtype=dtype if tensor.is_floating_point() else None, device=device)
        _assign(model, name, wanted, expected[name])
    retie = getattr(model, "tie", None)
    if retie is not None:
        retie()
    return model.eval()


def save(model: nn.Module, folder: str | Path, *, layout: Literal["regard", "hf"] = "regard") -> None:
    """Write ``model`` to ``folder``, whole or not at all.

    Args:
        model: a model of one of the families.
        folder: made if needed; a checkpoint in it is replaced.
        layout: our own, or the published Hugging Face one.

    Raises:
        CheckpointError: the disk does not take it; what was there before is untouched.
        ConfigError: the published layout cannot say what this configuration says.
    """
    with whole_folder(Path(folder)) as fresh:
        write_model(model, fresh, layout=layout)


def write_model(model: nn.Module, folder: Path, *, layout: Literal["regard", "hf"] = "regard") -> None:
    """Write config.json and the weights into an existing folder, which the caller makes whole."""
    family = family_of(model.config)
    tensors = canonical(model)
    if layout == "hf":
        config = family.to_hf(model.config)
        tensors = to_theirs(tensors, family.keymap(model.config))
    else:
        config = {"format": FORMAT, "family": family.name, "config": to_json(model.config)}
    write_json(folder / "config.json", config)
    write_tensors(folder, tensors)


def reconcile(expected, found, where):
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in found.items()}:
        raise CheckpointError(f"{where}: tensors do not fit")


def read_config(folder: Path) -> tuple[Family, Any, bool]:
    """The family and configuration that ``folder`` holds, and whether in the published layout."""
    value = read_json(folder / "config.json")
    name, model_type = value.get("family"), value.get("model_type")
    if name in families() and "config" in value:
        if value.get("format") != FORMAT:
            raise ConfigError(f"{folder}: format {value.get('format')} is not {FORMAT}; a newer regard may read it")
        return families()[name], from_json(families()[name].config, value["config"], "config"), False
    for family in families().values():
        if model_type in family.model_types:
            return family, family.from_hf(value), True
    known = [*families(), *(each for family in families().values() for each in family.model_types)]
    asked = name or model_type
    if asked is None:
        raise ConfigError(f"{folder / 'config.json'}: says neither 'family' nor 'model_type'")
    raise ConfigError(f"{folder}: no family '{asked}'; there are {', '.join(known)}{did_you_mean(str(asked), known)}")


def canonical(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by key, each tied tensor once, under the first of its names."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            tensors[name] = tensor
            seen.add(id(tensor))
    return tensors


def _assign(model: nn.Module, name: str, tensor: Tensor, expected: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    value = nn.Parameter(tensor) if isinstance(expected, nn.Parameter) else tensor
    setattr(model.get_submodule(path), leaf, value)
