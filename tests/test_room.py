"""What does not fit is told in one line before anything is read; what fits goes where it was asked to."""

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regard import room, zoo
from regard.blocks.offload import offload, offloaded
from regard.blocks.packed import pack
from regard.checkpoint.files import stored_size
from regard.checkpoint.load import tensors_of
from regard.core.errors import ConfigError, Unsupported
from regard.core.types import Context, Index
from regard.models.gpt2 import GPT2Config
from regard.models.t5 import T5Config
from regard.room import Need, chosen, need, planned

CPU, ONE, TWO = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
GB = 10**9
CONFIG = GPT2Config(vocab_size=30, embed_dim=16, ffn_dim=24, num_heads=2, num_layers=3, max_seq_len=8, bos_token=1,
                    eos_token=1)  # fmt: skip


T5 = T5Config(vocab_size=30, embed_dim=16, ffn_dim=24, num_heads=2, head_dim=8, num_encoder_layers=3,
              num_decoder_layers=3, max_seq_len=8)  # fmt: skip


def needs(weights: int, block: int, dtype: torch.dtype | None = torch.float32, *, mapped: bool = False) -> Need:
    return Need(weights * GB, block * GB, weights * GB // 2, dtype, mapped)


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_needed_is_counted(dtype: torch.dtype | None, tmp_path: Path) -> None:
    model = zoo.build(CONFIG)
    zoo.save(model, tmp_path)
    size = (dtype or torch.float32).itemsize
    found = need(zoo.build(CONFIG, device="meta"), stored_size(tmp_path), dtype)
    assert found.weights == size * sum(tensor.numel() for tensor in tensors_of(model).values())
    assert found.block == size * sum(parameter.numel() for parameter in model.decoder.blocks[0].parameters())
    assert found.half * size == found.weights * 2
    assert found.mapped == (dtype in (None, torch.float32))


def test_auto_takes_the_gpu_with_most_room_if_it_fits() -> None:
    assert chosen("auto", needs(4, 1), {ONE: 6 * GB, TWO: 8 * GB, CPU: 50 * GB}) == TWO
    assert chosen("auto", needs(8, 1), {ONE: 6 * GB, TWO: 8 * GB, CPU: 50 * GB}) == CPU  # the block wants room too
    assert chosen("auto", needs(4, 1), {CPU: None}) == CPU
    assert chosen("auto", needs(400, 1, None, mapped=True), {ONE: 8 * GB, CPU: 50 * GB}) == CPU
    assert chosen(None, needs(4, 1), {CPU: 50 * GB}) == CPU
    assert chosen("cuda:1", needs(4, 1), {TWO: 8 * GB, CPU: 50 * GB}) == TWO
    assert chosen("meta", needs(4000, 1), {torch.device("meta"): None, CPU: GB}) == torch.device("meta")


@pytest.mark.parametrize(
    ("device", "what", "there", "message"),
    [
        ("cuda:0", needs(28, 1, None, mapped=True), {ONE: 24 * GB, CPU: 50 * GB},
         "its weights take 28 GB as stored (1 GB in the largest block), and as much again as that block to "
         "compute with; free: cuda:0 has 24 GB, cpu has 50 GB; load it with device='cpu' or dtype=torch.bfloat16"),
        ("cuda:0", needs(28, 1, torch.bfloat16), {ONE: 4 * GB, CPU: 9 * GB}, "write it smaller elsewhere"),
        ("cpu", needs(28, 1), {CPU: 20 * GB}, "load it with dtype=torch.bfloat16 or no dtype, for then the CPU maps"),
        ("auto", needs(28, 1), {ONE: 8 * GB, CPU: 10 * GB}, "free: cuda:0 has 8 GB, cpu has 10 GB; "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_in_one_line(device: str, what: Need, there: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(device, what, there)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_leaves_on_the_cpu_what_a_gpu_has_no_room_for() -> None:
    names = [f"decoder.blocks.{i}" for i in range(10)]
    what = replace(needs(12, 1), blocks=dict.fromkeys(names, GB))  # 2 GB are in no block
    assert planned("auto", what, {ONE: 13 * GB, CPU: 50 * GB}).elsewhere == {}
    plan = planned("auto", what, {ONE: 6 * GB, TWO: 9 * GB + 1, CPU: 50 * GB})  # 12 and two to compute with, of 9
    assert (plan.device, plan.elsewhere) == (TWO, dict.fromkeys(names[-1:-6:-1], CPU))
    assert planned("auto", what, {ONE: 9 * GB, CPU: 5 * GB}).device == ONE
    assert planned("auto", what, {ONE: 3 * GB, CPU: 50 * GB}).device == CPU
    with pytest.raises(ConfigError, match="free: cuda:0 has 9 GB, cpu has 4 GB"):
        planned("auto", what, {ONE: 9 * GB, CPU: 4 * GB})
    assert planned("auto", replace(what, mapped=True), {ONE: 9 * GB, CPU: 4 * GB}).device == ONE
    assert planned("cpu", what, {CPU: 50 * GB}).elsewhere == {}


def test_an_encoder_goes_before_a_decoder() -> None:
    names = [f"{side}.blocks.{i}" for side in ("encoder", "decoder") for i in range(3)]
    what = replace(needs(7, 1), blocks=dict.fromkeys(names, GB))
    plan = planned("auto", what, {ONE: 5 * GB, CPU: 50 * GB})
    assert [*plan.elsewhere] == ["encoder.blocks.2", "encoder.blocks.1", "encoder.blocks.0", "decoder.blocks.2"]


@torch.no_grad()
def test_outputs_do_not_depend_on_where_weights_lie(tmp_path: Path) -> None:
    zoo.save(zoo.build(CONFIG), tmp_path)
    tokens = torch.arange(6)[None]
    whole, away = zoo.load(tmp_path), zoo.load(tmp_path)
    offload(away.decoder.blocks[1], CPU)
    assert away(tokens=tokens).logits.equal(whole(tokens=tokens).logits)
    for twin in (copy.deepcopy(away), pickle.loads(pickle.dumps(away)), pack(away)):
        assert twin.decoder.blocks[1].forward.block is twin.decoder.blocks[1]
        torch.testing.assert_close(twin(tokens=tokens).logits, whole(tokens=tokens).logits)
    zoo.save(away, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    with torch.enable_grad(), pytest.raises(Unsupported, match="for inference alone"):
        away(tokens=tokens)


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, T5], ids=["gpt2", "t5"])
def test_blocks_compute_where_the_map_says(config: Any, tmp_path: Path) -> None:
    """On meta nothing mixes with what is on the CPU, as on a GPU; it writes, too, and from a packed twin."""
    zoo.save(zoo.build(config), tmp_path)
    whole = zoo.load(tmp_path)
    names = [name for name in room.blocks(whole) if name.endswith((".0", ".2"))]
    away = zoo.load(tmp_path, device={"": "meta", **dict.fromkeys(names, "cpu")})
    assert offloaded(away) == names
    kept = {name: value for name, value in whole.state_dict().items() if name.startswith(tuple(names))}
    tokens = torch.arange(6, device="meta")[None]
    read = {"tokens": tokens} if config is T5 else {}
    for model in (away, pack(away)):
        decoding = model.begin(**read)
        assert decoding.feed(tokens[:, :2]).is_meta
        assert decoding.feed(tokens[:, 2:3]).is_meta
    for name, value in away.state_dict().items():
        assert value.equal(kept[name]) if name in kept else value.is_meta


def test_an_interrupted_pass_leaves_weights_where_they_lie() -> None:
    block = zoo.build(CONFIG).decoder.blocks[0]
    offload(block, torch.device("meta"))

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    block.attention.register_forward_pre_hook(interrupt)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        block(torch.zeros(1, 2, 16, device="meta"), Context(Index.count(2)))
    assert not any(parameter.is_meta for parameter in block.parameters())


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ({"decoder.blocks.1": "cpu"}, "says under '' which of them computes"),
        ({"": "cpu", "decoder.block.1": "cpu"}, "'decoder.block.1' is no block of this model .did you mean"),
        ({"": "cpu", "decoder.blocks.1": "cuda:99"}, "no device 'cuda:99' here"),
        ({"": "auto"}, "a map of devices names one for '', not 'auto'"),
        ({"": "cpu", "decoder.blocks.1": None}, "names one for 'decoder.blocks.1', not None"),
    ],
)
def test_wrong_maps_are_told(devices: dict, message: str, tmp_path: Path) -> None:
    zoo.save(zoo.build(CONFIG), tmp_path)
    with pytest.raises(ConfigError, match=message):
        zoo.load(tmp_path, device=devices)


def test_nothing_is_read_of_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo.save(zoo.build(CONFIG), tmp_path)
    monkeypatch.setattr(room, "free", lambda device: 1000)
    (tmp_path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"not JSON" + bytes(20_000))
    with pytest.raises(ConfigError, match=r"its weights take .* in float64 .* free: cpu has 1 kB"):
        zoo.load(tmp_path, dtype=torch.float64)


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    zoo.save(zoo.build(CONFIG), tmp_path)
    with pytest.raises(ConfigError, match="no device 'cuda:99' here: there are"):
        zoo.load(tmp_path, device="cuda:99")
    with pytest.raises(ConfigError, match="no device 'gpu'; name one as torch does"):
        zoo.load(tmp_path, device="gpu")
    assert zoo.load(tmp_path, device="meta").embed.weight.is_meta
    model = zoo.load(tmp_path, device="auto", dtype=torch.bfloat16)
    assert model.embed.weight.dtype == torch.bfloat16


def test_free_memory_is_the_kernels_or_the_control_groups(tmp_path: Path) -> None:
    assert room._free_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    2000 kB\n")
    assert room._free_memory(tmp_path) == 2_048_000
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1500\n")
    (group / "memory.stat").write_text("anon 900\ninactive_file 500\n")
    for limit, expected in (("max", 2_048_000), ("5000", 4000), ("9999999999", 2_048_000)):
        (group / "memory.max").write_text(limit + "\n")
        assert room._free_memory(tmp_path) == expected
    assert (room.free(CPU) or 1) > 0
