"""B. The published layout: every tensor and every setting goes there and back."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from regard import zoo
from regard.checkpoint.keymap import same_bits, to_ours, to_theirs
from regard.checkpoint.load import tensors_of
from regard.core.errors import ConfigError
from regard.testing.report import NotApplicable, require
from regard.testing.subject import Subject


def published_configuration_survives(subject: Subject) -> None:
    """To the published configuration and back, every setting is the same (B8)."""
    for config in (subject.config, subject.tiny):
        theirs = json.loads(json.dumps(published_configuration(subject, config)))
        back = subject.family.from_hf(theirs)
        require(back == config, f"the published configuration changes {_differences(back, config)}")


def key_map_is_total_and_one_to_one(subject: Subject) -> None:
    """Every tensor has one published key and comes back from it bit for bit (B8)."""
    models = [subject.exact] if subject.model is None else [subject.exact, subject.model]
    for model in models:
        published_configuration(subject, model.config)
        rules, ours = subject.family.keymap(model.config), tensors_of(model)
        _require_equal(to_ours(to_theirs(ours, rules), rules), ours, "through the key map")


def published_files_survive(subject: Subject) -> None:
    """Published files, loaded, saved in our layout, loaded and published again, are the same byte for byte (B8)."""
    published_configuration(subject, subject.tiny)
    with TemporaryDirectory() as temporary:
        theirs, ours, again = (Path(temporary) / name for name in ("theirs", "ours", "again"))
        zoo.save(subject.exact, theirs, layout="hf")
        found = zoo.load(theirs)
        for name, tensor in tensors_of(found).items():  # fused optimisers go by it
            require(tensor.is_contiguous(), f"from published files, '{name}' does not lie in memory in order")
        zoo.save(found, ours)
        loaded = zoo.load(ours)
        _require_equal(tensors_of(loaded), tensors_of(subject.exact), "through published files")
        zoo.save(loaded, again, layout="hf")
        for path in sorted(theirs.iterdir()):
            equal = path.read_bytes() == (again / path.name).read_bytes()
            require(equal, f"{path.name} is not the same after theirs -> ours -> theirs")


def published_configuration(subject: Subject, config: Any) -> dict[str, Any]:
    """The published form of ``config``. Raises NotApplicable where it has none."""
    try:
        return subject.family.to_hf(config)
    except ConfigError as reason:
        raise NotApplicable(str(reason)) from None


def _differences(actual: Any, expected: Any) -> str:
    changed = [name for name, value in vars(expected).items() if getattr(actual, name) != value]
    return ", ".join(f"{name}={getattr(expected, name)!r} to {getattr(actual, name)!r}" for name in changed)


def _require_equal(actual: dict[str, Tensor], expected: dict[str, Tensor], how: str) -> None:
    for name in expected.keys() | actual.keys():
        require(name in actual, f"{how}, '{name}' is lost")
        require(name in expected, f"{how}, '{name}' appears from nowhere")
        require(same_bits(actual[name], expected[name]), f"{how}, '{name}' changes")


CHECKS = (published_configuration_survives, key_map_is_total_and_one_to_one, published_files_survive)
