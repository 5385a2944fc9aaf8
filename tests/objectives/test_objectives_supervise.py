"""The losses against torch's own, values and gradients, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from regard.core.errors import ConfigError, InputError
from regard.core.types import IGNORE, Output
from regard.objectives import supervise
from regard.objectives.supervise import Supervise, cross_entropy, focal, linear_cross_entropy, squared_error

N, V, E = 23, 11, 5


def table(seed=0, bias=True):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, E, dtype=torch.float64, generator=rng, requires_grad=True)
    weight = torch.randn(V, E, dtype=torch.float64, generator=rng, requires_grad=True)
    shift = torch.randn(V, dtype=torch.float64, generator=rng, requires_grad=True) if bias else None
    return hidden, weight, shift, torch.randint(V, (N,), generator=rng)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_torchs(smoothing):
    hidden, weight, bias, targets = table()
    logits = F.linear(hidden, weight, bias).detach().requires_grad_()
    ours = cross_entropy(logits, targets, smoothing)
    theirs = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(ours.sum, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.parts["nll"], F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-12, atol=0)
    gradient, expected = (torch.autograd.grad(loss, logits)[0] for loss in (ours.sum, theirs))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert ours.count == N


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk", [1, 7, N, 512])
def test_linear_cross_entropy_is_torchs(smoothing, bias, chunk, monkeypatch):
    monkeypatch.setattr(supervise, "CHUNK", chunk)
    hidden, weight, shift, targets = table(bias=bias)
    ours = linear_cross_entropy(hidden, weight, shift, targets, smoothing)
    theirs = F.cross_entropy(F.linear(hidden, weight, shift), targets, label_smoothing=smoothing, reduction="sum")
    torch.testing.assert_close(ours.sum, theirs, rtol=1e-12, atol=0)
    wanted = [hidden, weight, *([shift] if bias else [])]
    for a, b in zip(torch.autograd.grad(ours.sum * 3, wanted), torch.autograd.grad(theirs * 3, wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_linear_cross_entropy_survives_large_logits():
    hidden, weight, _, targets = table(bias=False)
    loss = linear_cross_entropy(hidden * 1e4, weight, None, targets, 0.1)
    loss.sum.backward()
    assert loss.sum.isfinite()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_the_papers(gamma):
    hidden, weight, bias, targets = table()
    logits = F.linear(hidden, weight, bias).detach().requires_grad_()
    ours = focal(logits, targets, gamma)
    likely = logits.softmax(dim=-1)[torch.arange(N), targets]
    theirs = ((1 - likely) ** gamma * F.cross_entropy(logits, targets, reduction="none")).sum()
    torch.testing.assert_close(ours.sum, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.parts["nll"], F.cross_entropy(logits, targets, reduction="sum"), rtol=1e-12, atol=0)
    gradient, expected = (torch.autograd.grad(loss, logits)[0] for loss in (ours.sum, theirs))
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)
    assert ours.count == N


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_finite_where_the_target_is_certain(gamma):
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    loss = focal(logits, torch.tensor([0, 0]), gamma)
    loss.sum.backward()
    assert loss.sum.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss", [cross_entropy, lambda logits, targets: focal(logits, targets, 2.0)], ids=["ce", "focal"]
)
def test_narrow_logits_have_the_loss_and_the_gradient_of_wide_ones(loss):
    narrow = torch.tensor([[6.5, 0.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    wide = narrow.detach().float().requires_grad_()
    ours, exact = (loss(logits, torch.tensor([0])).sum for logits in (narrow, wide))
    torch.testing.assert_close(ours, exact, rtol=0, atol=0)
    (gradient,), (expected,) = torch.autograd.grad(ours, narrow), torch.autograd.grad(exact, wide)
    torch.testing.assert_close(gradient, expected.bfloat16(), rtol=0, atol=0)


def test_squared_error_is_torchs_and_leaves_out_what_is_no_number():
    rng = torch.Generator().manual_seed(0)
    outputs = torch.randn(5, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(5, 3, generator=rng, dtype=torch.float64)
    loss = squared_error(outputs, targets)
    torch.testing.assert_close(loss.mean, F.mse_loss(outputs, targets), rtol=1e-12, atol=0)
    targets[1, 2] = float("nan")
    loss = squared_error(outputs, targets)
    gradient = torch.autograd.grad(loss.sum, outputs)[0]
    assert loss.count == 14
    torch.testing.assert_close(gradient, (2 * (outputs - targets)).nan_to_num(0.0), rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="no target"):
        squared_error(outputs, torch.full_like(targets, float("nan")))


class Table(nn.Module):
    """The smallest model: hidden states by position id, any head."""

    def __init__(self, head):
        super().__init__()
        self.embed = nn.Embedding(V, E, dtype=torch.float64)
        self.head = head

    def forward(self, tokens):
        return Output(hidden=self.embed(tokens), head=self.head)


@pytest.mark.parametrize("wrap", [lambda head: head, lambda head: head.forward], ids=["linear", "callable"])
def test_only_marked_positions_carry_loss(wrap):
    torch.manual_seed(0)
    head = nn.Linear(E, V, dtype=torch.float64)
    model = Table(head)
    model.__dict__["head"] = wrap(model._modules.pop("head"))
    tokens, targets = torch.randint(V, (3, 4)), torch.randint(V, (3, 4))
    targets[0, 1:] = IGNORE
    loss = Supervise(label_smoothing=0.2).loss(model, {"tokens": tokens, "targets": targets})
    logits = model(tokens).logits.flatten(0, 1)
    expected = F.cross_entropy(logits, targets.flatten(), label_smoothing=0.2, ignore_index=IGNORE, reduction="none")
    torch.testing.assert_close(loss.sum, expected[targets.flatten() != IGNORE].sum(), rtol=1e-12, atol=0)
    assert loss.count == 9
    torch.testing.assert_close(loss.mean, loss.sum / 9)


def test_focal_training_takes_any_head():
    torch.manual_seed(0)
    model = Table(nn.Linear(E, V, dtype=torch.float64))
    batch = {"tokens": torch.randint(V, (3, 4)), "targets": torch.randint(V, (3, 4))}
    loss = Supervise(label_smoothing=0.0, focal_gamma=2.0).loss(model, batch)
    expected = focal(model(batch["tokens"]).logits.flatten(0, 1), batch["targets"].flatten(), 2.0)
    torch.testing.assert_close(loss.sum, expected.sum, rtol=1e-12, atol=0)


class Dropped(Table):
    """As Table, with dropout before its head."""

    def forward(self, tokens):
        return Output(hidden=F.dropout(self.embed(tokens), 0.5, self.training), head=self.head)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_two_passes_agree_as_in_r_drop(smoothing):
    torch.manual_seed(0)
    model = Dropped(nn.Linear(E, V, dtype=torch.float64))
    tokens, targets = torch.randint(V, (3, 4)), torch.randint(V, (3, 4))
    targets[1, 2:] = IGNORE
    torch.manual_seed(1)
    loss = Supervise(smoothing, consistency=3.0).loss(model, {"tokens": tokens, "targets": targets})
    torch.manual_seed(1)
    logits = model(tokens.repeat_interleave(2, dim=0)).logits
    kept = targets != IGNORE
    p, q = logits[::2][kept], logits[1::2][kept]
    said = sum(F.cross_entropy(each, targets[kept], label_smoothing=smoothing, reduction="sum") for each in (p, q))
    apart = sum(
        F.kl_div(one.log_softmax(-1), other.log_softmax(-1), log_target=True, reduction="sum")
        for one, other in ((p, q), (q, p))
    )
    assert apart > 0.1
    torch.testing.assert_close(loss.sum, (said + 3 / 2 * apart) / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.parts["divergence"], apart.detach(), rtol=1e-12, atol=0)
    assert loss.count == 10


@pytest.mark.parametrize("objective", [Supervise(0.1, consistency=4.0), Supervise(0.0, focal_gamma=2.0)])
def test_under_autocast_the_loss_is_in_float32(objective):
    torch.manual_seed(0)
    model = Dropped(nn.Linear(E, V)).float().train()
    batch = {"tokens": torch.randint(V, (3, 4)), "targets": torch.randint(V, (3, 4))}
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batch["tokens"]).logits.dtype == torch.bfloat16
        loss = objective.loss(model, batch)
    assert {loss.sum.dtype, *(part.dtype for part in loss.parts.values())} == {torch.float32}


def test_without_dropout_two_passes_say_what_one_does(monkeypatch):
    monkeypatch.setattr(supervise, "CHUNK", 5)
    torch.manual_seed(0)
    model = Table(nn.Linear(E, V, dtype=torch.float64)).train()
    batch = {"tokens": torch.randint(V, (3, 4)), "targets": torch.randint(V, (3, 4))}
    one, two = (Supervise(0.1, consistency=weight).loss(model, batch) for weight in (0.0, 3.0))
    torch.testing.assert_close(one.sum, two.sum, rtol=1e-12, atol=0)
    assert two.parts["divergence"] == 0
    wanted = [*model.parameters()]
    for a, b in zip(*(torch.autograd.grad(loss.sum, wanted) for loss in (one, two)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_one_pass_validates():
    torch.manual_seed(0)
    model = Dropped(nn.Linear(E, V, dtype=torch.float64)).eval()
    batch = {"tokens": torch.randint(V, (3, 4)), "targets": torch.randint(V, (3, 4))}
    one, two = (Supervise(0.1, consistency=weight).loss(model, batch) for weight in (0.0, 3.0))
    assert torch.equal(one.sum, two.sum)
    assert one.parts.keys() == two.parts.keys()


def test_wrong_values():
    with pytest.raises(ConfigError, match="consistency"):
        Supervise(consistency=-1.0)
    with pytest.raises(ConfigError, match="label_smoothing"):
        Supervise(label_smoothing=1.0)
    with pytest.raises(ConfigError, match="focal_gamma"):
        Supervise(label_smoothing=0.0, focal_gamma=-1.0)
    with pytest.raises(ConfigError, match="set objective"):
        Supervise(focal_gamma=2.0)


def test_no_target_is_an_error():
    model = Table(nn.Linear(E, V, dtype=torch.float64))
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(InputError, match="no target"):
        Supervise().loss(model, {"tokens": tokens, "targets": torch.full_like(tokens, IGNORE)})
