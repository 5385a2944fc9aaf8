"""Files: bit for bit there and back, whole or untouched whatever happens; bad ones give CheckpointError, no more."""

import json
import os
import stat
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from regard.checkpoint.files import INDEX, SINGLE, inside, read, reading, replacing, settle, write
from regard.checkpoint.keymap import same_bits
from regard.core.errors import CheckpointError

DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
FUZZ = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)


def tensors(value: float = 1.0, count: int = 6) -> dict[str, torch.Tensor]:
    return {f"layer.{i}.weight": torch.full((4, 3), value) for i in range(count)}


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.text(st.characters(categories=["L", "N"]) | st.just("."), min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([1, 64, 10**9]),
)
def test_there_and_back_is_bit_exact_sharded_or_not(tmp_path_factory, layout, max_shard_size) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    saved = {name: torch.randn(shape).mul(100).to(dtype) for name, (dtype, shape) in layout.items()}
    write(folder, saved, {}, max_shard_size=max_shard_size)
    found = read(folder)
    assert found.keys() == saved.keys()
    assert all(same_bits(found[name], saved[name]) for name in saved)


def test_shards_are_as_big_as_asked_and_indexed(tmp_path) -> None:
    write(tmp_path, tensors(), {"a": 1}, max_shard_size=100)  # two tensors of 48 bytes
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert everything(tmp_path) == sorted(["config.json", INDEX, *shards])
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"] == {"total_size": 6 * 48}
    assert index["weight_map"] == {f"layer.{i}.weight": shards[i // 2] for i in range(6)}
    assert json.loads((tmp_path / "config.json").read_text()) == {"a": 1}


def test_the_reference_reader_reads_what_is_written(tmp_path) -> None:
    write(tmp_path, {"t": torch.arange(6).reshape(2, 3).T}, {})
    assert torch.equal(safetensors.torch.load_file(tmp_path / SINGLE)["t"], torch.arange(6).reshape(2, 3).T)


def test_reading_maps_the_file_and_never_writes_to_it(tmp_path) -> None:
    write(tmp_path, {"t": torch.zeros(1 << 20)}, {})
    before = (tmp_path / SINGLE).read_bytes()
    found = read(tmp_path)["t"]
    assert any(line.rstrip().endswith(SINGLE) for line in Path("/proc/self/maps").read_text().splitlines())
    found.add_(1)
    assert (tmp_path / SINGLE).read_bytes() == before
    assert read(tmp_path)["t"].sum() == 0


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(tmp_path) -> None:
    write(tmp_path, tensors(1.0), {})
    found = read(tmp_path)
    write(tmp_path, {name: tensor.mul_(2) for name, tensor in found.items()}, {})
    assert all(same_bits(tensor, tensors(2.0)[name]) for name, tensor in read(tmp_path).items())


@FUZZ
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_changes_nothing(tmp_path, place, bit) -> None:
    shapes = {"a": torch.arange(3.0), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(True)}
    saved = {**shapes, "d": torch.empty(0)}
    write(tmp_path, saved, {})
    content = bytearray((tmp_path / SINGLE).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    (tmp_path / SINGLE).write_bytes(content)
    found = saved
    with suppress(CheckpointError):
        found = read(tmp_path)
    assert found.keys() == saved.keys()
    assert all(same_bits(found[name], saved[name]) for name in saved)


def test_damaged_weights_are_told_by_their_checksum(tmp_path) -> None:
    write(tmp_path, tensors(), {})
    content = bytearray((tmp_path / SINGLE).read_bytes())
    content[-1] ^= 1
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        read(tmp_path)


def test_a_file_is_the_same_bytes_every_time(tmp_path) -> None:
    files = []
    for _ in range(8):
        write(tmp_path, tensors(), {})
        files.append((tmp_path / SINGLE).read_bytes())
    assert len(set(files)) == 1


def test_new_weights_displace_the_old_however_sharded_and_nothing_else(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "training.safetensors").write_text("mine too")
    for size, count in ((10**9, 1), (100, 3), (200, 2), (10**9, 1)):
        write(tmp_path, tensors(float(size)), {}, max_shard_size=size)
        shards = [INDEX, *(f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count))]
        weights = [SINGLE] if count == 1 else shards
        assert everything(tmp_path) == sorted(["config.json", "notes.txt", "training.safetensors", *weights])
        assert read(tmp_path)["layer.3.weight"][0, 0] == size


def test_files_are_as_readable_as_the_umask_says(tmp_path) -> None:
    write(tmp_path, tensors(), {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    os.umask(mask := os.umask(0))
    assert modes == {0o666 & ~mask}


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from regard.checkpoint.files import read, read_json, write
folder, events = Path(sys.argv[1]), {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.listdir"}
steps, last = 0, None

def kill(event, args):
    global steps
    if event in events and last is not None:
        steps += 1
        if steps == last:
            os.kill(os.getpid(), signal.SIGKILL)

def save(value, shard):
    tensors = {f"layer.{i}": torch.full((4,), float(value)) for i in range(4)}
    write(folder, tensors, {"value": value}, max_shard_size=shard)

def stands():
    values = {tensor[0].item() for tensor in read(folder).values()} | {read_json(folder / "config.json")["value"]}
    assert len(values) == 1 and len(read(folder)) == 4, values
    return values.pop()

sys.addaudithook(kill)
save(0, 32)
step = value = 0
fates = set()
while True:  # a save dies at its first step, then one at its second, ... until one gets through
    step += 1
    value += 1
    before = stands()
    child = os.fork()
    if not child:
        last = step
        save(value, 32 if value % 3 else 1000)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    after = stands()
    assert after in (before, value), (step, before, value, after)
    fates.add("new" if after == value else "old")
    if not os.WIFSIGNALED(status):
        break
assert after == value
assert not [path for path in folder.iterdir() if path.name.startswith(".")], list(folder.iterdir())
print(step, *sorted(fates))
"""


def python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_save_killed_at_any_step_leaves_the_old_or_the_new_checkpoint(tmp_path) -> None:
    done = python(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    steps, *fates = done.stdout.split()
    assert int(steps) > 20
    assert fates == ["new", "old"]


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from regard.checkpoint.files import write
from regard.core.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for folder in sys.argv[1:]:
    try:
        write(Path(folder), {f"t{i}": torch.ones(10_000) for i in range(9)}, {})
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_line_and_the_old_checkpoint_stands(tmp_path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, tensors(5.0), {"value": 5})
    before = everything(old)
    done = python(FULL, old, new)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{old}: cannot be saved (File too large); what was there is untouched",
        f"{new}: cannot be saved (File too large)",
    ]
    assert everything(old) == before
    assert read(old)["layer.0.weight"][0, 0] == 5
    assert not new.exists()


def test_a_failure_of_the_caller_leaves_the_folder_alone(tmp_path) -> None:
    write(tmp_path, tensors(), {})
    before = everything(tmp_path)
    with pytest.raises(KeyError), replacing(tmp_path) as staged:
        (staged / SINGLE).write_text({}["half"])
    assert everything(tmp_path) == before
    assert read(tmp_path).keys() == tensors().keys()


def test_the_remains_of_an_interrupted_save_cannot_reach_outside(tmp_path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "checkpoint"
    staged = folder / ".saved"
    staged.mkdir(parents=True)
    (staged / "model.safetensors").write_text("")
    for names in (["../victim"], [str(victim)], "x", [3], {}, [".."]):
        (staged / ".names.json").write_text(json.dumps(names))
        with pytest.raises(CheckpointError, match="not the remains"):
            settle(folder)
    assert victim.read_text() == "mine"


def test_pickles_are_never_opened(tmp_path) -> None:
    torch.save(tensors(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin, a pickle.*save_pretrained"):
        read(tmp_path)


@pytest.mark.parametrize(("folder", "message"), [("none", "no such folder"), (".", r"holds no model\.safetensors")])
def test_nothing_there(tmp_path, folder, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path / folder)


def complaint(folder: Path) -> str:
    """The error of reading, which is one line, or nothing; any other exception fails the test."""
    try:
        for tensor in read(folder).values():
            tensor.clone()
    except CheckpointError as error:
        lines = str(error).splitlines()
    else:
        return ""
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1])
def test_a_truncated_file_is_one_clear_line(tmp_path, keep) -> None:
    write(tmp_path, tensors(), {})
    file = tmp_path / SINGLE
    file.write_bytes(file.read_bytes()[:keep])
    assert "truncated, damaged or not safetensors" in complaint(tmp_path)


WHOLE = safetensors.torch.save(tensors())
HEADER = 8 + int.from_bytes(WHOLE[:8], "little")


@FUZZ
@given(st.lists(st.tuples(st.integers(0, HEADER - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_tampered_headers_never_crash(tmp_path, changes) -> None:
    content = bytearray(WHOLE)
    for place, byte in changes:
        content[place] = byte
    (tmp_path / SINGLE).write_bytes(content)
    complaint(tmp_path)


HUGE = 2**63
shapes = st.lists(st.integers(-1, 4) | st.sampled_from([HUGE, HUGE - 1, 2**32]), max_size=3) | st.just("x")
offsets = st.lists(st.integers(-1, 20) | st.sampled_from([HUGE, 2**64 - 1]), max_size=3)
dtypes = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "C64", "F8_E8M0", "F4", "F6_E2M3", "X", "", None]
)


@FUZZ
@given(
    st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        st.fixed_dictionaries({}, optional={"dtype": dtypes, "shape": shapes, "data_offsets": offsets}) | st.integers(),
        max_size=3,
    ),
    st.integers(0, 20),
)
@example({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, 2)
@example({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, 4)
@example({"a": {"dtype": "F32", "shape": [0, HUGE - 1], "data_offsets": [0, 0]}}, 0)
@example({"a": {"dtype": "F32", "shape": [1, 1, 1], "data_offsets": [0, 4]}}, 4)
def test_invented_headers_never_crash(tmp_path, header, size) -> None:
    text = json.dumps(header).encode()
    (tmp_path / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    complaint(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)
places = st.sampled_from(
    [
        SINGLE,
        INDEX,
        "..",
        ".",
        "",
        "/etc/passwd",
        "../secret.safetensors",
        "a/b",
        "a\0b",
        "x" * 300,
        "\ud800",
        "link",
        "loop",
        "pipe",
        "pit",
    ]
)


@FUZZ
@given(json_values | st.fixed_dictionaries({"weight_map": st.dictionaries(st.text(max_size=3), places, max_size=3)}))
def test_invented_indexes_never_crash_or_read_outside(tmp_path, index) -> None:
    home = tmp_path / "home"
    if not home.exists():
        home.mkdir()
        safetensors.torch.save_file(tensors(), tmp_path / "secret.safetensors")
        (home / "link").symlink_to(tmp_path / "secret.safetensors")
        (home / "loop").symlink_to(home / "loop")
        (home / "pit").mkdir()
        os.mkfifo(home / "pipe")
    (home / INDEX).write_text(json.dumps(index))
    if not complaint(home):
        assert read(home) == {}


@pytest.mark.parametrize(
    "text", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000, b'{"weight_map": {"a": 1}}', b"[]"]
)
def test_damaged_indexes_are_one_clear_line(tmp_path, text) -> None:
    (tmp_path / INDEX).write_bytes(text)
    assert INDEX in complaint(tmp_path)


def test_shards_must_hold_what_the_index_says(tmp_path) -> None:
    write(tmp_path, tensors(), {}, max_shard_size=100)
    index = json.loads((tmp_path / INDEX).read_text())
    moved = {"weight_map": index["weight_map"] | {"layer.0.weight": "model-00003-of-00003.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(moved))
    assert "contrary to" in complaint(tmp_path)
    more = {"weight_map": index["weight_map"] | {"layer.9.weight": "model-00009-of-00003.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(more))
    assert "no such file" in complaint(tmp_path)


@pytest.mark.parametrize("name", [SINGLE, INDEX])
def test_links_that_lead_outside_are_complaint(tmp_path, name) -> None:
    write(tmp_path / "other", tensors(), {}, max_shard_size=100 if name == INDEX else 10**9)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / name).symlink_to(tmp_path / "other" / name)
    assert "leads outside" in complaint(tmp_path / "home")


def test_links_of_the_hub_cache_are_followed(tmp_path) -> None:
    folder = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    write(blobs, tensors(), {})
    folder.mkdir(parents=True)
    (folder / SINGLE).symlink_to(Path("../../blobs") / SINGLE)
    assert read(folder).keys() == tensors().keys()
    (folder / "config.json").symlink_to("../../../else.json")
    with pytest.raises(CheckpointError, match="leads outside"):
        inside(folder, "config.json")


def test_a_folder_reached_by_a_link_is_a_folder(tmp_path) -> None:
    write(tmp_path / "real", tensors(), {})
    (tmp_path / "link").symlink_to("real")
    assert read(tmp_path / "link").keys() == tensors().keys()


WRITER = """
import sys, time, torch
from pathlib import Path
from regard.checkpoint.files import write
end = time.monotonic() + 3
number = 0
while time.monotonic() < end:
    number += 1
    write(Path(sys.argv[1]), {f"t{i}": torch.full((64,), float(number)) for i in range(4)}, {}, max_shard_size=256)
print(number)
"""


def test_readers_and_a_writer_keep_out_of_each_others_way(tmp_path) -> None:
    write(tmp_path, {f"t{i}": torch.zeros(64) for i in range(4)}, {}, max_shard_size=256)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    seen = set()
    while writer.poll() is None:
        with reading(tmp_path):
            found = read(tmp_path)
        values = {float(tensor[0]) for tensor in found.values()}
        assert len(values) == 1, "two checkpoints were mixed"
        seen |= values
    assert writer.returncode == 0
    assert len(seen) > 2


def test_a_save_that_lost_a_file_takes_nothing_with_it(tmp_path) -> None:
    write(tmp_path, tensors(), {"a": 1})
    (tmp_path / ".saved").mkdir()
    (tmp_path / ".saved/.names.json").write_text(json.dumps(["model-00001-of-00002.safetensors"]))
    with pytest.raises(CheckpointError, match="has lost its 'model-00001"):
        read(tmp_path)
    assert (tmp_path / SINGLE).exists()
