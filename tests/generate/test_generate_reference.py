"""Equality with transformers' generate, on a tiny random MarianMT in float64.

The reference's own model is driven through a decoding that keeps no cache, so that only the search is compared.
"""

import copy

import pytest
import torch
from generate_toys import Uncached
from transformers import MarianConfig, MarianMTModel

import regard
from regard.generate.beam import Beam, beam_search
from regard.generate.decode import collect, decode
from regard.generate.logits import forbid, force, min_length, no_repeat_ngram, repetition_penalty, suppress

VOCAB, PAD, EOS, LIMIT, BIAS = 60, 59, 0, 14, 8.0


@pytest.fixture(scope="module")
def model() -> MarianMTModel:
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64, init_std=0.7,
        pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD, forced_eos_token_id=None,
    )  # fmt: skip
    model = MarianMTModel(config).double().eval()
    model.final_logits_bias[0, EOS] = BIAS  # so that answers end, and not all at the same step
    return model


@pytest.fixture(scope="module")
def sources() -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([7, 3, 9, 5, 1, 8])
    tokens = torch.randint(1, PAD, (6, 9), generator=torch.Generator().manual_seed(1))
    valid = torch.arange(9) < lengths[:, None]
    return torch.where(valid, tokens, PAD), valid


def begin(model, sources) -> Uncached:
    tokens, valid = sources
    with torch.no_grad():
        memory = model.get_encoder()(input_ids=tokens, attention_mask=valid.long()).last_hidden_state

    def forward(rows, sentences):
        outputs = (memory[sentences],)
        mask = valid[sentences].long()
        return model(encoder_outputs=outputs, attention_mask=mask, decoder_input_ids=rows, use_cache=False).logits

    return Uncached(forward, len(tokens))


def theirs(model, sources, **options):
    tokens, valid = sources
    options = {"max_length": LIMIT + 1, "return_dict_in_generate": True, "output_scores": True, **options}
    found = model.generate(input_ids=tokens, attention_mask=valid.long(), **options)
    rows = [row[1:] for row in found.sequences.tolist()]
    ends = [row.index(EOS) + 1 if EOS in row else LIMIT for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)], found


CONSTRAINTS = {
    "none": ({}, []),
    "marian": ({"bad_words_ids": [[PAD]], "forced_eos_token_id": EOS}, [suppress([PAD]), force(EOS, at=LIMIT)]),
    "no-repeat": ({"no_repeat_ngram_size": 2}, [no_repeat_ngram(2)]),
    "bad-words": (
        {"bad_words_ids": [[5], [7, 9], [PAD], [11, 12, 13], [31]]},
        [forbid([[5], [7, 9], [PAD], [11, 12, 13], [31]])],
    ),
    "min-length": ({"min_length": 9}, [min_length(9, [EOS])]),
    "first": ({"forced_bos_token_id": 17}, [force(17, at=1)]),
    "repetition": ({"repetition_penalty": 1.5}, [repetition_penalty(1.5)]),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_greedy(model, sources, name):
    options, transforms = CONSTRAINTS[name]
    expected, _ = theirs(model, sources, num_beams=1, do_sample=False, **options)
    prompt = torch.full((6, 1), PAD)
    steps = decode(begin(model, sources), prompt, transforms=transforms, stop=[EOS], max_tokens=LIMIT)
    assert [each.tokens for each in collect(steps, 6)] == expected


def compare(model, sources, size, penalty, best, name="none", early_stopping=False, stopping="current"):
    options, transforms = CONSTRAINTS[name]
    expected, found = theirs(
        model, sources, num_beams=size, do_sample=False, length_penalty=penalty, num_return_sequences=best,
        early_stopping=early_stopping, **options,
    )  # fmt: skip
    answers = beam_search(
        begin(model, sources), torch.full((6, 1), PAD), beam=Beam(size, penalty, stopping), best=best,
        transforms=transforms, stop=[EOS], max_tokens=LIMIT,
    )  # fmt: skip
    flat = [each for row in answers for each in row]
    assert [each.tokens for each in flat] == expected
    if name in ("none", "no-repeat", "bad-words", "min-length"):  # the others change log-probabilities
        ranks = torch.tensor([each.score / len(each.tokens) ** penalty for each in flat])
        torch.testing.assert_close(ranks, found.sequences_scores.float(), rtol=1e-5, atol=1e-5)
    return expected


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_beams_and_length_penalties(model, sources, size, penalty):
    compare(model, sources, size, penalty, best=1)
    expected = compare(model, sources, size, penalty, best=size)
    assert len({len(each) for each in expected}) > 2, "the answers should end at different steps"


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("size", [2, 4])
def test_constraints(model, sources, size, name):
    compare(model, sources, size, 1.0, best=2, name=name)


@pytest.mark.parametrize(("theirs", "ours"), [(False, "current"), (True, "first"), ("never", "exact")])
@pytest.mark.parametrize("penalty", [-0.5, 0.6, 1.5])
def test_stopping_rules(model, sources, theirs, ours, penalty):
    compare(model, sources, 3, penalty, best=3, early_stopping=theirs, stopping=ours)


def test_the_decoders_own_prompt_and_several_stop_tokens(model, sources):
    prompt = torch.tensor([[PAD, 4, 5]]).expand(6, -1)
    stop = [EOS, 3, 8]
    tokens, valid = sources
    expected = model.generate(
        input_ids=tokens, attention_mask=valid.long(), decoder_input_ids=prompt, eos_token_id=stop, num_beams=3,
        max_new_tokens=8, do_sample=False,
    )  # fmt: skip
    answers = beam_search(begin(model, sources), prompt, beam=Beam(3), stop=stop, max_tokens=8)
    for row, (answer,) in zip(expected[:, 3:].tolist(), answers, strict=True):
        assert row[: len(answer.tokens)] == answer.tokens
        assert set(row[len(answer.tokens) :]) <= {PAD}
        assert (answer.finish == "stop") == (answer.tokens[-1] in stop)


def test_a_published_folder_answers_as_it_does_there(model, sources, tmp_path):
    """Published Marian checkpoints forbid padding, whose logit nothing keeps low."""
    model = copy.deepcopy(model)
    model.final_logits_bias[0, PAD] = 2 * BIAS
    model.generation_config.bad_words_ids, model.generation_config.forced_eos_token_id = [[PAD]], EOS
    model.save_pretrained(tmp_path / "theirs")
    expected, _ = theirs(model, sources, num_beams=1, do_sample=False)
    tokens, valid = sources
    regard.save(regard.load(tmp_path / "theirs"), tmp_path / "again", layout="hf")
    regard.save(regard.load(tmp_path / "theirs"), tmp_path / "ours")
    for folder in ("theirs", "ours", "again"):
        found = regard.generate(
            regard.load(tmp_path / folder), torch.full((6, 1), PAD), inputs={"tokens": tokens, "valid": valid},
            transforms=[force(EOS, at=LIMIT)], stop=[EOS], max_tokens=LIMIT,
        )  # fmt: skip
        assert [each.tokens for each in found] == expected
    again = MarianMTModel.from_pretrained(tmp_path / "again").double()
    assert theirs(again, sources, num_beams=1, do_sample=False)[0] == expected
