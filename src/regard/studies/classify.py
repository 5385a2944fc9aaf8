"""What a published encoder's weights are worth, and how many of them need to learn."""

from dataclasses import replace

from regard import zoo
from regard.blocks.adapter import Adapter, AdapterName
from regard.core.errors import ConfigError
from regard.recipes.classify import classify_finetune
from regard.train.recipe import Recipe, fitted
from regard.train.study import Study, Variant

BASE = classify_finetune


def pretraining(base: Recipe) -> Study:
    """A checkpoint's weights against random ones of the same configuration."""
    _require_start(base)
    return Study(
        "Pretrained and from scratch",
        "What is it worth to have read much text before the task? Devlin et al. 2019 (section 5.1) say: most of all.",
        [Variant("pretrained", base), Variant("from scratch", replace(base, start=None, missing=None))],
    )


FASTER = 15.0
"""Times the rate of all weights: what learns beside frozen ones has further to go (Hu et al. 2021, tables 9 to 12)."""


def adaptation(base: Recipe) -> Study:
    """All of a checkpoint's weights learn, the head alone, or adapters of rank 4 on every linear layer."""
    _require_start(base)
    config = fitted(base, base.data.open()).model
    model = zoo.skeleton(zoo.family_of(config), config, "auto")
    own = zoo.head_parts(config)
    parts = dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters())
    trunk = tuple(part for part in parts if part not in own)
    faster = replace(base.schedule, lr=FASTER * base.schedule.lr)
    kinds: dict[str, AdapterName] = {"LoRA": "lora", "DoRA": "dora"}
    adapted = [
        Variant(name, replace(base, adapter=Adapter(kind, rank=4, targets=("all",)), schedule=faster))
        for name, kind in kinds.items()
    ]
    return Study(
        "All weights, the head alone, or adapters",
        "How much of a pretrained model must learn a new task? Devlin et al. 2019 (section 5.3) compare all and "
        "the head alone; Hu et al. 2021 find that small matrices beside frozen ones do as well as all.",
        [Variant("all weights", base), Variant("head alone", replace(base, freeze=trunk, schedule=faster)), *adapted],
        sets=("freeze", "adapter"),
    )


def _require_start(base: Recipe) -> None:
    if base.start is None:
        raise ConfigError("this study is of a checkpoint: name its folder by --start")
