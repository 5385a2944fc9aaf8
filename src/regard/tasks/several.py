"""Translation between several pairs of languages by one model, whose trunk they share."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray
from torch import nn

from regard.blocks.trunk import SharedTrunk
from regard.core.errors import ConfigError, InputError, did_you_mean
from regard.core.types import Batch
from regard.data.learn import TokenizerKind
from regard.data.loader import Loader
from regard.data.mixture import Joined, Mixture, shares
from regard.data.pairs import Pair
from regard.data.source import Rows, mapped
from regard.data.split import Reread, Splits
from regard.data.tokenize import Tokenizer
from regard.generate.beam import Beam
from regard.generate.decode import Pick
from regard.generate.front import numbered
from regard.objectives.supervise import likelihood
from regard.tasks.seq2seq import WINDOW, Example
from regard.tasks.task import Prepare, Scored, some
from regard.tasks.translate import BEAM, ParallelText, Translate, compared

TAG = re.compile(r">>(\S+?)<< ?(.*)", re.DOTALL)
"""How a source says which pair of languages it is of, as Marian's models for several languages have it."""


@dataclass(frozen=True)
class ParallelTexts:
    """What to learn translation between several pairs of languages from. Without ``train``: phrases, as always.

    Each pair is a :class:`regard.tasks.translate.ParallelText`. Files are named by a pattern, in which ``{pair}``,
    ``{source}`` and ``{target}`` stand for en-de, en and de: ``news.{pair}.tsv``, or
    ``news.{pair}.{source},news.{pair}.{target}``. All pairs share one tokenizer. The decoder starts from a token that
    names the pair (as in Liu et al. 2020, section 2.2; Johnson et al. 2017 put it before the source); a text to be
    translated says it by ``>>en-de<<`` before it.

    Attributes:
        pairs: the languages, each as source-target.
        train: the files to learn from.
        valid: the files to watch training by; None holds some of ``train`` out.
        test: the files to report on.
        temperature: pairs are drawn in proportion to size ** (1 / temperature): 1 sees each example equally often, and
            the higher, the more of the smaller pairs (:func:`regard.data.mixture.shares`).
        weights: in proportion to which pairs are drawn, instead; one for each.
        tokenizer: a tokenizer.json or its folder; None trains one on both sides of all pairs.
        tokenizer_kind: what is trained (:func:`regard.data.learn.train_tokenizer`).
        vocab_size: of the trained tokenizer, which the pairs' own tokens are added to.
        max_len: training pairs with more tokens than this on either side, the end token included, are left out.
        max_tokens: of a batch, which is of one pair of languages: source and target, padding included.
        num_scored: how many validation pairs of each are translated and scored at each validation.
        num_workers: processes that make batches ahead of time; 0 makes each when it is asked for.
    """

    task: ClassVar[str] = "translate_many"

    pairs: tuple[str, ...] = ("en-fr", "en-de", "en-es")
    train: str | None = None
    valid: str | None = None
    test: str | None = None
    temperature: float = 1.0
    weights: tuple[float, ...] = ()
    tokenizer: str | None = None
    tokenizer_kind: TokenizerKind = "bpe"
    vocab_size: int = 8000
    max_len: int = 256
    max_tokens: int = 4096
    num_scored: int = 200
    num_workers: int = 0

    def __post_init__(self) -> None:
        wrong = [pair for pair in self.pairs if not all(pair.split("-")) or pair.count("-") != 1]
        if wrong or not self.pairs or len(set(self.pairs)) < len(self.pairs):
            raise ConfigError(f"data.pairs {' '.join(self.pairs)} must be languages as in 'en-fr en-de', each once")
        for name in ("train", "valid", "test"):
            spec = getattr(self, name)
            if spec and len({fill(spec, pair) for pair in self.pairs}) < len(self.pairs):
                raise ConfigError(f"data.{name} {spec} is the same for several pairs; put {{pair}} where they differ")
        shares([1] * len(self.pairs), self.temperature, self.weights)
        self.member(self.pairs[0])  # these two say what is wrong with the settings that they take

    @cached_property
    def members(self) -> dict[str, ParallelText]:
        """What to learn each pair of languages from. Raises ConfigError."""
        names = {each.name for each in fields(ParallelText)} & {each.name for each in fields(self)}
        shared: dict[str, Any] = {name: getattr(self, name) for name in names - {"train", "valid", "test"}}
        found = {}
        for pair in self.pairs:
            source, target = pair.split("-")
            specs: dict[str, Any] = {name: fill(getattr(self, name), pair) for name in ("train", "valid", "test")}
            found[pair] = ParallelText(source=source, target=target, **specs, **shared)
        return found

    def open(self, folder: Path | None = None) -> "TranslateMany":
        """The task, with the tokenizer in ``folder``, or with the one that this data asks for."""
        return TranslateMany(self, Tokenizer.load(folder)) if folder else self.learn(self.splits["train"])

    def learn(self, examples: Iterable[Pair]) -> "TranslateMany":
        """The task, with the tokenizer named, or one trained on both sides of these pairs."""
        bare = ((self.untagged(source)[1], target) for source, target in examples)
        return TranslateMany(self, next(iter(self.members.values())).learn(bare).tokenizer)

    @cached_property
    def splits(self) -> Splits[Pair]:
        """The pairs of train, valid and test with tagged sources; languages in turn where they are held out."""
        each = {name: member.splits for name, member in self.members.items()}

        def train() -> Iterator[Pair]:
            return (tagged(name, pair) for name, splits in each.items() for pair in splits["train"])

        def held_out(split: Literal["valid", "test"]) -> list[Pair]:
            return in_turn([[tagged(name, pair) for pair in splits[split]] for name, splits in each.items()])

        return {"train": Reread(train), "valid": held_out("valid"), "test": held_out("test")}

    def read(self, spec: str) -> list[Pair]:
        """The pairs of a file, with tagged sources; ``spec`` is en-de=FILE, or en-de for what is held out of it.

        Raises:
            DataError: as reading that file does.
            ConfigError: no such languages.
        """
        name, equals, file = spec.partition("=")
        member = self.member(name)
        pairs = member.read(file) if equals else member.splits["test"] or member.splits["valid"]
        return [tagged(name, pair) for pair in pairs]

    def rows(self, spec: str) -> Rows[Pair]:
        """The pairs of a file, en-de=FILE, with tagged sources, and its malformed rows. Raises as :meth:`read`."""
        name, _, file = spec.partition("=")
        return mapped(lambda pair: tagged(name, pair), self.member(name).rows(file))

    def member(self, name: str) -> ParallelText:
        """The data of one pair of languages. Raises ConfigError with the nearest name."""
        if name not in self.members:
            raise ConfigError(f"'{name}' is none of {', '.join(self.pairs)}{did_you_mean(name, self.pairs)}")
        return self.members[name]

    def untagged(self, source: str) -> tuple[str, str]:
        """Which pair of languages a tagged source is of, and the source. Raises InputError."""
        found = TAG.fullmatch(source)
        if not found or found[1] not in self.members:
            hint = f"names '{found[1]}'{did_you_mean(found[1], self.pairs)}" if found else "names no pair of languages"
            raise InputError(
                f"{source!r:.60} {hint}: begin it with {' or '.join(f'>>{pair}<<' for pair in self.pairs)}"
            )
        return found[1], found[2]


DATA = ParallelTexts


def fill(spec: str | None, pair: str) -> str | None:
    """The file of one pair of languages."""
    if spec is None:
        return None
    source, target = pair.split("-")
    return spec.replace("{pair}", pair).replace("{source}", source).replace("{target}", target)


def tagged(name: str, pair: Pair) -> Pair:
    """The pair with a source that says which languages it is of."""
    source, target = pair
    return f">>{name}<< {source}", target


def in_turn(lists: Sequence[Sequence[Pair]]) -> list[Pair]:
    """The first of each list, then the second of each ..., until all are through."""
    return [pair for row in zip_longest(*lists) for pair in row if pair is not None]


class TranslateMany:
    """Pairs of several languages to batches of one each, and tagged sources to translations.

    Attributes:
        members: the task of each pair of languages; each translates by itself, without tags.
    """

    monitor = "chrf"
    beam = BEAM
    sequences: tuple[str, ...] = ("source", "target")

    def __init__(self, data: ParallelTexts, tokenizer: Tokenizer) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.members = {name: Translate(each, tokenizer) for name, each in data.members.items()}
        starts = tokenizer.add([f">>{name}<<" for name in self.members])
        for task, start in zip(self.members.values(), starts, strict=True):
            task.start = start
        self.owning = False  # until a configuration says otherwise

    def configure(self, model: Any) -> Any:
        """As :meth:`Translate.configure`, with the languages as members where they have parts of their own.

        A decoder that is told nothing writes the first of the languages.
        """
        configured, *_ = [task.configure(model) for task in self.members.values()]
        self.owning = bool(getattr(configured, "own", ()))
        return replace(configured, members=self.data.pairs) if self.owning else configured

    def loader(self, *, seed: int, prepare: Prepare, rank: int = 0, world: int = 1) -> Loader[tuple[int, Example]]:
        """The training batches, each of one pair of languages. Raises as :meth:`Translate.loader`."""
        return Mixture(
            [task.loader(seed=seed, prepare=prepare) for task in self.members.values()],
            self.batch,
            seed=seed,
            temperature=self.data.temperature,
            weights=self.data.weights,
            prepare=prepare,
            num_workers=self.data.num_workers,
            rank=rank,
            world=world,
        )

    def batch(self, examples: Sequence[tuple[int, Example]]) -> Batch:
        """Examples of one pair of languages, each with its number, as :meth:`Translate.batch` has them."""
        member = examples[0][0]
        made = [*self.members.values()][member].batch([example for _, example in examples])
        return self.marked(member, made)

    def marked(self, member: int, batch: Batch) -> Batch:
        """The batch with ``member``, the number of its languages in each row, if the model has parts for each."""
        return batch | {"member": torch.full((len(batch["tokens"]),), member)} if self.owning else batch

    def where(self, rows: Sequence[int] | NDArray[Any]) -> str:
        """The file, and the number in it of the first of a training batch's pairs."""
        tasks = [*self.members.values()]
        member, row = Joined([task.kept for task in tasks]).find(int(rows[0]))
        return tasks[member].where([row])

    def validation(self) -> Sequence[Batch]:
        """The validation pairs of all languages, as :meth:`Translate.validation` has them."""
        return [
            self.marked(member, batch)
            for member, task in enumerate(self.members.values())
            for batch in task.validation()
        ]

    @torch.no_grad()
    def metrics(self, model: nn.Module, nll: float) -> dict[str, float]:  # noqa: ARG002 - it is of all languages
        """What :meth:`Translate.metrics` finds, as means over the pairs of languages and then of each: ``bleu/en-de``.

        ``valid_nll/en-de`` is the negative log-likelihood of a target token in each.
        """
        models = {name: self.model_of(model, name) for name in self.members}
        each = {name: task.metrics(models[name], 0.0) for name, task in self.members.items()}
        found = {
            metric: sum(scores[metric] for scores in each.values()) / len(each) for metric in next(iter(each.values()))
        }
        for name, task in self.members.items():
            found |= {f"{metric}/{name}": score for metric, score in each[name].items()}
            total, count = likelihood(models[name], task.validation())
            found[f"valid_nll/{name}"] = total / count
        return found

    def model_of(self, model: nn.Module, name: str) -> nn.Module:
        """The model that one pair of languages is translated by: itself, unless each has parts of its own."""
        return model.of(self.data.pairs.index(name)) if isinstance(model, SharedTrunk) else model

    def predict(
        self, model: Any, sources: Sequence[str], method: Pick | Beam = BEAM, max_tokens: int | None = None
    ) -> Iterator[str]:
        """The translation of each tagged source, in order, as they become known.

        Args:
            model: an encoder-decoder that learnt with this tokenizer.
            sources: texts, each after the languages that it is of: ``>>en-de<< Good morning``.
            method: as in :meth:`Translate.predict`.
            max_tokens: likewise.

        Raises:
            InputError: a source without a tag, or one that is longer than the model has positions for; those of earlier
                windows are answered.
            ConfigError: ``max_tokens`` leaves nothing to write.
        """
        for first in range(0, len(sources), WINDOW):
            window = [self.data.untagged(source) for source in sources[first : first + WINDOW]]
            outputs = [""] * len(window)
            for name, task in self.members.items():
                places = [place for place, (tag, _) in enumerate(window) if tag == name]
                try:
                    texts = [window[place][1] for place in places]
                    own = numbered(method, [first + place for place in places])
                    answers = task.predict(self.model_of(model, name), texts, own, max_tokens)
                    for place, answer in zip(places, answers, strict=True):
                        outputs[place] = answer
                except InputError as error:
                    raise InputError(f"of the texts for {name}, {error}") from None
            yield from outputs

    def score(self, model: Any, examples: Sequence[Pair], method: Pick | Beam = BEAM) -> Scored:
        """As :meth:`Translate.score`, of pairs with tagged sources, all together."""
        some(examples)
        outputs = [*self.predict(model, [source for source, _ in examples], method)]
        return compared(outputs, [target for _, target in examples])

    def show(self, batch: Batch) -> str:
        """The languages of a batch, its first source, and what the decoder reads of its target."""
        start = int(batch["decoder_tokens"][0, 0])
        return next(f"{name}: {task.show(batch)}" for name, task in self.members.items() if task.start == start)

    def lengths(self, values: Sequence[Pair]) -> list[tuple[int, ...]]:
        """Tokens of source and target, with the special token that each gets."""
        bare = [(self.data.untagged(source)[1], target) for source, target in values]
        return next(iter(self.members.values())).lengths(bare)

    def example(self, value: Pair) -> Batch:
        """One pair with a tagged source as a batch."""
        name, source = self.data.untagged(value[0])
        return self.members[name].example((source, value[1]))

    def pieces(self, _name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token; of every field, as all hold tokens."""
        return self.tokenizer.pieces(row)

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save(folder)
