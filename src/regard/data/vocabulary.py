"""Published tokenizers in files that are older than tokenizer.json: a vocabulary, and for some a list of merges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from regard.checkpoint.files import read_json
from regard.core.errors import CheckpointError

WORDPIECE, VOCABULARY, MERGES = "vocab.txt", "vocab.json", "merges.txt"


def from_vocabulary(folder: Path, stated: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer that a folder's vocabulary makes, or None where there is none.

    ``vocab.txt`` is BERT's; ``vocab.json`` with ``merges.txt`` is GPT's where pieces end words in ``</w>``, RoBERTa's
    and BART's where there are ``<s>`` and ``</s>``, and else GPT-2's.

    Args:
        folder: of a checkpoint.
        stated: what tokenizer_config.json says.

    Raises:
        CheckpointError: a file that is not readable.
    """
    try:
        if (folder / WORDPIECE).is_file():
            return _bert(folder, stated)
        if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
            return _bpe(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: not a readable vocabulary ({error})") from None
    return None


def _bert(folder: Path, stated: Mapping[str, Any]) -> tokenizers.Tokenizer:
    pieces = (folder / WORDPIECE).read_text(encoding="utf-8").split("\n")
    vocabulary = {piece: number for number, piece in enumerate(pieces) if piece or number + 1 < len(pieces)}
    core = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(
        lowercase=stated.get("do_lower_case", True),
        strip_accents=stated.get("strip_accents"),
        handle_chinese_chars=stated.get("tokenize_chinese_chars", True),
    )
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    core.add_special_tokens([name for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in vocabulary])
    return core


def _bpe(folder: Path) -> tokenizers.Tokenizer:
    vocabulary = read_json(folder / VOCABULARY)
    lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    merges = [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines if line and "#version" not in line]
    if "." in vocabulary and ".</w>" in vocabulary:
        return _gpt(vocabulary, merges)
    core = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if "<s>" in vocabulary and "</s>" in vocabulary:
        core.post_processor = processors.RobertaProcessing(
            ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), trim_offsets=True, add_prefix_space=False
        )
    else:
        core.post_processor = processors.ByteLevel(trim_offsets=False)
    names = ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>")
    special = [tokenizers.AddedToken(name, special=True) for name in names if name in vocabulary]
    if "<mask>" in vocabulary:
        special.append(tokenizers.AddedToken("<mask>", lstrip=True, special=True))  # it holds the blank before it
    core.add_special_tokens(special)
    return core


def _gpt(vocabulary: dict[str, int], merges: list[Any]) -> tokenizers.Tokenizer:
    core = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>", fuse_unk=False)
    )
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    core.add_special_tokens([name for name in ("<unk>",) if name in vocabulary])
    return core
