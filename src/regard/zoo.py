"""Finds the families; builds, loads and saves their models."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import regard.models
from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.kernel import kernel as kernel_called
from regard.blocks.adapter import Adapter, adapt, check_apart
from regard.blocks.init import initialise
from regard.blocks.names import holders, linears_called
from regard.blocks.offload import offload
from regard.checkpoint.files import CONFIG, checksum, inside, read, read_json, reading, settle, stored_size, write
from regard.checkpoint.head import own_rules, under
from regard.checkpoint.hub import resolve
from regard.checkpoint.keymap import Rule, to_theirs
from regard.checkpoint.load import assign, fits, reconcile, tensors_of
from regard.core.errors import CheckpointError, ConfigError, did_you_mean
from regard.core.serial import from_json, to_json
from regard.family import Family
from regard.room import AUTO, Devices, Plan, need, planned, rooms

Layout = Literal["regard", "hf"]
Missing = Literal["head"]

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


def heads_of(config: Any) -> list[str]:
    """The heads that a configuration may be given, of those that its field names."""
    hint: Any = get_type_hints(type(config)).get("head")
    named = [name for part in get_args(hint) for name in (get_args(part) or (part,)) if isinstance(name, str)]
    return [name for name in named if _takes(config, name)]


def _takes(config: Any, head: str) -> bool:
    with suppress(ConfigError):
        return bool(replace(config, head=head, labels=("",) if head in ("classify", "tag") else ()))
    return False


def with_head(head: str) -> list[str]:
    """The families of which some size may have this head."""
    return [
        name for name, family in families().items() if any(head in heads_of(config) for config in family.sizes.values())
    ]


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
    config = config_of(size)
    family = family_of(config)
    if torch.device(device or "cpu").type == "meta":
        return skeleton(family, config, kernel).to(dtype or torch.float32)
    return fresh(family, config, seed=seed, dtype=dtype or torch.float32, kernel=kernel).to(device or "cpu")


def fresh(family: Family, config: Any, *, seed: int, dtype: torch.dtype, kernel: KernelName) -> nn.Module:
    """A model on the CPU with weights drawn from ``seed``, whatever the global random state, which stays."""
    model = skeleton(family, config, kernel)
    materialise(model, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model, matrices=family.matrices, embeddings=family.embeddings)
    return model


def skeleton(family: Family, config: Any, kernel: KernelName) -> nn.Module:
    """The model without storage, on the meta device. Raises ConfigError, also for sizes that no tensor can have."""
    kernel_called(kernel)
    try:
        with torch.device("meta"), _Unfilled():
            return family.build(config, kernel=kernel)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"this {family.name} cannot be built: {str(error).splitlines()[0]}") from error


class _Unfilled(TorchFunctionMode):
    """Skips initialisation: on meta there are no numbers, and torch takes seconds to import what it needs to say so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.Tensor.normal_ or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


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


def config_of(size: Any) -> Any:
    """The configuration that ``size`` names, or is. Raises ConfigError with the nearest right name."""
    if not isinstance(size, str):
        return size
    named = sizes()
    if size not in named:
        raise ConfigError(f"no size '{size}'; there are {', '.join(sorted(named))}{did_you_mean(size, named)}")
    return named[size]


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: Devices = None,
    kernel: KernelName = "auto",
    missing: Missing | None = None,
    seed: int = 0,
    **changes: Any,
) -> nn.Module:
    """The model saved in ``folder``, ours or a published one, in evaluation mode; exact or an error.

    A model that was saved with an adapter has it again (:func:`regard.blocks.adapter.adapt`); another head learns, too.
    Tensors are memory-mapped and stay so where neither type nor layout changes: nothing is copied.

    Args:
        folder: a checkpoint, or a run, whose best checkpoint is meant; or, with the hub extra, a hub id.
        dtype: of floating-point weights; as stored unless given.
        device: where they go; the CPU unless given, whose weights may stay in the file. ``auto`` is the GPU with the
            most room; blocks that find none there lie on the CPU, and are brought in for each pass. A map says so for
            each block: ``{"": "cuda:0", "decoder.blocks.7": "cpu"}``, where "" computes. Such models are for
            inference alone.
        kernel: how attention is computed.
        missing: ``head`` to take the trunk exactly, leave out what is other heads', and draw what the checkpoint does
            not have of this one, or has in other shapes; None = all must be there and nothing else.
        seed: of what is drawn.
        changes: fields of the configuration to have otherwise, such as ``head="classify", labels=["bad", "good"]``.

    Raises:
        CheckpointError: nothing there, damaged files, or tensors that do not fit; all misfits are named together.
        ConfigError: a configuration of no known family, or with settings that the family does not have; or weights
            that do not fit where they are to go, told before any is read.
    """
    _check_place(dtype, device)
    if missing not in (None, *get_args(Missing)):
        raise ConfigError(f"missing may be 'head' or None, not {missing!r}")
    folder = checkpoint_folder(folder)
    with reading(folder):
        family, config, published = read_config(folder)
        if changes:
            config = from_json(family.config, to_json(config) | to_json(changes), "load")
        model, adapter = skeleton(family, config, kernel), stored_adapter(folder)
        rules, bare = family.keymap(config) if published else None, tensors_of(model)
        if adapter:
            adapt(model, _with_head(adapter, model, config) if missing else adapter)
        plan = _placed(model, folder, dtype, device)
        tensors = read(folder)
    adapters = tensors_of(model).keys() - bare.keys()
    added = {name: tensor for name, tensor in tensors.items() if name in adapters}
    own = {name: tensor for name, tensor in tensors.items() if name not in added}
    try:
        taken = _under_its_head(family, config, bare, own, rules, seed) | added if missing else tensors
        assign(model, taken, where=folder, rules=rules, dtype=dtype, device=plan.device, elsewhere=plan.elsewhere)
    except CheckpointError as error:
        if not missing and fits(model, _under_its_head(family, config, bare, own, rules, None) | added, rules):
            hint = "only the head does not fit: missing='head' takes all else, and draws what it lacks"
            raise CheckpointError(f"{error}\n  {hint}") from None
        raise
    for name in plan.elsewhere:
        offload(model.get_submodule(name), plan.device)
    return model.eval()


def _under_its_head(
    family: Family,
    config: Any,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule] | None,
    seed: int | None,
) -> dict[str, Tensor]:
    """A checkpoint's tensors as :func:`regard.checkpoint.head.under` has them, for the head of a configuration.

    Without a seed nothing is drawn, which large heads take time for: what is new is then on the meta device.
    """
    configs, kept = family.heads(config), trunk(config)
    drawn = skeleton(family, config, "auto")
    parts = sorted({name.split(".")[0] for name in expected if name not in kept})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        for part in parts if seed is not None else []:
            materialise(drawn.get_submodule(part), torch.float32)
            initialise(drawn.get_submodule(part), matrices=family.matrices, embeddings=family.embeddings)
    head = {name: tensor for name, tensor in tensors_of(drawn).items() if name in expected and name not in kept}
    maps = [
        own_rules(tensors_of(skeleton(family, each, "auto"))) if rules is None else family.keymap(each)
        for each in configs
    ]
    return under(head, tensors, expected, rules or own_rules(expected), [rule for each in maps for rule in each])


def trunk(config: Any) -> set[str]:
    """The names of those tensors of a configuration's model that it has under any head of its family."""
    family = family_of(config)
    names = [set(tensors_of(skeleton(family, each, "auto"))) for each in (config, *family.heads(config))]
    return set.intersection(*names)


def head_parts(config: Any) -> tuple[str, ...]:
    """The parts of a configuration's model that are its head's: what not all heads of its family have.

    Of a part that shares a tensor with the trunk, the other tensors stand there.
    """
    model, names = skeleton(family_of(config), config, "auto"), trunk(config)
    shared = {id(tensor) for name, tensor in tensors_of(model).items() if name in names}
    found = []
    for part, module in model.named_children():
        named = dict(module.named_parameters(prefix=part, remove_duplicate=False))
        own = [name for name, parameter in named.items() if id(parameter) not in shared]
        found += [part] if own and len(own) == len(named) else own
    return tuple(found)


def _with_head(adapter: Adapter, model: nn.Module, config: Any) -> Adapter:
    """An adapter beside which a configuration's head is trained whole, but for parts that have a layer with it."""
    layers = [name for each in adapter.targets for name in linears_called(model, each, "adapter.targets")]
    taken = {part for name in layers for part in holders(f"{name}.weight")}
    return replace(adapter, whole=tuple(part for part in head_parts(config) if part not in taken))


def _check_place(dtype: torch.dtype | None, devices: Devices) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype must be a floating-point type such as torch.bfloat16, not {dtype!r}")
    if not isinstance(devices, Mapping):
        _check_device(devices)
        return
    for name, device in devices.items():
        if device in (None, AUTO):
            raise ConfigError(f"a map of devices names one for '{name}', not {device!r}")
        _check_device(device)


def _check_device(device: torch.device | str | None) -> None:
    try:
        place = torch.device("cpu" if device in (None, AUTO) else device)
    except RuntimeError:
        raise ConfigError(f"no device {device!r}; name one as torch does, such as 'cpu' or 'cuda:0'") from None
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"no device {device!r} here: there are {torch.cuda.device_count()} GPUs; 'auto' takes what fits"
        )


def _placed(model: nn.Module, folder: Path, dtype: torch.dtype | None, device: Devices) -> Plan:
    """Where a checkpoint's weights go. Raises ConfigError where they do not fit."""
    try:
        return planned(device, need(model, stored_size(folder), dtype), rooms(device))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None


def save(model: nn.Module, folder: str | Path, *, layout: Layout = "regard") -> None:
    """Write ``model`` to ``folder``, whole or not at all; an adapter goes with it, beside the weights that it is on.

    Args:
        model: a model of one of the families.
        folder: made if needed; a checkpoint in it is replaced.
        layout: our own, or the published Hugging Face one.

    Raises:
        CheckpointError: the tensors are not those that the configuration says, or the disk does not take them; what
            was there before is untouched.
        ConfigError: no family's model, or the published layout cannot say what its configuration says.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"no layout {layout!r}; there are {', '.join(get_args(Layout))}")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"save takes a model, not {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    family = family_of(getattr(model, "config", None))
    tensors = tensors_of(model)
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError("a model on the meta device has no weights to save")
    check_apart(model)
    expected = skeleton(family, model.config, "auto")
    adapter: Adapter | None = getattr(model, "adapter", None)
    if adapter:
        adapt(expected, adapter)
    reconcile(tensors_of(expected), tensors, "the model to save")
    _check_parts(expected, model)
    config = {"format": FORMAT, "family": family.name, "config": to_json(model.config)}
    if adapter:
        config["adapter"] = to_json(adapter)
    config["checksum"] = checksum(config)
    if layout == "hf":
        if adapter:
            raise ConfigError(
                "the published layout has no adapter: put it into the weights first (plain), or write it alone "
                "(save_adapter)"
            )
        config = family.to_hf(model.config)
        tensors = to_theirs(tensors, family.keymap(model.config))
    write(Path(folder), tensors, config, checksum=layout == "regard")


def _check_parts(expected: nn.Module, model: nn.Module) -> None:
    """Raise CheckpointError where a part was exchanged for one that its configuration does not say."""
    for name, part in expected.named_modules():
        found: Any = model.get_submodule(name)
        same = type(found) is type(part)
        if same and isinstance(part, Attention):
            same = (found.mask, found.scale) == (part.mask, part.scale)
        if not same:
            raise CheckpointError(
                f"the model to save has another {name or 'class'} than its configuration says, "
                f"which loading would lose: {found!r:.80}"
            )


def checkpoint_folder(folder: str | Path) -> Path:
    """Where the checkpoint is: in the folder itself or, for a run, in its ``best``. Raises CheckpointError."""
    found = resolve(folder)
    for place in (found, found / "best"):
        settle(place)
    if (found / CONFIG).exists() or not (found / "recipe.json").exists():
        return found
    if not (found / "best" / CONFIG).exists():
        raise CheckpointError(f"{found}: this run has no best checkpoint yet; 'regard train {found} --resume' goes on")
    return found / "best"


def read_config(folder: Path) -> tuple[Family, Any, bool]:
    """The family and configuration that ``folder`` holds, and whether in the published layout.

    Raises CheckpointError for a damaged file, ConfigError for what no family understands.
    """
    path = folder / CONFIG
    value = read_json(path)
    if not isinstance(value, dict) or not ("family" in value or "model_type" in value):
        raise ConfigError(f"{path}: says neither 'family' nor 'model_type', so it is no model's configuration")
    if str(value.get("family")) in families():
        if value.get("format") != FORMAT:
            raise ConfigError(f"{path}: has format {value.get('format')}, this version reads {FORMAT}")
        if value.get("checksum", checksum(value)) != checksum(value):
            raise ConfigError(f"{path}: changed since it was saved; if that was meant, delete its 'checksum'")
        family = families()[value["family"]]
        return family, from_json(family.config, value.get("config"), f"{path}: config"), False
    for family in families().values():
        if value.get("model_type") in family.model_types:
            return family, _published(family, {**_generation(folder), **value}, path), True
    known = list(dict.fromkeys([*families(), *(each for family in families().values() for each in family.model_types)]))
    asked = str(value.get("family") or value.get("model_type"))
    raise ConfigError(f"{path}: no family '{asked}'; there are {', '.join(known)}{did_you_mean(asked, known)}")


def stored_adapter(folder: Path) -> Adapter | None:
    """What adapter the checkpoint in ``folder`` has, if any. Raises ConfigError for one that is not known."""
    path = folder / CONFIG
    value = read_json(path)
    said = value.get("adapter") if "family" in value else None
    return None if said is None else from_json(Adapter, said, f"{path}: adapter")


def _generation(folder: Path) -> Mapping[str, Any]:
    """The settings of generation that newer published checkpoints keep in a file of their own."""
    path = inside(folder, "generation_config.json")
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object")
    return value


def _published(family: Family, value: Mapping[str, Any], path: Path) -> Any:
    try:
        return family.from_hf(value)
    except KeyError as error:
        raise ConfigError(
            f"{path}: a {value['model_type']} configuration has '{error.args[0]}', this one not"
        ) from None
    except (ArithmeticError, ConfigError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
