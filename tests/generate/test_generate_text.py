"""Pieces of text: characters whole, stop strings wherever tokens end, and nothing lost."""

import pytest
import torch
from generate_toys import Recurrent
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from regard.core.errors import ConfigError
from regard.generate.decode import collect, decode
from regard.generate.text import Pieces, cut, stop_strings, stream

CORPUS = [
    "the cat sat on the mat",
    "größer, naïve café",
    "日本語のテキスト",
    "🙂🙃 👩‍👩‍👧 emoji",
    "END STOP ENDING",
] * 3
texts = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(["the ", "cat", "EN", "END", "ENDING", "é", "日本", "🙂", "👩‍👧", "\n", " ", "�"])).map(
        "".join
    ),
)
stops = st.lists(st.sampled_from(["END", "ENDING", "N", "at s", "本", "🙂🙃", "\n\n", "D", " c"]), max_size=3)


class Bytes:
    """One token a byte: every border that can be."""

    pad, bos, eos = 0, None, None

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def __len__(self) -> int:
        return 256


class Trained:
    """A tokenizer of the tokenizers package."""

    pad, bos, eos = 0, None, None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()


def byte_level() -> Trained:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return Trained(tokenizer)


def sentencepiece() -> Trained:
    # As published SentencePiece models are: a sign for the space, bytes for unknown characters.
    pieces = ["<pad>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *"thecasomEND,", "▁the", "▁cat"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("▁c", "a"), ("▁ca", "t")]
    pieces += ["".join(merge) for merge in merges if "".join(merge) not in pieces]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<pad>"])
    return Trained(tokenizer)


TOKENIZERS = {"bytes": Bytes(), "byte-level": byte_level(), "sentencepiece": sentencepiece()}


def run(text, tokens, stop=()):
    pieces, found = Pieces(text, stop), []
    for token in tokens:
        found.append(pieces.feed(token))
        if pieces.stopped:
            break
    return found, pieces


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=texts, stop=stops)
def test_pieces_join_to_the_text(name, text, stop):
    tokenizer = TOKENIZERS[name]
    tokens = tokenizer.encode(text)
    found, pieces = run(tokenizer, tokens, stop)
    expected, stopped = cut(tokenizer.decode(tokens), stop)
    assert "".join([*found, pieces.finish()]) == expected
    assert pieces.stopped == stopped
    if "�" not in text:
        assert not any("�" in piece for piece in found)


@pytest.mark.parametrize("name", ["bytes", "byte-level"])
@given(tokens=st.lists(st.integers(1, 255), max_size=20))
def test_pieces_of_any_tokens_join_to_what_they_decode_to(name, tokens):
    found, pieces = run(TOKENIZERS[name], tokens)
    assert "".join([*found, pieces.finish()]) == TOKENIZERS[name].decode(tokens)


def test_a_character_comes_whole():
    found, _ = run(Bytes(), "a🙂é".encode())
    assert found == ["a", "", "", "", "🙂", "", "é"]


def test_text_that_may_become_a_stop_string_is_held_back():
    found, pieces = run(Bytes(), b"the EN, the END of", ["END"])
    assert "".join(found) == "the EN, the "
    assert pieces.stopped
    assert found[4:7] == ["", "", "EN,"]
    assert pieces.feed(65) == pieces.finish() == ""


def test_what_was_held_back_comes_at_the_end():
    found, pieces = run(Bytes(), b"x EN", ["END"])
    assert ("".join(found), pieces.finish(), pieces.finish()) == ("x ", "EN", "")


@given(texts, stops)
def test_the_cut_is_its_definition(text, stop):
    # The definition: letter by letter, until the text ends in a stop string.
    expected = (text, False)
    for end in range(len(text) + 1):
        matches = [each for each in stop if text[:end].endswith(each)]
        if matches:
            expected = text[: end - max(map(len, matches))], True
            break
    assert cut(text, stop) == expected


def test_stream_and_batch_agree_on_a_model():
    class Letters(Bytes):
        def decode(self, tokens):
            return "".join("ab🙂cd\n E"[token] for token in tokens)

    model, stop = Recurrent(8, seed=3), ["a\n", "🙂c", "EE"]
    prompt = torch.tensor([[1], [2], [3], [4], [5]])
    pieces = [Pieces(Letters(), stop) for _ in prompt]
    together = collect(decode(model.begin(), prompt, until=stop_strings(pieces), max_tokens=40), len(prompt))
    assert {each.finish for each in together} == {"stop", "length"}
    for row, found in zip(prompt, together, strict=True):
        text, stopped = cut(Letters().decode(found.tokens), stop)
        assert stopped == (found.finish == "stop")
        assert "".join(stream(decode(model.begin(), row[None], max_tokens=40), Letters(), stop)) == text
        assert not cut(Letters().decode(found.tokens[:-1]), stop)[1], "the row ended as soon as it could"


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(ConfigError, match="at least one character"):
        Pieces(Bytes(), ["END", ""])
