"""What is measured of a model: against the formulas written out, and against models that are spoilt in one place."""

import math

import numpy as np
import pytest
import torch

from regard import zoo
from regard.data.loader import Place
from regard.models.gpt2 import GPT2Config
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.train.signs import WRITTEN, blame, gradient_norms, groups, look, origin, samples


def model_of(**fields):
    sizes = {"vocab_size": 20, "embed_dim": 16, "ffn_dim": 32, "num_heads": 2, "max_seq_len": 16, "dropout": 0.0}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    return zoo.build(TransformerConfig(**{**sizes, **layers, **fields}), dtype=torch.float64)


def writer():
    sizes = {"vocab_size": 20, "embed_dim": 8, "ffn_dim": 16, "num_heads": 2, "num_layers": 1, "max_seq_len": 8}
    return zoo.build(GPT2Config(**sizes, bos_token=None, eos_token=None))


@pytest.fixture
def model():
    return model_of()


@pytest.fixture
def batch():
    """Three pairs, of which the last two have padded sources."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 20, (3, 5), generator=rng)
    targets = torch.randint(3, 20, (3, 4), generator=rng)
    valid = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    return {"tokens": tokens, "valid": valid, "decoder_tokens": targets, "targets": targets}


def learn(model, batch):
    Supervise().loss(model, batch).sum.backward()


def test_every_parameter_is_in_one_group(model):
    held = groups(model)
    assert list(held) == ["encoder_embed", *[f"{side}.blocks.{i}" for side in ("encoder", "decoder") for i in (0, 1)]]
    assert {id(p) for group in held.values() for p in group} == {id(p) for p in model.parameters()}
    assert list(groups(writer())) == ["embed", "decoder.blocks.0", "decoder.norm"]


def test_norms_of_the_groups_make_the_whole_norm(model, batch):
    learn(model, batch)
    held = groups(model)
    norms = gradient_norms(held, count=3)
    for name, group in held.items():
        assert norms[name] == pytest.approx(float(torch.cat([p.grad.flatten() for p in group]).norm()) / 3)
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm() / 3
    assert math.hypot(*norms.values()) == pytest.approx(float(whole))


def test_what_does_not_learn_has_no_norm(model, batch):
    model.encoder.requires_grad_(False)
    learn(model, batch)
    assert list(gradient_norms(groups(model))) == ["encoder_embed", "decoder.blocks.0", "decoder.blocks.1"]
    model.zero_grad()
    assert gradient_norms(groups(model)) == {}


def test_entropy_equals_its_definition_row_by_row(model, batch):
    """Each row alone, without padding: the mean over its queries that see two keys or more."""
    found = look(model.eval(), batch)["attention_entropy"]
    total = {path: torch.zeros(2, dtype=torch.float64) for path in found}
    count = dict.fromkeys(found, 0)
    for row in range(3):
        length = int(batch["valid"][row].sum())
        alone = {
            "tokens": batch["tokens"][row : row + 1, :length],
            "decoder_tokens": batch["decoder_tokens"][row : row + 1],
        }
        maps = model(**alone, weights=True).weights
        assert maps.keys() == found.keys()
        for path, weights in maps.items():
            causal = path.startswith("decoder") and "cross" not in path
            for q in range(weights.shape[2]):
                visible = q + 1 if causal else weights.shape[3]
                if visible > 1:
                    chance = weights[0, :, q, :visible].detach()
                    total[path] += -(chance * chance.log()).sum(dim=-1) / math.log(visible)
                    count[path] += 1
    for path, heads in found.items():
        assert heads == pytest.approx((total[path] / count[path]).tolist(), abs=1e-4), path


def test_entropy_of_packed_rows_counts_what_a_document_shows():
    model = writer().eval()
    with torch.no_grad():
        model.decoder.blocks[0].attention.mix.q.weight.zero_()
    tokens = torch.arange(8)[None] + 3
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    batch = {"tokens": tokens, "documents": documents, "targets": tokens}
    assert look(model, batch)["attention_entropy"] == {"decoder.0.attention": [1.0, 1.0]}


def test_looking_changes_nothing(model, batch):
    before = torch.get_rng_state()
    model.eval()
    expected = model(**{name: value for name, value in batch.items() if name != "targets"}).hidden
    look(model, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(**{name: value for name, value in batch.items() if name != "targets"}).hidden, expected)


def test_dead_units_are_those_that_no_real_token_wakes(model, batch):
    ffn = model.encoder.blocks[1].ffn.mix
    with torch.no_grad():
        ffn.up.bias[:24] = -1000.0
        ffn.up.bias[24:] = 1000.0
    assert look(model.eval(), batch)["dead_units"]["encoder.1.ffn"] == 0.75

    with torch.no_grad():  # awake for the id of padding alone
        model.encoder.blocks[0].ffn.mix.up.weight.zero_()
        model.encoder.blocks[0].ffn.mix.up.bias.fill_(-1.0)
    assert look(model, batch)["dead_units"]["encoder.0.ffn"] == 1.0


def test_a_model_that_needs_more_than_the_batch_has_is_left_alone(model):
    assert look(model, {"tokens": torch.ones(1, 3, dtype=torch.long)}) == {}


def spoil(output):
    output = output.clone()
    output[0, 0, 0] = math.inf
    return output


@pytest.mark.parametrize("path", ["encoder_embed", "encoder.blocks.1.attention", "decoder.blocks.0.cross"])
def test_the_first_output_that_is_not_finite_is_named(model, batch, path):
    model.get_submodule(path).register_forward_hook(lambda _, __, output: spoil(output))
    assert origin(model, lambda: learn(model, batch)) == path


@pytest.mark.parametrize("recompute", [0, 1])
def test_the_first_gradient_that_is_not_finite_is_named(model, batch, recompute):
    model.decoder.recompute = recompute
    assert origin(model, lambda: learn(model, batch)) is None
    part = model.decoder.blocks[1].cross.mix
    part.register_full_backward_pre_hook(lambda _, gradients: tuple(g * math.nan for g in gradients))
    assert origin(model, lambda: learn(model, batch)) == "decoder.blocks.1.cross"


def overflow(model, batch):
    (model(**inputs(batch)).hidden.sum() * math.inf).backward()


def test_spoilt_weights_and_losses_are_named(model, batch):
    assert origin(model, lambda: overflow(model, batch)) == "the head or the loss"
    with torch.no_grad():
        model.decoder.blocks[0].ffn.mix.up.weight[0, 0] = math.nan
    where = "the weights, in decoder.blocks.0.ffn.mix.up.weight"
    assert origin(model, lambda: learn(model, batch)) == where


def inputs(batch):
    return {name: value for name, value in batch.items() if name != "targets"}


class Places:
    """Batches with the place in the epoch that a loader says."""

    def __init__(self, batches):
        self.batches, self.place = batches, None

    def __iter__(self):
        for number, batch in enumerate(self.batches, start=10):
            self.place = Place(2, number, np.arange(len(batch["tokens"])))
            yield batch


def test_the_batch_is_named(model, batch):
    bad = {**batch, "tokens": torch.full_like(batch["tokens"], 7)}
    embed = model.encoder_embed
    embed.register_forward_hook(lambda _, args, output: spoil(output) if (args[0] == 7).all() else output)

    def said(batches):
        return blame(model, Places(batches), 2, lambda each: learn(model, each), lambda each: str(each["tokens"][0, 0]))

    assert said([batch, bad, bad]) == (
        "; it began in encoder_embed, on batch 12 of epoch 2, which begins with tensor(7)"
    )
    assert "all was finite" in said([batch, batch])
    noisy = {**batch, "sound": torch.tensor([math.nan])}
    assert blame(model, Places([noisy]), 1, lambda _: None, lambda _: "it").startswith(
        "; it began in the batch itself, in its sound"
    )


class Answers:
    """A task that says its input in capitals."""

    def __init__(self, valid):
        self.data = type("Data", (), {"splits": {"valid": valid}})
        self.asked = []

    def prompt(self, text):
        return " ".join(text.split()[:8])

    def predict(self, model, sources, method, max_tokens=None):
        self.asked.append(max_tokens)
        return (source.upper() for source in sources)


def test_samples_are_the_first_answers():
    pairs = Answers([("a", "x"), ("b", "y"), ("c", "z"), ("d", "w")])
    assert samples(pairs, None) == [
        {"source": a, "reference": b, "output": a.upper()} for a, b in (("a", "x"), ("b", "y"), ("c", "z"))
    ]
    texts = Answers(["one two three four five six seven eight nine ten"])
    beginning = "one two three four five six seven eight"
    assert samples(texts, None) == [{"source": beginning, "output": beginning.upper()}]
    assert texts.asked == [WRITTEN]


def test_what_is_not_text_is_not_sampled():
    assert samples(Answers([({"pixels": 1}, 3)]), None) == []
    assert samples(type("Task", (), {}), None) == []


def test_what_is_compiled_is_looked_into_too(model, batch):
    expected = look(model.eval(), batch)
    for stack in (model.encoder, model.decoder):
        for block in stack.blocks:
            block.compile(backend="eager", dynamic=True)
    with torch.no_grad():
        model(**inputs(batch))
    assert look(model, batch) == expected
    model.decoder.blocks[0].ffn.register_forward_hook(lambda _, __, output: spoil(output))
    assert origin(model.train(), lambda: learn(model, batch)) == "decoder.blocks.0.ffn"
