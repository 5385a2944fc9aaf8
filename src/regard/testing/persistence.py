"""I. Files: saving and loading are exact, and whatever is wrong with a file is said in one error."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from regard import zoo
from regard.checkpoint.files import CONFIG, INDEX, SINGLE, read, write
from regard.checkpoint.keymap import same_bits
from regard.core.errors import CheckpointError, RegardError
from regard.testing.inputs import answers, draw, same
from regard.testing.published import published_configuration
from regard.testing.report import Failure, require
from regard.testing.subject import Subject

Spoil = Callable[[Path], object]
"""Does something to a saved checkpoint."""

JUNK: tuple[Any, ...] = (None, True, -1, 0, 1.5, float("nan"), "", "x", [], {}, [1, "x"], 2**63)
"""What fuzzing writes in place of a setting."""

BAD_NAMES = ("/etc/passwd", "../config.json", "", ".", "..", "\0", "a/b", "x" * 300, CONFIG)
"""Names that an index may not give to a shard."""


def saving_and_loading_is_exact(subject: Subject) -> None:
    """A saved model loads with its configuration and, bit for bit, its tensors, and answers the same (I47)."""
    models = [subject.exact] if subject.stored is None else [subject.stored, subject.exact]
    for model in models:
        with TemporaryDirectory() as folder:
            zoo.save(model, Path(folder))
            loaded = zoo.load(folder, device=subject.device)
            require(loaded.config == model.config, "saving and loading changes the configuration")
            _require_equal(loaded, model, "saving and loading")
            rows = draw(model)
            # A file's tensors may be aligned otherwise in memory, and sums then run in another order.
            limit = 1e-12 if model is subject.exact else 8 * torch.finfo(next(model.parameters()).dtype).eps
            same(answers(loaded, rows, "right"), answers(model, rows, "right"), "loaded against saved", limit)


def every_type_is_kept(subject: Subject) -> None:
    """Weights of every type load in that type, or in the type that is asked for (I47)."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        model = subject.build(dtype)
        with TemporaryDirectory() as folder:
            zoo.save(model, Path(folder))
            _require_equal(zoo.load(folder, device=subject.device), model, f"saving {dtype}")
            asked = zoo.load(folder, dtype=torch.float32, device=subject.device)
            _require_equal(asked, model.to(torch.float32), f"loading {dtype} as float32")


def shards_are_one_checkpoint(subject: Subject) -> None:
    """A checkpoint in many files loads as the same checkpoint in one, and replaces it (I47)."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zoo.save(subject.exact, folder)
        config, tensors = json.loads((folder / CONFIG).read_text()), {k: t.clone() for k, t in read(folder).items()}
        write(folder, tensors, config, max_shard_size=4000)
        require((folder / INDEX).exists() and not (folder / SINGLE).exists(), "the shards did not replace the one file")
        _require_equal(zoo.load(folder, device=subject.device), subject.exact, "sharding")
        zoo.save(subject.exact, folder)
        require(not (folder / INDEX).exists(), "the one file did not replace the shards")
        _require_equal(zoo.load(folder, device=subject.device), subject.exact, "joining shards")


def a_save_that_fails_changes_nothing(subject: Subject) -> None:
    """A save that cannot be finished raises CheckpointError and leaves the checkpoint that was there (I47)."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zoo.save(subject.exact, folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        unsavable = {"tensor": torch.empty(2).to_sparse()}
        try:
            write(folder, unsavable, {})
        except Exception:
            after = {path.name: path.read_bytes() for path in folder.iterdir()}
            require(after == before, "a save that failed changed the checkpoint that was there")
            return
        raise Failure("a tensor that no file can hold was saved")


def loading_is_strict(subject: Subject) -> None:
    """A tensor dropped, added, renamed, of another shape or kind, or untied, is an error that names it (I48)."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        zoo.save(subject.build(torch.float32), folder)
        tensors = {name: tensor.clone() for name, tensor in read(folder).items()}
        for what, key, changed in _tampered(tensors, subject.exact):
            save_file(changed, folder / SINGLE)
            try:
                zoo.load(folder)
            except CheckpointError as error:
                require(key in str(error), f"{what} '{key}': the error does not name it: {error}")
                continue
            raise Failure(f"{what} '{key}' loads without an error")


def damaged_configurations_are_refused(subject: Subject) -> None:
    """Whatever config.json holds, loading works or raises an error that is the user's to mend (I51)."""
    cases: list[tuple[str, Spoil]] = []
    for i, key in enumerate(subject.tiny.__dataclass_fields__):
        chosen = (JUNK * 2)[2 * i % len(JUNK) :][:2]  # each field gets some, each piece of junk goes to many
        cases += [(f"config.{key} = {junk!r}", _edit(["config", key], junk)) for junk in chosen]
        cases.append((f"a config without {key}", _edit(["config", key])))
    for junk in JUNK:
        cases += [(f"{key} = {junk!r}", _edit([key], junk)) for key in ("format", "family", "config")]
        cases.append((f"a configuration of {junk!r}", _write(CONFIG, json.dumps(junk).encode())))
    for text in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"model_type": 1}'):
        cases.append((f"a configuration of {text[:20]!r}", _write(CONFIG, text)))
    _require_refusals(subject, cases)


def damaged_published_configurations_are_refused(subject: Subject) -> None:
    """Whatever a published config.json holds, loading works or raises an error that is the user's to mend (I51)."""
    cases: list[tuple[str, Spoil]] = []
    for i, key in enumerate(published_configuration(subject, subject.tiny)):
        chosen = (JUNK * 2)[2 * i % len(JUNK) :][:2]
        cases += [(f"{key} = {junk!r}", _edit([key], junk)) for junk in chosen]
        cases.append((f"a configuration without {key}", _edit([key])))
    _require_refusals(subject, cases, layout="hf")


def damaged_indices_are_refused(subject: Subject) -> None:
    """Whatever a shard index says, loading raises, and opens nothing outside the folder (I51)."""
    with TemporaryDirectory() as outside:
        secret = Path(outside, "secret.safetensors")
        save_file({"secret": torch.zeros(1)}, secret)
        names = [str(secret), f"../{secret.parent.name}/{secret.name}", "missing.safetensors", *BAD_NAMES, *JUNK]
        values: list[Any] = [{"weight_map": {"secret": name}} for name in names]
        values += [{"weight_map": junk} for junk in JUNK] + [*JUNK]
        cases = [(f"an index of {value!r}", _index(value)) for value in values]
        _require_refusals(subject, [*cases, ("a link to the outside", _link(secret))], accepts=False)


def damaged_headers_are_refused(subject: Subject) -> None:
    """A truncated file, or one whose header had any bytes changed, loads or raises, and never crashes (I51)."""
    rng = random.Random(0)

    def change(folder: Path) -> None:
        content = bytearray((folder / SINGLE).read_bytes())
        header = 8 + int.from_bytes(content[:8], "little")
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(header)] = rng.randrange(256)
        (folder / SINGLE).write_bytes(content)

    def cut(folder: Path) -> None:
        content = (folder / SINGLE).read_bytes()
        (folder / SINGLE).write_bytes(content[: rng.randrange(len(content))])

    _require_refusals(subject, [("a changed header", change)] * 40)
    _require_refusals(subject, [("a truncated file", cut)] * 10, accepts=False)


def _require_refusals(
    subject: Subject, cases: Sequence[tuple[str, Spoil]], *, accepts: bool = True, layout: zoo.Layout = "regard"
) -> None:
    """After each spoiling, loading must raise RegardError; or, if it ``accepts``, it may also work."""
    with TemporaryDirectory() as temporary:
        good, folder = Path(temporary, "good"), Path(temporary, "spoilt")
        zoo.save(subject.build(torch.float32), good, layout=layout)
        content = {path.name: path.read_bytes() for path in good.iterdir()}
        folder.mkdir()
        for what, spoil in cases:
            for path in folder.iterdir():
                path.unlink()
            for name, data in content.items():
                (folder / name).write_bytes(data)
            spoil(folder)
            try:
                zoo.load(folder)
            except RegardError as error:
                require(bool(str(error)), f"{what}: an error without a message")
                continue
            except Exception as error:
                raise Failure(f"{what}: loading raises {type(error).__name__}: {error}") from error
            require(accepts, f"{what} loads without an error")


def _tampered(tensors: Mapping[str, Tensor], model: nn.Module) -> Iterator[tuple[str, str, dict[str, Tensor]]]:
    """What is done, the key that the error must name, and the tensors."""
    names = sorted(tensors)
    for name in {names[0], names[len(names) // 2], names[-1]}:
        rest = {key: tensor for key, tensor in tensors.items() if key != name}
        yield "dropped", name, rest
        yield "added", f"{name}.more", {**tensors, f"{name}.more": tensors[name].clone()}
        yield "renamed", name, {**rest, f"{name}x": tensors[name]}
        yield "reshaped", name, {**rest, name: tensors[name][None].clone()}
        yield "cut short", name, {**rest, name: tensors[name][:-1].clone()}
        yield "made integers", name, {**rest, name: tensors[name].long()}
    for name, tensor in model.state_dict().items():
        if name not in tensors:
            yield "untied", name, {**tensors, name: tensor.float().clone() + 1}


def _require_equal(actual: nn.Module, expected: nn.Module, what: str) -> None:
    ours, theirs = actual.state_dict(), expected.state_dict()
    require(ours.keys() == theirs.keys(), f"{what} changes the names of tensors: {sorted(ours.keys() ^ theirs.keys())}")
    for name, tensor in theirs.items():
        require(same_bits(ours[name], tensor), f"{what} changes '{name}'")


def _write(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def _edit(path: Sequence[str], *value: Any) -> Spoil:
    """Set what ``path`` leads to in the configuration, or without a value take it out."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        config.pop("checksum", None)  # which would refuse any edit, whatever it said
        inner = config[path[0]] if len(path) == 2 else config
        inner.pop(path[-1]) if not value else inner.update({path[-1]: value[0]})
        (folder / CONFIG).write_text(json.dumps(config))

    return spoil


def _index(value: Any) -> Spoil:
    """Leave an index instead of the one file."""

    def spoil(folder: Path) -> None:
        (folder / SINGLE).unlink()
        (folder / INDEX).write_text(json.dumps(value))

    return spoil


def _link(target: Path) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / SINGLE).unlink()
        (folder / SINGLE).symlink_to(target)

    return spoil


CHECKS = (
    saving_and_loading_is_exact,
    every_type_is_kept,
    shards_are_one_checkpoint,
    a_save_that_fails_changes_nothing,
    loading_is_strict,
    damaged_configurations_are_refused,
    damaged_published_configurations_are_refused,
    damaged_indices_are_refused,
    damaged_headers_are_refused,
)
