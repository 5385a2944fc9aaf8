"""Sentence embedding: one vector for a text, near those of texts that mean the same (Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from regard import zoo
from regard.blocks.packed import pack
from regard.checkpoint.files import inside, read_json
from regard.core.errors import ConfigError, InputError
from regard.data.collate import sequences
from regard.data.loader import plan
from regard.data.tokenize import UNCUT, Tokenizer

PoolingName = Literal["mean", "first", "last", "max"]

PUBLISHED: dict[str, PoolingName] = {
    "mean_tokens": "mean", "cls_token": "first", "lasttoken": "last", "max_tokens": "max",
    "mean": "mean", "cls": "first", "last": "last", "max": "max",
}  # fmt: skip
"""What published folders call a pooling, older ones as ``pooling_mode_...: true``."""

MAX_TOKENS = 8192
"""Of a batch, padding included."""


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made of its tokens' (the same paper, section 3).

    Attributes:
        how: their mean, the first one's, the last one's, or the largest of each feature.
        normalize: whether vectors are made to have length 1, so that products are cosines.
        max_len: tokens that are read of a text, special ones included; None = as many as the model has positions for.
        prompt: what is put before each text.
        question: what is put before each question instead, where texts are searched for.
        lower: whether texts are read in lower case.
    """

    how: PoolingName = "mean"
    normalize: bool = True
    max_len: int | None = None
    prompt: str = ""
    question: str = ""
    lower: bool = False

    def __post_init__(self) -> None:
        if self.how not in get_args(PoolingName):
            raise ConfigError(f"how must be one of {', '.join(get_args(PoolingName))}, not '{self.how}'")
        if self.max_len is not None and self.max_len < 1:
            raise ConfigError(f"max_len {self.max_len} must be at least 1")

    def __call__(self, hidden: Float[Tensor, "B S E"], valid: Bool[Tensor, "B S"]) -> Float[Tensor, "B E"]:
        """The vectors of texts whose tokens have these; padding counts for nothing, and may lie on either side."""
        rows = torch.arange(len(hidden), device=hidden.device)
        if self.how == "mean":
            pooled = hidden.masked_fill(~valid[..., None], 0).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        elif self.how == "max":
            pooled = hidden.masked_fill(~valid[..., None], -torch.inf).amax(dim=1)
        elif self.how == "first":
            pooled = hidden[rows, valid.int().argmax(dim=1)]
        else:
            pooled = hidden[rows, valid.shape[1] - 1 - valid.flip(1).int().argmax(dim=1)]
        return F.normalize(pooled, dim=-1) if self.normalize else pooled

    @classmethod
    def read(cls, folder: Path) -> Pooling:
        """What a published folder says in modules.json and the files it names; our own default where there is none.

        Raises:
            ConfigError: parts that are not pooling or normalisation, or several poolings at once.
            CheckpointError: a file that is not readable.
        """
        if not inside(folder, "modules.json").exists():
            return cls()
        parts = read_json(inside(folder, "modules.json"))
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise ConfigError(f"{folder / 'modules.json'}: expected a list of objects")
        places = {str(part.get("type")).rpartition(".")[2]: str(part.get("path", "")) for part in parts}
        if places.get("Transformer"):
            raise ConfigError(
                f"{folder / 'modules.json'}: the model is in {places['Transformer']}; only beside it is supported"
            )
        if unknown := set(places) - {"Transformer", "Pooling", "Normalize"}:
            raise ConfigError(f"{folder / 'modules.json'}: the part {unknown.pop()} is not supported")
        how = _pooling(inside(inside(folder, places["Pooling"]), "config.json")) if "Pooling" in places else "mean"
        about, prompts = (
            _object(folder, "sentence_bert_config.json"),
            _object(folder, "config_sentence_transformers.json"),
        )
        known = prompts.get("prompts") or {}
        own = known.get(prompts.get("default_prompt_name"), "")
        limits = (about.get("max_seq_length"), _object(folder, "tokenizer_config.json").get("model_max_length"))
        return cls(
            how,
            normalize="Normalize" in places,
            max_len=next((int(limit) for limit in limits if limit and limit < UNCUT), None),
            prompt=own,
            question=known.get("query", own),
            lower=bool(about.get("do_lower_case")),
        )


def _object(folder: Path, name: str) -> dict[str, Any]:
    """What a file of the folder says; nothing where there is none."""
    path = inside(folder, name)
    value = read_json(path) if path.exists() else {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected an object")
    return value


def _pooling(path: Path) -> PoolingName:
    """Which pooling a published file says. Raises ConfigError for several, or for one that is not here."""
    config = _object(path.parent, path.name)
    if not config.get("include_prompt", True):
        raise ConfigError(f"{path}: pooling without the prompt is not supported")
    said = config.get("pooling_mode")
    names = [str(said)] if said else [
        name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
    ]  # fmt: skip
    if len(names) != 1 or names[0] not in PUBLISHED:
        raise ConfigError(f"{path}: pooling by {', '.join(names) or 'nothing'} is not supported")
    return PUBLISHED[names[0]]


class Embedder:
    """A model, its tokenizer, and how a text's vector is made of its tokens' vectors.

    Args:
        model: an encoder; what reads text one way may serve too, with ``Pooling("last")``.
        tokenizer: that the model learnt with.
        pooling: tokens to text.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, pooling: Pooling | None = None) -> None:
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling or Pooling()
        self.packed: Any = pack(model)
        config: Any = model.config
        self.max_len = min(self.pooling.max_len or config.max_seq_len, config.max_seq_len)

    @classmethod
    def load(
        cls, folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Embedder:
        """What a folder holds in the published layout of sentence-transformers, or any checkpoint with a tokenizer.

        Without ``modules.json`` the vectors are means, of length 1. Raises as :func:`regard.zoo.load` and
        :meth:`Pooling.read`.
        """
        place = zoo.checkpoint_folder(folder)
        model = zoo.load(place, dtype=dtype, device=device)
        return cls(model, Tokenizer.load(place), Pooling.read(place))

    @torch.no_grad()  # and not in inference mode: people learn from vectors
    def embed(self, texts: Sequence[str], *, prompt: str | None = None) -> Float[Tensor, "N E"]:
        """The vector of each text; a text is cut at ``max_len`` tokens. The same alone as among others.

        Args:
            texts: any.
            prompt: what is put before each of them; as the pooling says unless given.

        Raises:
            InputError: one text where a list of texts belongs, a text that is not Unicode, or one without any token.
        """
        if isinstance(texts, str):
            raise InputError("embed takes a list of texts, and this is one text: write [text]")
        rows = [encoding.ids for encoding in self.tokenizer.frame(self._read(texts, prompt), self.max_len)]
        if not rows:
            raise InputError("there are no texts to embed")
        if [] in rows:
            raise InputError(f"text {rows.index([]) + 1} is empty, and this tokenizer puts nothing around it")
        batches = plan([(len(row),) for row in rows], MAX_TOKENS)
        vectors = torch.cat([self._vectors([rows[number] for number in numbers]) for numbers in batches])
        found = torch.empty_like(vectors)
        found[torch.from_numpy(np.concatenate(batches)).to(self.device)] = vectors
        return found

    def _read(self, texts: Sequence[str], prompt: str | None) -> Sequence[str]:
        """The texts as the model reads them."""
        before = self.pooling.prompt if prompt is None else prompt
        if not all(isinstance(text, str) for text in texts):
            return texts  # which the tokenizer will say
        whole = [before + text for text in texts]
        return [text.lower() for text in whole] if self.pooling.lower else whole

    def _vectors(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "B E"]:
        batch = {name: value.to(self.device) for name, value in sequences(rows, self.tokenizer.pad).items()}
        return self.pooling(self.packed(**batch).hidden, batch["valid"])

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device
