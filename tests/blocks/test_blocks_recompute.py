"""Recomputation: blocks run twice, dropout drops the same, and neither loss nor gradients change."""

from collections import Counter

import pytest
import torch

from regard import zoo
from regard.blocks.residual import Block, Stack
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise


def build(positions):
    config = TransformerConfig(
        vocab_size=20, embed_dim=16, ffn_dim=24, num_heads=2, num_encoder_layers=3, num_decoder_layers=2,
        dropout=0.2, attn_dropout=0.2, drop_path=0.2, norm_order="pre", positions=positions, max_seq_len=16,
    )  # fmt: skip
    return zoo.build(config, seed=0, dtype=torch.float64).train()


def batch():
    rng = torch.Generator().manual_seed(0)
    return {
        "tokens": torch.randint(3, 20, (3, 7), generator=rng),
        "valid": torch.arange(7) < torch.tensor([[7], [4], [5]]),
        "decoder_tokens": torch.randint(3, 20, (3, 6), generator=rng),
        "targets": torch.randint(3, 20, (3, 6), generator=rng),
    }


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "t5", "alibi"])
@pytest.mark.parametrize(("recompute", "runs"), [(1, 10), (2, 8), (3, 7)])
def test_nothing_changes(positions, recompute, runs):
    model = build(positions)
    calls = Counter()
    for module in model.modules():
        if isinstance(module, Block):
            module.register_forward_pre_hook(lambda *_: calls.update(blocks=1))

    def step(every):
        for stack in model.modules():
            if isinstance(stack, Stack):
                stack.recompute = every
        torch.manual_seed(0)
        model.zero_grad()
        calls.clear()
        loss = Supervise().loss(model, batch()).sum
        loss.backward()
        after = torch.rand(1)
        return loss.detach(), [parameter.grad for parameter in model.parameters()], after, calls["blocks"]

    (loss, gradients, after, once), (again, others, later, twice) = step(0), step(recompute)
    assert (once, twice) == (5, runs)
    assert torch.equal(loss, again)
    assert torch.equal(after, later)  # the random state that follows is the same too
    for one, two in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_only_training_recomputes():
    model = build("rotary")
    model.encoder.recompute = model.decoder.recompute = 1
    inputs = {name: value for name, value in batch().items() if name != "targets"}
    trained = Counter()
    model.encoder.blocks[0].register_forward_pre_hook(lambda *_: trained.update(runs=1))
    model.eval()
    model(**inputs).logits.sum().backward()
    assert trained["runs"] == 1
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, build("rotary").eval()(**inputs).logits)
