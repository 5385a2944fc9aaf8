"""Vectors of texts: the published folders' poolings, the same alone as among others, and search by them."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

import regard
from regard.core.errors import ConfigError, InputError
from regard.data.learn import train_tokenizer
from regard.models.bert import BertConfig
from regard.tasks.embed import Embedder, Pooling
from regard.tasks.search import Search

TEXTS = [
    "the cat sat on the mat", "a dog", "", "the dog sat on the cat and the cat sat on the mat and so on", "mat",
    "on the mat the cat", "so",
]  # fmt: skip
PUBLISHED = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken", "max": "max_tokens"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint in the published layout, with its tokenizer."""
    place = tmp_path_factory.mktemp("embed") / "model"
    tokenizer = train_tokenizer("wordpiece", TEXTS * 5, 80, framed=True)
    config = BertConfig(
        vocab_size=len(tokenizer), embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=24,
        pad_token=tokenizer.pad, bos_token=tokenizer.bos, eos_token=tokenizer.eos,
    )  # fmt: skip
    regard.save(regard.build(config, seed=1), place, layout="hf")
    tokenizer.save(place)
    return place


def published(folder, how, *, normalize=True, max_len=None, newer=False):
    """Say, as sentence-transformers does, how the folder's texts are pooled."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    parts = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    old = {f"pooling_mode_{name}": name == PUBLISHED[how] for name in PUBLISHED.values()}
    new = {"pooling_mode": {"first": "cls", "last": "lasttoken"}.get(how, how)}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(new if newer else old))
    if max_len:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_len}))


def by_hand(folder, embedder, texts, how, normalize, max_len):
    """The vectors as the reference implementation computes the states, one text at a time."""
    model = transformers.BertModel.from_pretrained(folder).eval()
    rows = []
    for encoding in embedder.tokenizer.frame(texts, max_len):
        with torch.no_grad():
            hidden = model(torch.tensor([encoding.ids])).last_hidden_state[0]
        pooled = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}[how]
        rows.append(pooled / pooled.norm() if normalize else pooled)
    return torch.stack(rows)


@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize(
    ("how", "normalize", "max_len"),
    [("mean", True, None), ("first", False, 8), ("last", True, 5), ("max", False, None)],
)
def test_published_poolings_are_the_references(folder, tmp_path, how, normalize, max_len, newer):
    place = shutil.copytree(folder, tmp_path / "model")
    published(place, how, normalize=normalize, max_len=max_len, newer=newer)
    embedder = Embedder.load(place)
    assert embedder.pooling == Pooling(how, normalize, max_len)
    expected = by_hand(place, embedder, TEXTS, how, normalize, max_len or 24)
    torch.testing.assert_close(embedder.embed(TEXTS), expected, rtol=0, atol=1e-6)


def test_vectors_may_be_learnt_from(folder):
    vectors = regard.embed(folder, ["one", "two"])
    weight = torch.ones(vectors.shape[1], requires_grad=True)
    (vectors @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, vectors.sum(dim=0))


def test_a_text_has_the_same_vector_alone_as_among_others(folder):
    together = regard.embed(folder, TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        torch.testing.assert_close(regard.embed(str(folder), [text])[0], vector, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("how", PUBLISHED)
def test_padding_counts_for_nothing_on_either_side(how):
    hidden = torch.randn(2, 5, 4)
    valid = torch.tensor([[False, False, True, True, True], [True, True, True, False, False]])
    noisy = hidden.masked_fill(~valid[..., None], torch.nan)
    pooled = Pooling(how)(noisy, valid)
    alone = [Pooling(how)(row[keep][None], keep[keep][None]) for row, keep in zip(hidden, valid, strict=True)]
    torch.testing.assert_close(pooled, torch.cat(alone))


@pytest.mark.parametrize(
    ("texts", "message"),
    [("one text", "this is one text"), ([], "no texts"), ([1], "cannot encode 1"), (["\ud800"], "surrogate")],
)
def test_what_is_no_list_of_texts_is_refused(folder, texts, message):
    with pytest.raises(InputError, match=message):
        regard.embed(folder, texts)


def test_parts_that_are_not_known_are_refused(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    published(place, "mean")
    parts = [
        *json.loads((place / "modules.json").read_text()),
        {"type": "sentence_transformers.models.Dense", "path": "2_Dense"},
    ]
    (place / "modules.json").write_text(json.dumps(parts))
    with pytest.raises(ConfigError, match="Dense is not supported"):
        regard.embed(place, TEXTS)
    published(place, "mean")
    (place / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(ConfigError, match="pooling by weightedmean_tokens"):
        regard.embed(place, TEXTS)


def test_search_finds_a_text_by_itself_and_orders_the_others(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [text for text in TEXTS if text]
    embedder = Embedder.load(folder)
    search = Search.cached(embedder, texts)
    vectors = embedder.embed(texts)
    for number, text in enumerate(texts):
        found = search.find(text, count=3)
        assert found[0].text == text
        expected = (vectors @ vectors[number]).sort(descending=True)
        assert [each.number for each in found] == expected.indices[:3].tolist()
        assert [each.score for each in found] == pytest.approx(expected.values[:3].tolist(), abs=1e-6)
    assert len(search.find("cat", count=100)) == len(texts)


def test_scores_are_cosines_and_questions_have_their_prompt(folder, tmp_path):
    place = shutil.copytree(folder, tmp_path / "model")
    published(place, "mean", normalize=False)
    said = {"prompts": {"query": "the ", "passage": "on "}, "default_prompt_name": "passage"}
    (place / "config_sentence_transformers.json").write_text(json.dumps(said))
    (place / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    embedder = Embedder.load(place)
    assert embedder.pooling == Pooling("mean", False, 20, prompt="on ", question="the ", lower=True)
    texts = ["CAT", "dog mat"]
    vectors = embedder.embed(texts)
    torch.testing.assert_close(vectors, embedder.embed(["on cat", "on dog mat"], prompt=""))
    asked = embedder.embed(["the so"], prompt="")
    expected = torch.cosine_similarity(vectors, asked)
    found = Search(embedder, texts).find("so")
    assert {each.number: each.score for each in found} == pytest.approx(dict(enumerate(expected.tolist())), abs=1e-6)


def test_vectors_are_kept_under_what_decides_them(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    embedder, texts = Embedder.load(folder), ["the cat", "a dog"]
    first = Search.cached(embedder, texts)
    made = []
    monkeypatch.setattr(Embedder, "embed", lambda _, texts: made.append(texts) or torch.zeros(len(texts), 16))
    assert torch.equal(Search.cached(embedder, texts).vectors, first.vectors)
    assert made == []
    Search.cached(embedder, ["the cat", "a dog", "so"])
    Search.cached(Embedder(embedder.model, embedder.tokenizer, Pooling("max")), texts)
    with torch.no_grad():
        embedder.model.embed.weight[5, 0] += 1
    Search.cached(embedder, texts)
    assert len(made) == 3
