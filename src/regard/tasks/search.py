"""Semantic search: the texts whose vectors are nearest to a question's (Reimers & Gurevych 2019, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from regard.checkpoint.files import load_tensors, replacing, save_tensors
from regard.checkpoint.keymap import bits
from regard.core.console import told
from regard.core.errors import InputError
from regard.data.cache import cache_folder
from regard.tasks.embed import Embedder

VECTORS = "vectors.safetensors"

WINDOW = 512
"""How many texts are embedded between two steps of the progress bar."""


class Found(NamedTuple):
    """A text that was found: how near it is (the cosine), its place among all, and itself."""

    score: float
    number: int
    text: str


class Search:
    """Texts, and their vectors.

    Args:
        embedder: makes the vectors, of texts and of questions.
        texts: to search in.
        vectors: of the texts, where they are known already; else they are made now.
    """

    def __init__(self, embedder: Embedder, texts: Sequence[str], vectors: Float[Tensor, "N E"] | None = None) -> None:
        if not texts:
            raise InputError("there are no texts to search in")
        self.embedder, self.texts = embedder, texts
        self.vectors = F.normalize(embed_all(embedder, texts) if vectors is None else vectors, dim=-1)

    @classmethod
    def cached(cls, embedder: Embedder, texts: Sequence[str]) -> Search:
        """As the class, but the vectors are kept on disk, under a name that texts and model decide."""
        place = cache_folder() / f"{name_of(embedder, texts)}-vectors"
        if (place / VECTORS).exists():
            return cls(embedder, texts, load_tensors(place / VECTORS)["vectors"].to(embedder.device))
        search = cls(embedder, texts)
        with replacing(place) as staged:
            save_tensors(staged / VECTORS, {"vectors": search.vectors})
        return search

    def find(self, question: str, count: int = 10) -> list[Found]:
        """The ``count`` texts nearest to the question, the nearest first; of equals, the first."""
        asked = self.embedder.embed([question], prompt=self.embedder.pooling.question)
        scores = self.vectors @ F.normalize(asked[0], dim=0)
        best = scores.sort(descending=True, stable=True)
        pairs = zip(best.values[:count].tolist(), best.indices[:count].tolist(), strict=True)
        return [Found(score, number, self.texts[number]) for score, number in pairs]


def embed_all(embedder: Embedder, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """The vectors of many texts, of like length together, with a progress bar."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    windows = (order[first : first + WINDOW] for first in range(0, len(order), WINDOW))
    shown = told(windows, lambda some: sum(len(texts[i]) for i in some), "embedding")
    vectors = torch.cat([embedder.embed([texts[i] for i in some]) for some in shown])
    found = torch.empty_like(vectors)
    found[torch.tensor(order, device=found.device)] = vectors
    return found


def name_of(embedder: Embedder, texts: Sequence[str]) -> str:
    """A digest of all that decides the vectors: weights, tokenizer, pooling, texts."""
    digest = xxhash.xxh3_128()
    digest.update(repr((embedder.model.config, embedder.pooling)).encode())
    digest.update(embedder.tokenizer.to_json().encode())
    for tensor in embedder.model.state_dict().values():
        digest.update(bits(tensor.detach().cpu()).numpy().data)
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()
