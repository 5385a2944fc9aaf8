"""Beam search against exhaustive search, a plain-list beam search, greedy decoding, and itself in other batches."""

from itertools import product

import pytest
import torch
from generate_toys import Markov, Recurrent, Uncached
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.errors import ConfigError, InputError
from regard.generate.beam import Beam, beam_search
from regard.generate.decode import Generated
from regard.generate.front import generate
from regard.generate.logits import forbid, force, no_repeat_ngram

STOP = 0


def search(model, prompt, **options):
    prompt = torch.tensor(prompt)
    return beam_search(model.begin(), prompt, **{"stop": [STOP], "max_tokens": 8, **options})


def logprob(model, prompt, tokens):
    """The sum of the log-probabilities of tokens after a prompt, from nothing."""
    prefixes = [list(prompt) + list(tokens[:i]) for i in range(len(tokens))]
    return sum(
        float(model.logits(prefix).log_softmax(-1)[token]) for prefix, token in zip(prefixes, tokens, strict=True)
    )


def contains(tokens, phrase):
    return any(list(tokens[i : i + len(phrase)]) == list(phrase) for i in range(len(tokens)))


def every_answer(vocab, limit):
    """All answers there can be: up to a stop token, or as long as allowed without one."""
    for length in range(1, limit + 1):
        for body in product(range(1, vocab), repeat=length - 1):
            for end in range(vocab) if length == limit else [STOP]:
                yield [*body, end]


def exhaustive(model, prompt, vocab, limit, penalty, allowed=lambda tokens: True):
    found = [(logprob(model, prompt, each), each) for each in every_answer(vocab, limit) if allowed(each)]
    return sorted(found, key=lambda each: -each[0] / len(each[1]) ** penalty)


def by_hand(model, prompt, beam, limit, vocab):
    """Beam search with lists and loops, groups included; the usual rule for stopping."""
    width = beam.size // beam.groups
    opens, ends = [[(0.0, [])] for _ in range(beam.groups)], [[] for _ in range(beam.groups)]
    done = [False] * beam.groups
    for count in range(1, limit + 1):
        taken = []
        for group in range(beam.groups):
            grown = []
            for score, tokens in opens[group]:
                logprobs = model.logits(list(prompt) + tokens).log_softmax(-1)
                for token in range(vocab):
                    total = score + float(logprobs[token])
                    grown.append((total - beam.diversity * taken.count(token), total, [*tokens, token]))
            grown.sort(key=lambda each: -each[0])
            ending = [(score / count**beam.length_penalty, tokens) for _, score, tokens in grown[:width]
                      if tokens[-1] == STOP or count == limit]  # fmt: skip
            if not done[group]:
                taken += [grown_tokens[-1] for _, _, grown_tokens in grown if grown_tokens[-1] != STOP][:width]
                ends[group] = sorted(ends[group] + ending, key=lambda each: -each[0])[:width]
            opens[group] = [(score, tokens) for _, score, tokens in grown if tokens[-1] != STOP][:width]
            highest = max(score for score, _ in opens[group]) / count**beam.length_penalty
            if len(ends[group]) == width and highest <= ends[group][-1][0]:
                done[group] = True
        if all(done):
            break
    answers = sorted((each for group in ends for each in group), key=lambda each: -each[0])
    return [tokens for i, (_, tokens) in enumerate(answers) if tokens not in [other for _, other in answers[:i]]]


@given(st.integers(0, 200), st.integers(0, 6))
def test_a_beam_of_one_is_greedy(seed, minimum):
    model, prompt = Recurrent(9, seed), torch.tensor([[2], [3], [4]])
    options = {"stop": [STOP], "max_tokens": 10, "min_tokens": minimum}
    narrow = generate(model, prompt, method=Beam(size=1, stopping="first"), **options)
    for one, other in zip(narrow, generate(model, prompt, **options), strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        assert one.score == pytest.approx(other.score, abs=1e-9)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([-0.5, 0.0, 0.6, 1.0, 2.0]), st.sampled_from([(2, 5), (3, 4), (4, 3)]))
def test_a_beam_of_full_width_is_exhaustive_search(seed, penalty, size):
    vocab, limit = size
    model = Recurrent(vocab, seed)
    beam = Beam(size=vocab**limit, length_penalty=penalty, stopping="exact")
    for prompt, answers in zip(
        [[1], [0]], search(model, [[1], [0]], beam=beam, best=beam.size, max_tokens=limit), strict=True
    ):
        expected = exhaustive(model, prompt, vocab, limit, penalty)
        assert [each.tokens for each in answers] == [tokens for _, tokens in expected]
        assert [each.score for each in answers] == pytest.approx([score for score, _ in expected], abs=1e-9)
        assert all((each.finish == "stop") == (each.tokens[-1] == STOP) for each in answers)


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(2, 1, 0.0), (4, 1, 0.0), (4, 2, 0.7), (6, 3, 2.0), (4, 4, 1.0), (4, 2, 0.0)]),
    st.sampled_from([0.0, 0.6, 1.0, 1.5]),
)
def test_equals_beam_search_by_hand(seed, shape, penalty):
    size, groups, diversity = shape
    model = Recurrent(11, seed, spread=1.0)
    beam = Beam(size=size, length_penalty=penalty, groups=groups, diversity=diversity)
    prompts = [[2, 3], [4, 5], [1, 1]]
    for prompt, answers in zip(prompts, search(model, prompts, beam=beam, best=size, max_tokens=7), strict=True):
        assert [each.tokens for each in answers] == by_hand(model, prompt, beam, 7, 11)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(1, 3), st.sampled_from(["current", "exact", "first"]))
def test_scores_are_recomputed_and_sorted(seed, groups, stopping):
    model = Recurrent(30, seed, spread=1.0)
    beam = Beam(size=6, length_penalty=0.8, groups=groups, diversity=0.5 if groups > 1 else 0.0, stopping=stopping)
    (answers,) = search(
        model, [[7]], beam=beam, best=6, transforms=[no_repeat_ngram(2), forbid([[3], [4, 5]])], min_tokens=2
    )
    for each in answers:
        assert each.score == pytest.approx(logprob(model, [7], each.tokens), abs=1e-9)
        assert 2 <= len(each.tokens) <= 8
        assert not contains(each.tokens, [3])
        assert not contains(each.tokens, [4, 5])
        assert len(set(zip([7, *each.tokens], each.tokens, strict=False))) == len(each.tokens)
    ranks = [each.score / len(each.tokens) ** 0.8 for each in answers]
    assert ranks == sorted(ranks, reverse=True)


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=4), min_size=2, max_size=6),
    st.booleans(),
)
def test_batched_equals_alone(seed, prompts, grouped):
    model = Recurrent(9, seed, spread=1.5)
    beam = Beam(size=4, groups=2, diversity=1.0) if grouped else Beam(size=3)
    width = max(map(len, prompts))
    sides = []
    for left in (True, False):
        pads = [[0] * (width - len(prompt)) for prompt in prompts]
        rows = [pad + row if left else row + pad for pad, row in zip(pads, prompts, strict=True)]
        sides.append(
            search(model, rows, valid=torch.tensor(rows) > 0, beam=beam, best=3, transforms=[no_repeat_ngram(3)])
        )
    assert sides[0] == sides[1]
    for prompt, together in zip(prompts, sides[0], strict=True):
        (alone,) = search(model, [prompt], beam=beam, best=3, transforms=[no_repeat_ngram(3)])
        assert [each.tokens for each in alone] == [each.tokens for each in together]
        assert [each.score for each in alone] == pytest.approx([each.score for each in together], abs=1e-9)


def test_cached_equals_uncached_and_rows_keep_to_the_contract():
    model = Recurrent(40, seed=3, spread=1.0)
    prompt = torch.arange(2, 12)[:, None]
    cached = model.begin()
    options = {"beam": Beam(size=4, length_penalty=0.0), "best": 4, "stop": range(6), "max_tokens": 12}
    found = beam_search(cached, prompt, **options)

    def forward(tokens, sources):
        return torch.stack(
            [torch.stack([model.logits(row[: i + 1]) for i in range(len(row))]) for row in tokens.tolist()]
        )

    assert found == beam_search(Uncached(forward, 10), prompt, **options)

    first, *others = cached.orders
    assert first.tolist() == [sentence for sentence in range(10) for _ in range(4)]
    held = len(first)
    for rows in others:
        sentences = (rows // 4).view(-1, 4)
        assert (sentences == sentences[:, :1]).all(), "the rows of a sentence are neighbours"
        assert (sentences[1:, 0] > sentences[:-1, 0]).all(), "sentences keep their order"
        assert rows.tolist() != list(range(held)), "a reordering that changes nothing was asked for"
        held = len(rows)
    assert cached.rows_fed[-1] < cached.rows_fed[1], "finished sentences leave the batch"


@settings(max_examples=25)
@given(
    st.integers(0, 10_000),
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=2), max_size=2),
    st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=3), max_size=1),
)
def test_forced_words_at_full_width_are_the_best_answers_that_hold_them(seed, one, other):
    vocab, limit = 3, 4
    model = Recurrent(vocab, seed)
    beam = Beam(size=vocab**limit, stopping="exact")
    prompts, words = [[1], [2]], [one, other]
    answers = search(model, prompts, beam=beam, best=5, max_tokens=limit, words=words)
    for prompt, phrases, found in zip(prompts, words, answers, strict=True):
        expected = exhaustive(
            model, prompt, vocab, limit, 1.0, lambda tokens, p=phrases: all(contains(tokens, each) for each in p)
        )
        assert [each.tokens for each in found] == [tokens for _, tokens in expected[:5]]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.lists(st.integers(1, 29), min_size=1, max_size=3), min_size=1, max_size=3))
def test_forced_words_appear_whatever_the_beam(seed, phrases):
    model = Recurrent(30, seed)
    answers = search(model, [[5], [6]], beam=Beam(size=4), best=2, words=[phrases, []], max_tokens=24)
    assert all(contains(each.tokens, phrase) for each in answers[0] for phrase in phrases)
    assert [each.tokens for each in answers[1]] == [
        each.tokens for each in search(model, [[6]], beam=Beam(size=4), best=2, words=[[]], max_tokens=24)[0]
    ]


def test_no_forced_words_is_plain_beam_search():
    model = Recurrent(30, 4, spread=1.0)
    beam = Beam(size=30 * 4, length_penalty=0.0)
    plain, empty = (
        search(model, [[5], [6]], beam=beam, best=9, words=words, max_tokens=3) for words in (None, [[], []])
    )
    assert plain == empty


def test_diversity_spreads_the_groups():
    model = Recurrent(50, seed=1, spread=1.0)
    plain = search(model, [[5]], beam=Beam(size=4, groups=4), best=4)[0]
    spread = search(model, [[5]], beam=Beam(size=4, groups=4, diversity=5.0), best=4)[0]
    assert len(plain) == 1, "groups that do not see each other find the same"
    assert len({each.tokens[0] for each in spread}) == 4


def test_exact_stopping_never_ranks_below_current():
    gained = 0
    for seed in range(40):
        model = Recurrent(20, seed, spread=1.0)
        ranks = {}
        for rule in ("first", "current", "exact"):
            beam = Beam(size=2, length_penalty=1.0, stopping=rule)
            best = search(model, [[5]], beam=beam, stop=[0, 1, 2], max_tokens=15)[0][0]
            ranks[rule] = best.score / len(best.tokens)
        assert ranks["first"] <= ranks["current"] <= ranks["exact"]
        gained += ranks["exact"] > ranks["current"]
    assert gained, "the rules were never seen to differ"


def test_a_forced_last_token():
    model = Recurrent(30, 2, spread=0.1)
    beam = Beam(size=3, length_penalty=2.0)
    for each in search(model, [[5]], beam=beam, best=3, transforms=[force(STOP, at=6)], max_tokens=6)[0]:
        assert each.finish == "stop"
        assert each.score == pytest.approx(logprob(model, [5], each.tokens), abs=1e-9)


def test_large_vocabularies_are_searched_in_slices_and_blocks():
    # 10,007 is prime, so neither blocks nor slices come out even; the plain search looks at every token.
    table = torch.randn(64, 10_007, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prompt = torch.arange(40)[:, None]
    answers = beam_search(
        Markov(table), prompt, beam=Beam(size=4), best=4, max_tokens=2, transforms=[only_small_tokens]
    )
    logprobs = table.log_softmax(-1)
    for start, found in enumerate(answers):
        first, tokens = logprobs[start, :64].topk(4)
        second, others = (first[:, None] + logprobs[tokens]).flatten().topk(4)
        expected = [[int(tokens[i // 10_007]), int(i % 10_007)] for i in others]
        assert [each.tokens for each in found] == expected
        assert [each.score for each in found] == pytest.approx(second.tolist(), abs=1e-9)


def only_small_tokens(tokens, logprobs):
    """The first token must be one that the table has a row for."""
    return logprobs.index_fill(1, torch.arange(64, 10_007), -torch.inf) if tokens.shape[1] == 1 else logprobs


def test_nothing_can_be_said():
    model = Recurrent(5)
    with pytest.raises(InputError, match="sentence 1"):
        search(model, [[1], [2]], words=[[], [[1, 2, 3]]], max_tokens=2)
    with pytest.raises(InputError, match="sentence 0"):
        search(model, [[1]], transforms=[forbid([[i] for i in range(5)])])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Beam(size=0),
        lambda: Beam(size=4, groups=3),
        lambda: Beam(stopping="never"),
        lambda: Beam(diversity=1.0),
        lambda: search(Recurrent(5), [[1]], beam=Beam(size=2), best=3),
        lambda: search(Recurrent(5), [[1]], max_tokens=0),
        lambda: search(Recurrent(5), [[1]], beam=Beam(size=2, groups=2), words=[[[1]]]),
    ],
)
def test_options_that_mean_nothing_are_errors(make):
    with pytest.raises(ConfigError):
        make()


def test_words_must_fit_the_batch():
    with pytest.raises(InputError, match="2 sentences, but there are 1"):
        search(Recurrent(5), [[1]], words=[[[1]], []])
    with pytest.raises(InputError, match="at least one token"):
        search(Recurrent(5), [[1]], words=[[[]]])


def test_the_front_returns_the_best_answer():
    model, prompt = Recurrent(9, 1), torch.tensor([[2], [3]])
    found = generate(model, prompt, method=Beam(size=3), stop=[STOP], max_tokens=6)
    assert found == [answers[0] for answers in search(model, [[2], [3]], beam=Beam(size=3), max_tokens=6)]
    assert isinstance(found[0], Generated)
