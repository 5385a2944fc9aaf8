"""A. What a model is: its configuration, its tensors, its first weights, what it may be given."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from regard import zoo
from regard.blocks.init import initialise
from regard.checkpoint.keymap import same_bits
from regard.checkpoint.load import tensors_of
from regard.core.errors import ConfigError, InputError
from regard.core.serial import from_json, to_json
from regard.core.types import Batch
from regard.testing.inputs import STREAMS, batch, draw, same, scores, streams, takes_documents
from regard.testing.report import Failure, require
from regard.testing.subject import Subject


def configuration_survives_json(subject: Subject) -> None:
    """Written as JSON and read again, a configuration is the same; an unknown field is an error (A1)."""
    for config in (subject.config, subject.tiny):
        written = json.loads(json.dumps(to_json(config)))
        require(from_json(type(config), written) == config, f"JSON changes the configuration {config}")
        try:
            from_json(type(config), written | {"no_such_field": 1})
        except ConfigError:
            continue
        raise Failure("an unknown field in the configuration is accepted")


def tensors_follow_from_the_configuration(subject: Subject) -> str | None:
    """Built from its configuration on the meta device, a model has the tensors that the one at hand has (A1, A4)."""
    model = subject.exact if subject.model is None else subject.model
    expected = zoo.skeleton(subject.family, model.config, "auto")
    require(all(tensor.is_meta for tensor in tensors_of(expected).values()), "built on meta, a tensor has storage")
    theirs, ours = ({k: list(t.shape) for k, t in tensors_of(m).items()} for m in (expected, model))
    for name in theirs.keys() | ours.keys():
        require(theirs.get(name) == ours.get(name), f"'{name}': {ours.get(name)}, expected {theirs.get(name)}")
    return f"{sum(p.numel() for p in model.parameters()):,} parameters"


def every_tensor_is_registered(subject: Subject) -> None:
    """Whatever tensor a module holds is a parameter or a buffer, so that it moves and is saved with it (A4)."""
    for name, module in subject.exact.named_modules():
        for key, value in vars(module).items():
            if key not in ("_parameters", "_buffers", "_modules"):
                require(not _holds_tensor(value), f"'{name}.{key}' holds a tensor that no one registered")
    stray = [name for name, _ in subject.exact.named_buffers() if name not in subject.exact.state_dict()]
    require(not stray, f"buffer '{''.join(stray[:1])}' is not part of a checkpoint, so meta models cannot be filled")


def every_number_is_drawn(subject: Subject) -> None:
    """Initialisation leaves no number as it found it, not even NaN (A2)."""
    model = zoo.skeleton(subject.family, subject.tiny, "auto")
    zoo.materialise(model, torch.float64)
    with torch.no_grad():
        for tensor in tensors_of(model).values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
        initialise(model, matrices=subject.family.matrices, embeddings=subject.family.embeddings)
    for name, tensor in tensors_of(model).items():
        kept = ~tensor.isfinite() if tensor.is_floating_point() else tensor == 77
        require(not kept.any(), f"'{name}': {int(kept.sum())} numbers are not initialised")


def a_seed_fixes_every_weight(subject: Subject) -> None:
    """The same seed gives the same weights, another seed others, and the global random state is left alone (A3)."""
    state = torch.get_rng_state()
    first, again, other = (tensors_of(subject.build(seed=seed)) for seed in (3, 3, 4))
    require(torch.equal(state, torch.get_rng_state()), "building moves the global random state")
    for name, tensor in first.items():
        require(same_bits(tensor, again[name]), f"'{name}' differs between two builds from one seed")
        drawn = tensor.ndim >= 2 and bool(tensor.var() > 0)
        require(not drawn or not torch.equal(tensor, other[name]), f"'{name}' is the same whatever the seed")


def first_weights_follow_their_role(subject: Subject) -> None:
    """Linear matrices have the family's spread, times their gain; biases are 0, norms begin as the identity (A3)."""
    model = subject.exact
    tables = {id(p) for m in model.modules() if not isinstance(m, nn.Linear) for p in m.parameters(recurse=False)}
    for name, module in model.named_modules():
        bias = getattr(module, "bias", None)
        require(not isinstance(bias, Tensor) or not bias.any(), f"the bias of '{name}' does not begin at 0")
        if isinstance(module, nn.Linear) and id(module.weight) not in tables:  # tied to a table
            _require_spread(name, module.weight, subject.family.matrices, getattr(module, "init_gain", 1.0))
        elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
            require(bool((module.weight == 1).all()), f"the gain of '{name}' does not begin at 1")


def wrong_input_is_named(subject: Subject) -> None:
    """What a model cannot read raises InputError with a message, and never an answer or a crash (A5)."""
    model, good = subject.exact, batch(draw(subject.exact), "right")
    for what, changes in _wrong(subject, good):
        try:
            model(**(good | changes))
        except InputError as error:
            require(bool(str(error)), f"{what}: an error without a message")
            continue
        raise Failure(f"{what} is accepted")
    try:
        model(**good, no_such_argument=None)
    except TypeError:
        return
    raise Failure("an unknown argument is accepted")


def the_shortest_and_the_longest_input_work(subject: Subject) -> None:
    """One token works, and so does the longest sequence; one token more is an InputError, or fine (A5)."""
    model, longest = subject.exact, getattr(subject.tiny, "max_seq_len", 32)
    row = next(iter(draw(model).values()))[0][:1]
    for length in (1, longest):
        inputs = {name: row.expand(1, length) for name in streams(model)}
        with torch.no_grad():
            require(bool(scores(model(**inputs)).isfinite().all()), f"{length} tokens give no finite answer")
    try:
        with torch.no_grad():
            said = scores(model(**{name: row.expand(1, longest + 1) for name in streams(model)}))
    except InputError:
        return
    require(bool(said.isfinite().all()), f"{longest + 1} tokens give no finite answer")


def inputs_are_left_as_they_are(subject: Subject) -> str | None:
    """A model does not write to what it is given, so memory that cannot be written to will do (A6)."""
    model, inputs = subject.exact, batch(draw(subject.exact), "right")
    before = {name: value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        expected = scores(model(**inputs))
    for name, value in inputs.items():
        require(torch.equal(value, before[name]), f"the model writes to its argument '{name}'")
    if subject.device.type != "cpu":
        return "not tried with memory-mapped inputs, which lie on the CPU"
    with TemporaryDirectory() as folder, torch.no_grad():
        same(scores(model(**_mapped(inputs, Path(folder)))), expected, "memory-mapped inputs", 0.0)
    return None


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_tensor, value.values()))
    return any(map(_holds_tensor, value)) if isinstance(value, (list, tuple, set)) else isinstance(value, Tensor)


def _require_spread(name: str, weight: Tensor, fill: Callable[[Tensor], object], gain: float) -> None:
    sample = torch.empty(64, *weight.shape, dtype=weight.dtype)
    for each in sample:
        fill(each)
    expected, actual = gain * float(sample.std()), float(weight.detach().std())
    limit = 6 * expected / (2 * weight.numel()) ** 0.5  # six standard errors of a sample's standard deviation
    require(
        abs(actual - expected) <= limit,
        f"'{name}': standard deviation {actual:.4g}, expected {expected:.4g} within {limit:.2g}",
    )


def _wrong(subject: Subject, good: Batch) -> Iterator[tuple[str, Batch]]:
    """What is wrong, and the arguments that make it so."""
    for name in streams(subject.exact):
        tokens, valid = good[name], good[STREAMS[name]]
        yield f"{name} of floats", {name: tokens.double()}
        yield f"{name} of one dimension", {name: tokens[0], STREAMS[name]: valid[0]}
        yield f"{name} of no rows", {name: tokens[:0], STREAMS[name]: valid[:0]}
        yield f"{name} of no tokens", {name: tokens[:, :0], STREAMS[name]: valid[:, :0]}
        yield f"{name} beyond the vocabulary", {name: tokens.new_full(tokens.shape, subject.tiny.vocab_size)}
        yield f"{name} below 0", {name: torch.full_like(tokens, -1)}
        yield f"{STREAMS[name]} of integers", {STREAMS[name]: valid.long()}
        yield f"{STREAMS[name]} of another shape", {STREAMS[name]: valid[:, 1:]}
    if len(streams(subject.exact)) > 1:
        yield f"{name} of fewer rows", {name: tokens[:2], STREAMS[name]: valid[:2]}
    if takes_documents(subject.exact):
        yield "documents of floats", {"documents": tokens.double()}
        yield "documents of another shape", {"documents": tokens[:, 1:]}


def _mapped(inputs: Batch, folder: Path) -> Batch:
    """The same inputs in files that are mapped read-only."""
    for name, value in inputs.items():
        np.save(folder / f"{name}.npy", value.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that it may not write there, which is the point
        return {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in inputs}


CHECKS = (
    configuration_survives_json,
    tensors_follow_from_the_configuration,
    every_tensor_is_registered,
    every_number_is_drawn,
    a_seed_fixes_every_weight,
    first_weights_follow_their_role,
    wrong_input_is_named,
    the_shortest_and_the_longest_input_work,
    inputs_are_left_as_they_are,
)
