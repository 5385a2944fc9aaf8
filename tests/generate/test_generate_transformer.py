"""A real encoder-decoder with real caches writes what it would write without them."""

import pytest
import torch
from generate_toys import Uncached

from regard.generate.beam import Beam
from regard.generate.decode import greedy, sample
from regard.generate.front import generate
from regard.models.transformer import Transformer, TransformerConfig

STOP = range(2, 12)


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(2)
    config = TransformerConfig(
        vocab_size=40,
        embed_dim=16,
        ffn_dim=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        tie_head=False,
    )
    model = Transformer(config).double().eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


class WithoutCache:
    """The same model, which begins a decoding that runs the whole prefix again at every step."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def begin(self, *, tokens, valid, max_len=None):
        def forward(rows, sentences):
            return self.model(tokens[sentences], valid[sentences], decoder_tokens=rows).logits

        return Uncached(forward, len(tokens))


METHODS = [greedy, sample(5), Beam(size=1), Beam(size=4, length_penalty=0.6), Beam(size=6, groups=3, diversity=1.0)]


@pytest.mark.parametrize("method", METHODS)
def test_cached_equals_uncached_and_alone(model, method):
    lengths = torch.tensor([5, 9, 1, 7, 3])
    valid = torch.arange(9) < lengths[:, None]
    tokens = torch.randint(1, 40, (5, 9), generator=torch.Generator().manual_seed(2)) * valid
    options = {"method": method, "stop": STOP, "max_tokens": 20}
    start = torch.ones(5, 1, dtype=torch.long)
    cached = generate(model, start, inputs={"tokens": tokens, "valid": valid}, **options)
    assert len({len(each.tokens) for each in cached}) > 1, "sentences should leave the batch at different steps"
    uncached = generate(WithoutCache(model), start, inputs={"tokens": tokens, "valid": valid}, **options)
    for one, other in zip(cached, uncached, strict=True):
        assert (one.tokens, one.finish) == (other.tokens, other.finish)
        assert one.score == pytest.approx(other.score, abs=1e-9)
    if method is METHODS[1]:  # alone, a row would have the first row's seed
        return
    for row, length in enumerate(lengths.tolist()):
        (alone,) = generate(model, start[:1], inputs={"tokens": tokens[row : row + 1, :length]}, **options)
        assert alone.tokens == cached[row].tokens
        assert alone.score == pytest.approx(cached[row].score, abs=1e-9)
