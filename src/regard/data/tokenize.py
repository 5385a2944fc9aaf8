"""Text to tokens and back: with a tokenizer trained here, or any published ``tokenizer.json``."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from regard.checkpoint.files import replacing, settle
from regard.core.errors import CheckpointError, ConfigError, DataError, InputError

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"

PART = 1 << 16
"""About how many characters of a long text are encoded at once, on each core."""

_LINE_END = re.compile(r"(?<=\S)\n(?=\S)")

TokenizerKind = Literal["bpe", "unigram", "wordpiece", "characters", "bytes"]

_SPECIAL = [PAD, BOS, EOS]
_NAMES: dict[str, str | None] = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": None}
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_SMALLEST = len(_SPECIAL) + len(_BYTES)

# The keys that published tokenizers name a role by (BERT's sequences open with [CLS] and close with [SEP]), and the
# usual names for where no file says.
_ROLES = {
    "pad": (("pad_token",), (PAD, "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")),
    "bos": (("bos_token", "cls_token"), (BOS, "<bos>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>")),
    "eos": (("eos_token", "sep_token"), (EOS, "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")),
    "unk": (("unk_token",), (UNK, "[UNK]", "<|unk|>")),
}

_THREADS = "TOKENIZERS_PARALLELISM"
_forking: list[bool] = []


def _before_fork() -> None:
    if _THREADS not in os.environ:
        os.environ[_THREADS] = "false"
        _forking.append(True)


def _after_fork() -> None:
    while _forking:
        _forking.pop()
        os.environ.pop(_THREADS, None)


# The library's threads do not survive a fork, which it warns of on standard error. Telling it just before, so that
# only the child goes without threads, keeps it quiet and fast. A user's own setting is left alone.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)


class Tokenizer:
    """A vocabulary with the rules that cut text into it; implements :class:`regard.core.types.Text`.

    Text is only ever text: where it spells a special token ("</s>"), it is encoded like any other characters, so
    nobody can smuggle one in.

    Attributes:
        pad: the id that fills a batch; where the vocabulary has none it is ``eos`` (``valid`` hides it from models).
        bos: the id that opens a sequence, or None.
        eos: the id that closes a sequence.
        unk: the id of unknown characters, or None (bytes know no unknown).
    """

    pad: int
    bos: int | None
    eos: int
    unk: int | None

    def __init__(self, core: tokenizers.Tokenizer, names: dict[str, str | None]) -> None:
        """Wrap ``core``; ``names`` maps pad, bos, eos and unk to their tokens. Raises CheckpointError."""
        core.no_padding()  # published files may ask for either; both are the batch's business
        core.no_truncation()
        core.encode_special_tokens = True
        self._core = core
        self._names = names
        if not core.get_vocab():
            raise CheckpointError("its vocabulary is empty")
        self._size = max(core.get_vocab().values()) + 1
        ids = {role: self._id(role) for role in _ROLES}
        if ids["eos"] is None:
            raise CheckpointError(
                "the end-of-sequence token is not known: name it as 'eos_token' in tokenizer_config.json beside"
                " tokenizer.json"
            )
        self.eos = ids["eos"]
        self.pad = self.eos if ids["pad"] is None else ids["pad"]
        self.bos, self.unk = ids["bos"], ids["unk"]

    def __len__(self) -> int:
        """One more than the largest id: the rows an embedding needs."""
        return self._size

    def encode(self, text: str) -> list[int]:
        """The tokens of ``text``, without special tokens. Raises InputError for text that is not Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text; as :meth:`encode`, on all cores."""
        try:
            encodings = self._core.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            raise InputError(f"cannot encode {_not_text(texts)}: expected Unicode text") from None
        return [encoding.ids for encoding in encodings]

    def encode_long(self, text: str) -> list[int]:
        """As :meth:`encode`, on all cores and in a fraction of the memory, if line ends part tokens, as with ours."""
        if not self._parts_lines:
            return self.encode(text)
        tokens: list[int] = []
        rest = parts(text)
        while some := [*islice(rest, 16)]:
            tokens += chain.from_iterable(self.encode_batch(some))
        return tokens

    @cached_property
    def _parts_lines(self) -> bool:
        """Whether lines can be encoded one by one; published tokenizers may add a space to the beginning of each."""
        return self.encode("a\nb") == [*self.encode("a\n"), *self.encode("b")]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; special tokens are left out. Bytes that are no character become U+FFFD."""
        return self._core.decode(tokens, skip_special_tokens=True)

    def decode_batch(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row; as :meth:`decode`, on all cores."""
        return self._core.decode_batch(rows, skip_special_tokens=True)

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """One readable string a token, special tokens by name, for pictures.

        A character that is spread over several tokens shows at the last of them, and the others show as "". For
        byte-level vocabularies the pieces of a text, joined, are the text.
        """
        pieces, start = [], 0
        for end in range(1, len(tokens) + 1):
            text = self._core.decode(tokens[start:end], skip_special_tokens=False)
            unfinished = text.endswith("\ufffd") and end < len(tokens)
            pieces.append("" if unfinished else text)
            start = start if unfinished else end
        return pieces

    def add(self, names: Sequence[str]) -> list[int]:
        """The ids of special tokens called so, which the vocabulary gets where it has none."""
        self._core.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
        vocabulary = self._core.get_vocab()
        self._size = max(vocabulary.values()) + 1
        return [vocabulary[name] for name in names]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, in the published layout; both or neither.

        Raises:
            CheckpointError: the folder cannot be written; what was there is untouched.
        """
        config = {f"{role}_token": name for role, name in self._names.items()}
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        with replacing(Path(folder)) as staged:
            (staged / TOKENIZER).write_text(self._core.to_str(pretty=True), encoding="utf-8")
            (staged / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a ``tokenizer.json``, or the folder that holds one.

        Special tokens are those that tokenizer_config.json or special_tokens_map.json beside it name; a role that
        neither names is found among the special tokens by its usual names.

        Raises:
            CheckpointError: no such file, no readable tokenizer in it, or no telling which token ends a sequence.
        """
        path = Path(path)
        file = path / TOKENIZER if path.is_dir() else path
        settle(file.parent)
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file; a tokenizer is one tokenizer.json")
        try:
            core = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises no narrower type
            raise CheckpointError(f"{file}: not a readable tokenizer ({error})") from None
        try:
            return cls(core, _role_names(core, file.parent))
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None

    def _id(self, role: str) -> int | None:
        name = self._names[role]
        if name is None:
            return None
        token = self._core.token_to_id(name)
        if token is None:
            raise CheckpointError(f"the {role} token '{name}' is not in the vocabulary")
        return int(token)


def parts(text: str) -> Iterator[str]:
    """A text in parts of about ``PART`` characters, cut at line ends without further space around them.

    There is no token across such an end, whatever kind of tokenizer is trained here.
    """
    start = 0
    while end := _LINE_END.search(text, start + PART):
        yield text[start : end.end()]
        start = end.end()
    yield text[start:]


def train_tokenizer(kind: TokenizerKind, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer: <pad> is 0, <s> is 1, </s> is 2, and where there are unknown characters, <unk> is 3.

    The same texts give the same tokenizer. Fewer tokens come out where the texts do not give as many.

    Args:
        kind: one of

            - ``bpe``: the 256 bytes, then merges by frequency (Sennrich et al. 2016; on bytes: Radford et al. 2019,
              section 2.2);
            - ``unigram``: the 256 bytes, and the pieces that make the texts likeliest (Kudo 2018, section 3.2);
            - ``wordpiece``: BERT's (Devlin et al. 2019), with lower case and without accents, split at spaces and
              punctuation; a piece within a word begins with ``##``;
            - ``characters``: the commonest of the texts;
            - ``bytes``: the 256 (Xue et al. 2022).

            Those of bytes know no unknown, and decode to exactly the text that was encoded; so do characters where all
            are known. In ``bpe`` and ``unigram`` digits stand alone, so that a number is copied or regrouped digit by
            digit.
        texts: what to learn from, read once; ``wordpiece`` holds them in memory.
        vocab_size: the most tokens to have, the special ones included.

    Raises:
        ConfigError: ``vocab_size`` has no room for the special tokens and the bytes or characters.
        DataError: there is no text in ``texts``.
    """
    if kind == "bytes":
        return _bpe([], min(vocab_size, _SMALLEST))  # no texts, no merges
    train = {"bpe": _bpe, "unigram": _unigram, "wordpiece": _wordpiece, "characters": _characters}[kind]
    return train(_some(texts), vocab_size)


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    core = _on_bytes(models.BPE(), vocab_size)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, initial_alphabet=_BYTES, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return Tokenizer(core, _NAMES)


def _unigram(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    core = _on_bytes(models.Unigram(), vocab_size)
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=_SPECIAL, initial_alphabet=_BYTES, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    learnt = [(piece, score) for piece, score in json.loads(core.to_str())["model"]["vocab"] if piece not in _SPECIAL]
    # No text spells a special token: with such a score its bytes are always likelier.
    special = [(token, -1e6) for token in _SPECIAL]
    core = _on_bytes(models.Unigram([*special, *_settled(learnt, vocab_size - len(special))]), vocab_size)
    core.add_special_tokens(_SPECIAL)
    return Tokenizer(core, _NAMES)


def _settled(learnt: list[tuple[str, float]], most: int) -> list[tuple[str, float]]:
    """The bytes, and the likeliest pieces to make it ``most``, without what differs from one training to the next.

    The library adds scores up in any order, and puts the bytes that it has not learnt just above its lowest score, one
    in ten thousand apart, in any order. So scores are rounded, and the bytes down there all get the lowest. It also
    may keep a few pieces too many.
    """
    lowest = min(score for _, score in learnt)
    last = lowest + len(_BYTES) * 1e-4
    even = ((piece, lowest if len(piece) == 1 and score < last else score) for piece, score in learnt)
    ordered = sorted(((piece, round(score, 6)) for piece, score in even), key=lambda each: (-each[1], each[0]))
    longer = [each for each in ordered if len(each[0]) > 1]
    left_out = set(longer[most - len(_BYTES) :])
    return [each for each in ordered if each not in left_out]


def _wordpiece(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    texts = list(texts)
    core = _bert(models.WordPiece(unk_token=UNK))
    clean, split = core.normalizer.normalize_str, core.pre_tokenizer.pre_tokenize_str
    inner = sorted({char for text in texts for word, _ in split(clean(text)) for char in word[1:]})
    # The library numbers the pieces within words in any order, and decides by number between pairs as common as each
    # other: so they are numbered for it.
    known = [*_SPECIAL, UNK, *(f"##{char}" for char in inner)]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=known, show_progress=False)
    core.train_from_iterator(texts, trainer)
    vocabulary = core.get_vocab()
    if len(vocabulary) > vocab_size:
        raise ConfigError(
            f"vocab_size {vocab_size} is too small: {len(vocabulary)} hold the special tokens and the texts' characters"
        )
    core = _bert(models.WordPiece(vocabulary, unk_token=UNK))
    core.add_special_tokens([*_SPECIAL, UNK])
    return Tokenizer(core, _NAMES | {"unk": UNK})


def _characters(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    known = [*_SPECIAL, UNK]
    if vocab_size <= len(known):
        raise ConfigError(
            f"vocab_size {vocab_size} is too small: {len(known) + 1} hold the special tokens and one other"
        )
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    commonest = sorted(counts, key=lambda char: (-counts[char], char))
    vocabulary = [*known, *commonest][:vocab_size]
    core = tokenizers.Tokenizer(models.WordLevel({char: i for i, char in enumerate(vocabulary)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(known)
    return Tokenizer(core, _NAMES | {"unk": UNK})


def _on_bytes(model: models.Model, vocab_size: int) -> tokenizers.Tokenizer:
    """A tokenizer of bytes, each written as a letter. Raises ConfigError if they have no room."""
    if vocab_size < _SMALLEST:
        raise ConfigError(f"vocab_size {vocab_size} is too small: {_SMALLEST} hold the special tokens and the bytes")
    core = tokenizers.Tokenizer(model)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    return core


def _bert(model: models.Model) -> tokenizers.Tokenizer:
    """A tokenizer with BERT's normaliser, pre-tokeniser and decoder."""
    core = tokenizers.Tokenizer(model)
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty. Raises DataError if there is none."""
    rest = filter(None, texts)
    first = next(rest, None)
    if first is None:
        raise DataError("there is no text to learn a tokenizer from")
    return chain([first], rest)


def _role_names(core: tokenizers.Tokenizer, folder: Path) -> dict[str, str | None]:
    stated = _read_object(folder / "special_tokens_map.json") | _read_object(folder / CONFIG)
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    names: dict[str, str | None] = {}
    for role, (keys, usual) in _ROLES.items():
        found = [_content(stated[key]) for key in keys if stated.get(key)]
        found += [name for name in usual if name in special]
        names[role] = found[0] if found else None
    return names


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> str:
    """A token's text, which older files wrap in an object."""
    content = token.get("content") if isinstance(token, dict) else token
    if not isinstance(content, str):
        raise CheckpointError(f"{token!r:.60} is no token: it should be text, or an object with 'content'")
    return content


def _not_text(texts: Sequence[object]) -> str:
    """The first of ``texts`` that is no Unicode text, for the error message."""
    if isinstance(texts, str):
        return f"{texts!r:.60}, one text where a list of texts belongs"
    for text in texts:
        if not isinstance(text, str):
            return f"{text!r:.60}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{text!a:.60} (half of a surrogate pair)"
    return "these texts"
