"""Text to tokens and back: byte-level BPE trained here, or any published ``tokenizer.json``."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from regard.checkpoint.files import replacing, settle
from regard.core.errors import CheckpointError, ConfigError, InputError

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())

# The keys that published tokenizers name a role by (BERT's sequences open with [CLS] and close with [SEP]), and the
# usual names for where no file says.
_ROLES = {
    "pad": (("pad_token",), (PAD, "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")),
    "bos": (("bos_token", "cls_token"), (BOS, "<bos>", "[CLS]", "<|begin_of_text|>", "<|startoftext|>")),
    "eos": (("eos_token", "sep_token"), (EOS, "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>")),
    "unk": (("unk_token",), ("<unk>", "[UNK]", "<|unk|>")),
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


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE: <pad> is 0, <s> is 1, </s> is 2, then the 256 bytes, then merges by frequency.

    Decoding gives back any text exactly. Digits stand alone, so that a number is copied or regrouped digit by digit.
    The same texts give the same tokenizer. Fewer tokens come out where the texts have no more pairs to merge.

    Source: Sennrich et al. 2016 (BPE); Radford et al. 2019, section 2.2 (on bytes).

    Raises:
        ConfigError: ``vocab_size`` has no room for the special tokens and the bytes.
    """
    specials = [PAD, BOS, EOS]
    smallest = len(specials) + len(_BYTES)
    if vocab_size < smallest:
        raise ConfigError(f"vocab_size {vocab_size} is too small: {smallest} hold the special tokens and the bytes")
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=_BYTES, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return Tokenizer(core, {"pad": PAD, "bos": BOS, "eos": EOS, "unk": None})


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
