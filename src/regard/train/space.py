"""What is searched: fields of a recipe, each with its range or its choices, as one types them."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from regard.core.errors import ConfigError
from regard.train.recipe import Recipe, override

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Range:
    """The numbers from one to another; of a field of whole numbers, the whole ones.

    Where both ends are above 0 and the upper one is at least ten times the lower, what is searched is the logarithm.
    """

    texts: ClassVar[tuple[str, ...]] = ()

    low: float
    high: float
    whole: bool = False

    @property
    def log(self) -> bool:
        """Whether each power of ten counts as much as the next."""
        return 0 < 10 * self.low <= self.high

    def draw(self, trial: "optuna.Trial", name: str) -> None:
        """Have the trial choose one."""
        if self.whole:
            trial.suggest_int(name, int(self.low), int(self.high), log=self.log)
        else:
            trial.suggest_float(name, self.low, self.high, log=self.log)

    def text(self, value: Any) -> str:
        """A value as it is trained with: four digits, so that it can be typed."""
        if self.whole:
            return str(value)
        return repr(min(max(float(f"{value:.4g}"), self.low), self.high))


@dataclass(frozen=True)
class Choices:
    """Some values, as one types them."""

    log: ClassVar[bool] = False

    texts: tuple[str, ...]

    def draw(self, trial: "optuna.Trial", name: str) -> None:
        """Have the trial choose one."""
        trial.suggest_categorical(name, self.texts)

    def text(self, value: Any) -> str:
        """A value as it is trained with."""
        return str(value)


Space = Mapping[str, Range | Choices]
"""What is searched: a field of the recipe, such as ``schedule.lr``, to its values."""


def default_space(recipe: Recipe) -> list[str]:
    """What is searched where nothing else is asked for: less and more of rate, warm-up and what regularises already."""
    lr, warmup, steps = recipe.schedule.lr, recipe.schedule.warmup, recipe.num_steps
    low = max(min(warmup, steps) // 2, 1)
    space = [
        f"schedule.lr={lr / 2:.3g}..{2 * lr:.3g}",
        f"schedule.warmup={low}..{max(min(2 * warmup, steps), low + 1)}",
    ]
    for name, most in (("model.dropout", 0.5), ("objective.label_smoothing", 0.3)):
        if own := value_of(recipe, name):
            space.append(f"{name}=0..{min(2 * own, most):.3g}")
    if decay := recipe.optimizer.weight_decay:
        space.append(f"optimizer.weight_decay={decay / 10:.3g}..{10 * decay:.3g}")
    return space


def parse_space(recipe: Recipe, texts: Sequence[str]) -> dict[str, Range | Choices]:
    """The space that texts such as ``schedule.lr=1e-4..1e-2`` or ``model.norm_order=pre,post`` describe.

    Every end and every choice must fit the recipe as it stands, by itself.

    Raises:
        ConfigError: a text that is none, a field that is not there (with the nearest that is), or a value that does not
            fit it.
    """
    space: dict[str, Range | Choices] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"--space {text}: write FIELD=LOW..HIGH or FIELD=A,B,C")
        if name in space:
            raise ConfigError(f"--space {text}: {name} has its values already")
        try:
            space[name] = _parse(recipe, name, values.strip())
        except ConfigError as error:
            raise ConfigError(f"--space {text}: {error}") from None
    return space


def _parse(recipe: Recipe, name: str, text: str) -> Range | Choices:
    if name == "help":
        raise ConfigError("no field 'help'")
    low, dots, high = text.partition("..")
    if not dots or "," in text:
        choices = tuple(choice.strip() for choice in text.split(","))
        values = [setting(recipe, name, choice) for choice in choices]
        if len(choices) < 2:
            raise ConfigError("one value is nothing to choose from; write LOW..HIGH or A,B,C")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ConfigError("a choice stands there twice")
        return Choices(choices)
    ends = [setting(recipe, name, end.strip()) for end in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ConfigError(f"{name} is not a number; write its choices, A,B,C")
    if not -math.inf < ends[0] < ends[1] < math.inf:
        raise ConfigError("the first end must be below the second, and both finite")
    return Range(float(ends[0]), float(ends[1]), whole=isinstance(ends[0], int))


def setting(recipe: Recipe, name: str, text: str) -> Any:
    """What the field ``name`` is when ``text`` is typed for it. Raises ConfigError."""
    held = value_of(recipe, name)
    if isinstance(held, bool) and text not in ("true", "false"):
        raise ConfigError(f"{name} is true or false, not '{text}'")
    if not text:
        raise ConfigError("a value is missing")
    return value_of(override(recipe, flags(name, text)), name)


def value_of(recipe: Recipe, name: str) -> Any:
    """The value of a field by its dotted name; None where there is no such field."""
    value: Any = recipe
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def flags(name: str, text: str) -> list[str]:
    """The options of ``regard train`` that set a field; a field of several values has them with blanks between."""
    holder, dot, last = name.replace("_", "-").rpartition(".")
    if text in ("true", "false"):
        return [f"--{holder}{dot}{'no-' * (text == 'false')}{last}"]
    try:
        return [f"--{holder}{dot}{last}", *shlex.split(text)]
    except ValueError:
        raise ConfigError(f"a quote is not closed in {text}") from None
