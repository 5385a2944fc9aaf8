"""Every family keeps every promise of the conformance suite, in float64 and float32, in each of its variants."""

from dataclasses import replace
from typing import Any

import pytest

from regard import zoo
from regard.attention.scaling import Yarn
from regard.models import bert, gpt2, llama
from regard.models.transformer import LayerSizes, TransformerConfig
from regard.testing import CHECKS, check_model

# What differs in kind from a family's first size, so that every branch of its composition is run.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "bart": {
        "trunk": {"head": None, "learned_positions": False},
        "many languages": {"variant": "mbart", "norm_order": "pre", "scale_embeddings": True, "start_token": None},
        "gaps": {
            "variant": "pegasus",
            "norm_order": "pre",
            "norm_embeddings": False,
            "learned_positions": False,
            "activation": "relu",
            "pad_token": 0,
            "eos_token": 1,
            "bos_token": None,
            "start_token": 0,
            "first_token": 5,
            "last_token": 1,
        },
        "answering": {"head": "answer", "drop_path": 0.2},
        "pruned": {
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "layers": (LayerSizes(12, 768), LayerSizes(3, 3072, 6), LayerSizes(9, 768, 12)),
        },
    },
    "bert": {
        "masked": {"head": "masked_lm", "drop_path": 0.2},
        "shared": {
            "variant": "albert",
            "table_dim": 128,
            "share_layers": True,
            "activation": "gelu_tanh",
            "head": "masked_lm",
        },
        "shifted": {
            "variant": "roberta",
            "position_offset": 2,
            "num_types": 1,
            "pad_token": 1,
            "bos_token": 0,
            "eos_token": 2,
        },
        "tagging": {"head": "tag", "labels": ("O", "B", "I")},
        "classifying": {"head": "classify", "labels": ("bad", "so so", "good")},
        "pruned": {"num_layers": 2, "layers": (bert.LayerSizes(3, 3072), bert.LayerSizes(12, 768))},
    },
    "gpt2": {
        "2018": {"norm_order": "post", "bos_token": None, "eos_token": None},
        "untied": {"tie_head": False, "activation": "relu", "pad_token": 0, "drop_path": 0.2},
        "pruned": {"num_layers": 2, "layers": (gpt2.LayerSizes(3, 3072), gpt2.LayerSizes(12, 768))},
        "rotary": {"positions": "rotary"},
        "biased": {"positions": "t5"},
        "windowed": {"qkv_bias": False, "scale_scores": False, "pattern": ("global", "local"), "window": 256},
        "classifying": {"head": "classify", "labels": ("bad", "so so", "good")},
    },
    "neox": {
        "serial": {
            "order": "serial",
            "tie_head": True,
            "drop_path": 0.2,
            "num_layers": 2,
            "layers": (gpt2.LayerSizes(2, 2048), gpt2.LayerSizes(8, 512)),
        },
        "gptj": {
            "variant": "gptj",
            "order": "shared",
            "attn_bias": False,
            "head_bias": True,
        },
        "phi": {"variant": "phi", "order": "shared", "head_bias": True, "qk_norm": True},
    },
    "recurrent": {"gru": {"cell": "gru", "tie_head": True, "pad_token": 0, "eos_token": 1}},
    "t5": {
        "gated": {"gated": True, "activation": "gelu_tanh", "head_dim": 128, "tie_head": False, "scale_head": False},
        "classifying": {"head": "classify", "labels": ("bad", "good"), "bos_token": None},
        "tagging": {"head": "tag", "labels": ("O", "B", "I"), "variant": "mt5", "tie_head": False, "scale_head": False},
        "states": {"head": None},
        "pruned": {
            "share_buckets": False,
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "layers": (LayerSizes(8, 512), LayerSizes(2, 2048, 4), LayerSizes(6, 512, 8)),
        },
    },
    "llama": {
        "mistral": {"variant": "mistral", "num_kv_heads": 8, "window": 4096, "rope_scaling": Yarn(4.0, 2048)},
        "mixtral": {"variant": "mixtral", "num_kv_heads": 8, "num_experts": 8, "balance": 0.02},
        "qwen2": {"variant": "qwen2", "bias": True, "window": 4096, "full_layers": 1, "dropout": 0.1},
        "qwen3": {"variant": "qwen3", "head_dim": 64, "qk_norm": True, "tie_head": True, "stop_tokens": (7,)},
        "gemma": {
            "variant": "gemma",
            "num_kv_heads": 1,
            "unit_norm": True,
            "scale_embeddings": True,
            "activation": "gelu_tanh",
            "tie_head": True,
            "pad_token": 0,
        },
        "phi3": {"variant": "phi3", "rotary_share": 0.75, "window": 4096, "dropout": 0.1},
        "tagging": {"head": "tag", "labels": ("O", "B", "I")},
        "pruned": {
            "num_layers": 2,
            "num_kv_heads": 8,
            "layers": (llama.LayerSizes(16, 4, 11008), llama.LayerSizes(8, 8, 5504)),
        },
    },
    "transformer": {
        "published": {"position_layout": "half", "logits_bias": True, "pad_token": 36999, "bos_token": 36999},
        "modern": {"positions": "rotary", "norm": "rms", "norm_order": "pre", "gated": True, "activation": "silu"},
        "untied": {"positions": "learned", "share_embeddings": False, "tie_head": False, "activation": "gelu"},
        "biased": {"positions": "alibi", "norm": "scale", "drop_path": 0.2, "scale_embeddings": False},
        "bucketed": {"positions": "t5", "norm_order": "pre", "attn_dropout": 0.1, "ffn_dropout": 0.1},
        "pruned": {
            "positions": "none",
            "num_encoder_layers": 1,
            "num_decoder_layers": 2,
            "layers": (LayerSizes(8, 512), LayerSizes(2, 2048, 4), LayerSizes(6, 512, 8)),
        },
    },
}

# What cannot be kept, and why.
LIMITS = {
    "recurrent": {
        "compiles_whole": "torch unrolls a recurrence over its tokens, so each length is a graph of its own",
        "exports_whole": "torch unrolls a recurrence over its tokens, so a graph is of one length",
    }
}

FIRST = [pytest.param(next(iter(family.sizes.values())), id=name) for name, family in zoo.families().items()]

RARE = (
    "answering", "biased", "bucketed", "classifying", "gaps", "pruned", "qwen2", "serial", "states", "tagging", "trunk",
    "untied",
)  # fmt: skip
"""Variants that differ in little from others: they are slow."""

OTHERS = [
    pytest.param(
        replace(next(iter(family.sizes.values())), **changes),
        id=f"{name}-{variant}",
        marks=[pytest.mark.slow] if variant in RARE else [],
    )
    for name, family in zoo.families().items()
    for variant, changes in VARIANTS.get(name, {}).items()
]

FILES = "I"
"""What a variant is saved to and loaded from goes the same way for all of a family: it takes long, and is slow."""


@pytest.mark.parametrize("config", FIRST)
def test_every_promise_is_kept(config: Any) -> None:
    _keeps(config, list(CHECKS))


@pytest.mark.parametrize("config", OTHERS)
def test_every_variant_keeps_them_in_memory(config: Any) -> None:
    _keeps(config, [section for section in CHECKS if section != FILES])


@pytest.mark.slow
@pytest.mark.parametrize("config", OTHERS)
def test_every_variant_keeps_them_on_disk(config: Any) -> None:
    _keeps(config, [FILES])


def _keeps(config: Any, sections: list[str]) -> None:
    limits = LIMITS.get(zoo.family_of(config).name, {}) if "D" in sections else {}
    report = check_model(config, sections=sections, expected_failures=limits)
    assert not report.failures, report
    assert len(report.rows) == sum(len(CHECKS[section]) for section in sections)
    for row in report.rows:
        assert row.status == "passed" or row.reason, row


def test_the_tiny_configuration_keeps_what_is_the_same_the_same() -> None:
    config = TransformerConfig(pad_token=36999, bos_token=36999, eos_token=0, **VARIANTS["transformer"]["pruned"])
    tiny = zoo.families()["transformer"].tiny(config)
    assert (tiny.pad_token, tiny.bos_token, tiny.eos_token) == (1, 1, 0)
    assert tiny.layers == (LayerSizes(4, 64), LayerSizes(1, 72, 2), LayerSizes(3, 64, 4))
