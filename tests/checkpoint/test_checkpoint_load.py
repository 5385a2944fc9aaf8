"""Loading is exact or it is an error that names everything that is wrong."""

import pytest
import torch
from torch import Tensor, nn

from regard.checkpoint.files import read, write
from regard.checkpoint.keymap import Rule, Split
from regard.checkpoint.load import assign, reconcile, tensors_of
from regard.core.errors import CheckpointError


class Toy(nn.Module):
    """A tied head, a buffer, and layers; no part of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("count", torch.tensor(3))


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def on_meta() -> Toy:
    with torch.device("meta"):
        return Toy()


def failure(model: nn.Module, tensors: dict[str, Tensor], **options) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        assign(model, tensors, where="here", **options)
    return str(caught.value).split("\n")


def test_tied_tensors_are_listed_once(toy: Toy) -> None:
    assert "embed.weight" in tensors_of(toy)
    assert "head.weight" not in tensors_of(toy)
    assert len(tensors_of(toy)) == 1 + 24 + 1


def test_a_model_on_meta_is_filled_and_stays_tied(toy: Toy) -> None:
    model = on_meta()
    assign(model, tensors_of(toy), where="here")
    assert model.head.weight is model.embed.weight
    assert isinstance(model.head.weight, nn.Parameter)
    for name, tensor in toy.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_files_stay_mapped(toy: Toy, tmp_path) -> None:
    write(tmp_path, tensors_of(toy), {})
    model, tensors = on_meta(), read(tmp_path)
    assign(model, tensors, where=tmp_path)
    assert model.layers[3].weight.data_ptr() == tensors["layers.3.weight"].data_ptr()


def test_dtype_is_that_of_the_file_or_as_asked(toy: Toy) -> None:
    half = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in tensors_of(toy).items()
    }
    model = on_meta()
    assign(model, half, where="here")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assign(model, half, where="here", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.count.dtype == torch.int64


def test_every_difference_is_told_at_once(toy: Toy) -> None:
    tensors = dict(tensors_of(toy))
    tensors["layers.11.wieght"] = tensors.pop("layers.11.weight")
    tensors["extra"] = torch.zeros(1)
    tensors["embed.weight"] = torch.zeros(7, 5)
    tensors["count"] = torch.tensor(3.0)
    head, *lines = failure(on_meta(), tensors)
    assert head.startswith("here: ")
    assert "1 missing, 2 unexpected, 2 misshapen" in head
    assert sorted(line.strip() for line in lines) == [
        "misshapen 'count': float32 [], expected int64 []",
        "misshapen 'embed.weight': float32 [7, 5], expected float32 [7, 4]",
        "missing 'layers.11.weight' (nearest: 'layers.11.wieght')",
        "unexpected 'extra'",
        "unexpected 'layers.11.wieght' (nearest: 'layers.11.weight')",
    ]


def test_one_difference_is_one_line(toy: Toy) -> None:
    tensors = dict(tensors_of(toy))
    del tensors["layers.0.bias"]
    assert failure(on_meta(), tensors) == [
        "here: the tensors are not this model's (1 missing): missing 'layers.0.bias'"
    ]


def test_a_tensor_stored_apart_from_its_tie_is_an_error(toy: Toy) -> None:
    (line,) = failure(on_meta(), tensors_of(toy) | {"head.weight": torch.zeros(7, 4)})
    assert "unexpected 'head.weight'" in line
    assert "tied to 'embed.weight'" in line


def test_a_failed_load_changes_nothing(toy: Toy) -> None:
    before = {name: tensor.clone() for name, tensor in toy.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in tensors_of(toy).items()}
    del tensors["layers.0.bias"]
    failure(toy, tensors)
    assert all(torch.equal(before[name], tensor) for name, tensor in toy.state_dict().items())


RULES = [
    Rule("table", "embed.weight"),
    Rule("block.{i}.fused", ("layers.{i}.weight", "layers.{i}.bias"), Split((4, 1), 1)),
    Rule("n", "count"),
]


class Fused(Toy):
    """As Toy, with biases of the shape that can be fused to the weights."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers:
            layer.bias = nn.Parameter(torch.zeros(4, 1, device=layer.weight.device))


def test_a_published_layout_is_checked_under_its_own_names() -> None:
    theirs = {f"block.{i}.fused": torch.randn(4, 5) for i in range(12)} | {
        "table": torch.randn(7, 4),
        "n": torch.tensor(1),
    }
    with torch.device("meta"):
        model = Fused()
    wrong = {key: tensor for key, tensor in theirs.items() if key != "block.7.fused"}
    lines = failure(model, wrong | {"n": torch.zeros(2, dtype=torch.int64), "tabel": torch.zeros(1)}, rules=RULES)
    assert "1 missing, 1 unexpected, 1 misshapen" in lines[0]
    assert any("missing 'block.7.fused'" in line for line in lines[1:])
    assign(model, theirs, where="here", rules=RULES)
    assert torch.equal(model.layers[7].bias, theirs["block.7.fused"][:, 4:])


def test_a_buffer_that_no_checkpoint_holds_is_told() -> None:
    model = nn.Module()
    model.register_buffer("table", torch.zeros(2, device="meta"), persistent=False)
    with pytest.raises(ValueError, match="table is a buffer that checkpoints do not hold"):
        assign(model, {}, where="here")


def test_thousands_of_differences_are_told_quickly() -> None:
    """Spelling is compared once for a kind of name, not for each pair: else this would take hours."""
    ours = {f"encoder.layers.{i}.attention.part{j % 3}.weight": torch.zeros(1) for i in range(400) for j in range(3)}
    theirs = {f"encoder.layer.{i}.attn.part{j % 3}.weight": torch.zeros(1) for i in range(400) for j in range(3)}
    with pytest.raises(
        CheckpointError,
        match=r"missing 'encoder.layers.7.attention.part2.weight' \(nearest: 'encoder.layer.7.attn.part2",
    ):
        reconcile(ours, theirs, "here")
