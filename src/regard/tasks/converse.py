"""Conversational question answering: questions about a passage that follow each other, each with what was said before.

The last questions and their answers stand before the question, as text (Zhu et al. 2018). All else is as
in :mod:`regard.tasks.answer`. An answer is a part of the passage, a word such as yes or no, or that there is none. To
learn and to score, the rounds before have the answers that people gave, as in the papers of CoQA (Reddy et al. 2019)
and QuAC (Choi et al. 2018); to predict, those that the model gave itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter
from pathlib import Path
from statistics import fmean as mean
from typing import Any, ClassVar, NamedTuple

from regard.core.errors import ConfigError, InputError
from regard.data.conversation import UNKNOWN, Round, conversations
from regard.data.facts import talks
from regard.data.source import Rows
from regard.data.squad import Answer
from regard.data.tokenize import Tokenizer
from regard.tasks.answer import NOWHERE, Answering, Found, QuestionText, Window, normalised, overlapping
from regard.tasks.encoder import WINDOW
from regard.tasks.task import Scored


@dataclass(frozen=True)
class ConversationText(QuestionText):
    """What to learn conversations from. Without ``train``: such about what people speak and pay with, from locale data.

    As :class:`regard.tasks.answer.QuestionText`, but files are those of CoQA or QuAC
    (:func:`regard.data.conversation.conversations`).

    Attributes:
        valid: the file to watch training by; None holds out every twentieth conversation of ``train``, until there are
            1,000 questions.
        no_answer: whether a question may have no answer.
        history: rounds before a question that are read with it; of these, as many of the last as have room.
        words: answers that need not stand in the passage: yes and no for CoQA; QuAC has none such.
        max_question: tokens of a question with the words and rounds before it.
    """

    task: ClassVar[str] = "converse"

    no_answer: bool = True
    history: int = 2
    words: tuple[str, ...] = ("yes", "no")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history < 0:
            raise ConfigError(f"data.history {self.history} must be at least 0")
        if wrong := [word for word in self.words if normalised(word) != word or " " in word]:
            raise ConfigError(f"data.words: '{wrong[0]}' must be one word in small letters, without punctuation")

    def saved(self, folder: Path) -> Conversing:
        """The task, with the tokenizer in ``folder``."""
        return Conversing(self, Tokenizer.load(folder))

    def learn(self, examples: Iterable[Any]) -> Conversing:
        """The task, with the tokenizer named, or one trained on these questions and passages."""
        asked = [*examples]
        passages = dict.fromkeys(each.context for each in asked)
        said = (" ".join([*self.words, UNKNOWN, each.question]) for each in asked)
        return Conversing(self, self.learnt(chain(passages, said)))

    def generated(self) -> Any:
        """As :func:`regard.data.facts.talks`."""
        return talks()

    @cached_property
    def splits(self) -> Any:
        """The questions of train, valid and test; no conversation is in two. Raises DataError."""
        return self.generated() if self.train is None else self.apart(attrgetter("conversation"), "conversation")

    def rows(self, spec: str) -> Rows[Any]:
        """The questions of a file, and what is malformed in it. Raises DataError."""
        return conversations(spec)


DATA = ConversationText


class Conversing(Answering):
    """Questions in conversations to windows, and scores of places to answers."""

    data: ConversationText

    def __init__(self, data: ConversationText, tokenizer: Tokenizer) -> None:
        super().__init__(data, tokenizer)
        self.words = data.words

    def text(self, each: Any) -> str:
        """A question after the rounds before it."""
        return self.after(each.history, each.question)

    def after(self, history: Sequence[Round], question: str) -> str:
        """The question after the last rounds, of which as many stand there as have room."""
        last = history[max(0, len(history) - self.data.history) :]
        said = [f"{each.question} {each.answer or UNKNOWN}." for each in last]
        texts = [" ".join([*said[first:], question]) for first in range(len(said) + 1)]
        sizes = map(len, self.tokenizer.encode_batch([" ".join([*self.words, each]) for each in texts]))
        return next((each for each, size in zip(texts, sizes, strict=True) if size <= self.data.max_question), question)

    def marked(self, each: Any) -> list[Window]:
        """The windows of a question, with its answer where all that it is founded on is there."""
        said, founded = normalised(each.said[0]), each.answers[0] if each.answers else None
        if said not in self.words:
            return self.windows(self.text(each), each.context, nearest(founded, each.said[0]) if founded else None)
        found = self.windows(self.text(each), each.context, founded)
        places = [window.words[self.words.index(said)] for window in found]
        return [
            window._replace(start=place, end=place) if window.start != NOWHERE or founded is None else window
            for window, place in zip(found, places, strict=True)
        ]

    def compare(self, outputs: list[str], examples: Sequence[Any]) -> Scored:
        """F1 and exact match, and the shares of questions and conversations that are answered as by people, 0 to 100.

        Each answer is compared with all but one of people's, in turn, and the mean taken, as people's are compared with
        each other (as both sets' own programs do). ``heq_q`` is how often its F1 is at
        least that of people's; ``heq_d``, how often all questions of a conversation have that.
        """
        found = [judged(output, each.said) for output, each in zip(outputs, examples, strict=True)]
        counted = [one.people >= each.agreement for one, each in zip(found, examples, strict=True)]
        kept = [one for one, counts in zip(found, counted, strict=True) if counts]
        if not kept:
            raise InputError("there is no question to score on whose answers agree")
        failed = {
            each.conversation
            for one, counts, each in zip(found, counted, examples, strict=True)
            if counts and one.f1 < one.people
        }
        talks = {each.conversation for each in examples}
        scores = {
            "f1": 100 * sum(one.f1 for one in kept) / len(kept),
            "exact_match": 100 * sum(one.exact for one in kept) / len(kept),
            "heq_q": 100 * sum(one.f1 >= one.people for one in kept) / len(kept),
            "heq_d": 100 * (len(talks) - len(failed)) / len(talks),
        }
        about = f"of {len(kept):,} questions" + f", {len(found) - len(kept):,} left out" * (len(kept) < len(found))
        return Scored(scores, {"f1": about, "heq_d": f"of {len(talks):,} conversations"}, outputs)

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """The answers of each conversation: its questions and then its passage, with tabs between; so are the answers.

        Args:
            model: learnt with this tokenizer.
            texts: conversations.

        Raises:
            InputError: a text without a tab.
        """
        talks = []
        for text in texts:
            *questions, passage = text.split("\t")
            if not questions:
                raise InputError(f"{text!r:.60}: expected questions and their passage, with tabs between")
            talks.append((questions, passage))
        for first in range(0, len(talks), WINDOW):
            for found in self.converse(model, talks[first : first + WINDOW]):
                yield "\t".join(each.text for each in found)

    def converse(self, model: Any, talks: Sequence[tuple[Sequence[str], str]]) -> list[list[Found]]:
        """The best answer to each question of each passage; what the model answered before stands before the next."""
        found = [list[Found]() for _ in talks]
        for number in range(max((len(questions) for questions, _ in talks), default=0)):
            going = [i for i, (questions, _) in enumerate(talks) if number < len(questions)]
            pairs = []
            for i in going:
                questions, passage = talks[i]
                rounds = [Round(question, each.text) for question, each in zip(questions, found[i], strict=False)]
                pairs.append((self.after(rounds, questions[number]), passage))
            for i, best in zip(going, self.answers(model, pairs), strict=True):
                found[i].append(best[0])
        return found


class Judged(NamedTuple):
    """What one answer is worth beside people's, each 0 to 1, and how well these agree with each other, as F1."""

    f1: float
    exact: float
    people: float


def judged(output: str, said: Sequence[str]) -> Judged:
    """An answer beside people's, as :meth:`Conversing.compare` says; people who are one agree with themselves."""
    if len(said) == 1:
        return Judged(overlapping(output, said[0]), float(normalised(output) == normalised(said[0])), 1.0)
    others = [[*said[:i], *said[i + 1 :]] for i in range(len(said))]
    return Judged(
        mean(max(overlapping(output, each) for each in some) for some in others),
        mean(float(any(normalised(output) == normalised(each) for each in some)) for some in others),
        mean(max(overlapping(one, each) for each in some) for one, some in zip(said, others, strict=True)),
    )


def nearest(founded: Answer, said: str) -> Answer:
    """The words of a part of a passage that are most like an answer, by F1 (Reddy et al. 2019).

    Of equals it is the one whose length is nearest to the answer's; all of the part where no word is the same.
    """
    words = [(each.start(), each.end(), normalised(each[0]).split()) for each in re.finditer(r"\S+", founded.text)]
    wanted, best = Counter(normalised(said).split()), (0.0, 0, 0, len(founded.text))
    for i, (start, _, _) in enumerate(words):
        common, size, left = 0, 0, wanted.copy()
        for _, end, parts in words[i:]:
            size += len(parts)
            for part in parts:
                common += left[part] > 0
                left[part] -= 1
            if common:
                f1 = 2 * common / (size + wanted.total())
                best = max(best, (f1, -abs(end - start - len(said)), -start, end))
    _, _, start, end = best
    return Answer(founded.text[-start:end], founded.start - start)
