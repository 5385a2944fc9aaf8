"""Which type matrices are multiplied in."""

import pytest
import torch

from regard.train.precision import autocast, resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
    ],
)
def test_auto_follows_the_hardware(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert resolve("auto", CPU) == expected
    assert resolve("float32", CPU) == "float32"
    assert resolve("bfloat16", CPU) == "bfloat16"


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_products_have_the_type(name, dtype):
    with autocast(name, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
        assert torch.ones(2, 2).log_softmax(-1).dtype == torch.float32
