"""A shared trunk: each member's model is an ordinary one, exact to save and load, and learns apart from the others."""

from dataclasses import replace

import pytest
import torch

from regard import zoo
from regard.blocks.trunk import SharedTrunk
from regard.checkpoint.files import read_json
from regard.checkpoint.load import tensors_of
from regard.core.errors import CheckpointError, ConfigError, InputError
from regard.generate.decode import greedy
from regard.generate.front import generate
from regard.models.transformer import Transformer, TransformerConfig
from regard.objectives.supervise import Supervise

PLAIN = TransformerConfig(
    vocab_size=16, embed_dim=8, ffn_dim=12, num_heads=2, num_encoder_layers=1, num_decoder_layers=1, max_seq_len=16,
    norm_order="pre", dropout=0.0,
)  # fmt: skip
SHARED = replace(PLAIN, own=("decoder",), members=("a", "b"))
HEADS = replace(PLAIN, tie_head=False, own=("decoder", "head"), members=("a", "b", "c"))
TABLES = replace(PLAIN, share_embeddings=False, own=("decoder_embed", "head"), members=("a", "b"))
"""Whose head is tied to the member's own table."""

CONFIGS = pytest.mark.parametrize("config", [SHARED, HEADS, TABLES], ids=["decoder", "head", "tied"])


def batch(member=None, rows=2):
    tokens = torch.arange(3, 3 + 4 * rows).view(rows, 4) % 16
    made = {"tokens": tokens, "decoder_tokens": tokens.flip(1), "targets": tokens.flip(0)}
    return made if member is None else made | {"member": torch.full((rows,), member)}


@CONFIGS
def test_a_members_model_is_the_ordinary_one(config):
    shared = zoo.build(config, seed=1)
    for member in range(len(config.members)):
        plain = zoo.build(replace(config, own=(), members=()), seed=2)
        theirs = shared.of(member)
        assert isinstance(theirs, Transformer)
        assert tensors_of(theirs).keys() == tensors_of(plain).keys()
        plain.load_state_dict(theirs.state_dict())
        inputs = batch()
        del inputs["targets"]
        expected = plain.eval()(**inputs).logits
        assert torch.equal(shared.eval()(**inputs, member=torch.full((2,), member)).logits, expected)


@CONFIGS
def test_only_the_trunk_is_shared(config):
    shared = zoo.build(config)
    plain = sum(p.numel() for p in zoo.build(replace(config, own=(), members=())).parameters())
    first, second = (dict(shared.of(i).named_parameters(remove_duplicate=False)) for i in (0, 1))
    own = {name for name in first if first[name] is not second[name]}
    assert {name.split(".")[0] for name in own} == {*config.own}
    extra = sum(p.numel() for p in {id(first[name]): first[name] for name in own}.values())
    assert sum(p.numel() for p in shared.parameters()) == plain + (len(config.members) - 1) * extra


@CONFIGS
def test_saved_and_loaded_exactly(config, tmp_path):
    shared = zoo.build(config, seed=3)
    zoo.save(shared, tmp_path)
    again = zoo.load(tmp_path)
    assert isinstance(again, SharedTrunk)
    assert again.config == config
    assert read_json(tmp_path / "config.json")["config"]["members"] == list(config.members)
    before, after = tensors_of(shared), tensors_of(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(Supervise().loss(again, batch(1)).sum, Supervise().loss(shared.eval(), batch(1)).sum)


def test_no_checkpoint_of_other_members(tmp_path):
    shared = zoo.build(HEADS)
    shared.config = replace(HEADS, members=("a", "b"))
    with pytest.raises(CheckpointError, match=r"unexpected 'own\.2"):
        zoo.save(shared, tmp_path)


@CONFIGS
def test_a_batch_teaches_its_member_and_the_trunk(config):
    shared = zoo.build(config, seed=4)
    Supervise().loss(shared, batch(1)).sum.backward()
    taught = {name for name, p in shared.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("own.1.") for name in taught)
    assert any(name.startswith("trunk.encoder.") for name in taught)
    assert not any(name.startswith("own.0.") for name in taught)


@CONFIGS
def test_the_sum_of_members_losses_has_the_sum_of_their_gradients(config):
    """The gradient of the trunk is what each member's ordinary model would give it, summed (in float64)."""
    shared = zoo.build(config, seed=5, dtype=torch.float64)
    for member in (0, 1):
        Supervise().loss(shared, batch(member, rows=2 + member)).sum.backward()
    sums = dict[str, torch.Tensor]()
    for member in (0, 1):
        plain = zoo.build(replace(config, own=(), members=()), dtype=torch.float64)
        plain.load_state_dict(shared.of(member).state_dict())
        Supervise().loss(plain, batch(rows=2 + member)).sum.backward()
        for name, parameter in plain.named_parameters():
            if name.split(".")[0] not in config.own:
                sums[name] = sums.get(name, 0) + parameter.grad
    for name, parameter in shared.trunk.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], rtol=1e-9, atol=1e-12)


def test_writing_as_a_member():
    shared = zoo.build(HEADS, seed=6).eval()
    inputs = {"tokens": batch()["tokens"]}
    start = torch.ones(2, 1, dtype=torch.long)
    for member in range(3):
        named = generate(
            shared, start, inputs=inputs | {"member": torch.full((2,), member)}, method=greedy, stop=[2], max_tokens=5
        )
        alone = generate(shared.of(member), start, inputs=inputs, method=greedy, stop=[2], max_tokens=5)
        assert [each.tokens for each in named] == [each.tokens for each in alone]


@pytest.mark.parametrize("member", [None, torch.tensor([0, 1]), torch.tensor([3, 3]), torch.tensor([-1, -1])])
def test_which_member_is_never_guessed(member):
    inputs = {"tokens": batch()["tokens"], "decoder_tokens": batch()["decoder_tokens"]}
    with pytest.raises(InputError, match="one number from 0 to 2 in all rows, for a, b, c"):
        zoo.build(HEADS)(member, **inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": ("heads",)}, "no part 'heads'.*did you mean 'head'"),
        ({"own": ("head",), "tie_head": True}, "'head' is tied to encoder_embed.weight"),
        ({"own": ()}, "none without the other"),
        ({"members": ()}, "none without the other"),
    ],
)
def test_parts_that_nobody_can_own(changes, message):
    with pytest.raises(ConfigError, match=message):
        zoo.build(replace(HEADS, **changes))


def test_the_published_layout_knows_no_members(tmp_path):
    published = replace(SHARED, norm_order="post", position_layout="half", logits_bias=True)
    with pytest.raises(ConfigError, match=r"no own=\('decoder',\)"):
        zoo.save(zoo.build(published), tmp_path, layout="hf")


def test_a_model_in_parts_is_refused():
    """Processes at different members would take each other's parts for their own, without a word."""
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        shared = zoo.build(SHARED)
        fully_shard(shared.own[1].decoder.blocks[0], mesh=mesh)
        with pytest.raises(ConfigError, match="each process needs the whole model"):
            Supervise().loss(shared, batch(0))
    finally:
        distributed.destroy_process_group()
