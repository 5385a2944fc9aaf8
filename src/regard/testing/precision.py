"""D. Kernels and precision: every way to compute is the same function, and what must be wide is wide."""

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from regard.attention.attention import Attention
from regard.attention.kernel import KERNELS
from regard.core.errors import Unsupported
from regard.testing.inputs import Rows, alone, answers, batch, draw, probe, same, scores
from regard.testing.report import Failure, NotApplicable, require
from regard.testing.subject import Subject

WIDE = ("_softmax", "_log_softmax", "logsumexp", "exp", "rsqrt", "mean", "var", "var_mean", "cos", "sin")
"""What is computed in float32 at least: statistics, softmax, angles. (Fused norms are so within.)"""


def kernels_agree(subject: Subject) -> str | None:
    """Every exact attention kernel gives eager's answers (D18); flex, slow as it is, on the tiny one."""
    refused = {}
    for which, model in subject.models.items():
        rows = draw(model)
        expected = _with_kernel(model, "eager", rows)
        for name in KERNELS if model is subject.exact else KERNELS.keys() - {"flex"}:
            try:
                same(_with_kernel(model, name, rows), expected, f"{which}, kernel {name} against eager")
            except Unsupported as reason:
                refused[name] = str(reason)
    return "; ".join(f"{name} refuses: {reason}" for name, reason in refused.items()) or None


def gradients_of_kernels_agree(subject: Subject) -> None:
    """Where a kernel has gradients, they are eager's (D18)."""
    expected = _gradients(subject, "eager")
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name in KERNELS:
        try:
            found = _gradients(subject, name)
        except Unsupported:
            continue
        for parameter, gradient in found.items():
            off = float((gradient - expected[parameter]).abs().max())
            require(
                off <= 1e-9 * scale,
                f"kernel {name}, gradient of '{parameter}': off by {off:.3g}, the limit is 1e-9 of {scale:.3g}",
            )


def grouped_heads_are_repeated_heads(subject: Subject) -> None:
    """Heads that share keys and values answer as heads with copies of them (D19)."""
    grouped = _each_attention(subject.exact, _group)
    repeated = _each_attention(grouped, _repeat)
    rows = draw(grouped)
    same(answers(grouped, rows, "right"), answers(repeated, rows, "right"), "grouped against repeated heads")


def low_precision_drifts_little(subject: Subject) -> str:
    """In bfloat16 every answer is finite and within a tenth of the scale of the exact one; the drift is told (D20)."""
    rows = draw(subject.exact)
    expected = alone(subject.exact, rows)
    narrow = copy.deepcopy(subject.exact).to(torch.bfloat16)
    with torch.no_grad():
        kind = scores(narrow(**batch(rows, "right"))).dtype
    require(kind == torch.bfloat16, f"a bfloat16 model answers in {kind}")
    said = [each.double() for each in answers(narrow, rows, "right")]
    same(said, expected, "bfloat16 against float64", 0.1)
    drift = max(float((a - b).abs().max()) for a, b in zip(said, expected, strict=True))
    return f"bfloat16 drifts by {drift / max(float(each.abs().max()) for each in expected):.1%} of the logit scale"


def statistics_are_wide(subject: Subject) -> None:
    """In a bfloat16 model softmax, norms' statistics and rotary angles are computed in float32 at least (D20)."""
    model = subject.build(torch.bfloat16, kernel="eager")
    with torch.no_grad(), _Narrow() as narrow:
        model(**batch(draw(model), "right"))
    require(not narrow.found, f"computed in {', '.join(sorted(narrow.found))}; float32 at least is promised")


def autocast_keeps_weights_wide(subject: Subject) -> None:
    """Under bfloat16 autocast answers and gradients are finite, and gradients have the type of the weights (D21)."""
    model = subject.steady(torch.float32)
    inputs = batch(draw(model), "right")
    with torch.autocast(subject.device.type, torch.bfloat16):
        hidden = model(**inputs).hidden
        probe(hidden).sum().backward()
    same(hidden.detach().float(), model(**inputs).hidden.detach(), "autocast against float32", 0.1)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            require(parameter.grad.dtype == torch.float32, f"the gradient of '{name}' is {parameter.grad.dtype}")
            require(bool(parameter.grad.isfinite().all()), f"the gradient of '{name}' is not finite")


def compiles_whole(subject: Subject) -> None:
    """torch.compile takes the model as one graph, for any batch and length, and its answers are the same (D22)."""
    with _compiler(), torch.no_grad():
        model, graphs = _Scores(subject.shallow()), []

        def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
        for arguments in _sizes(subject):
            same(compiled(*arguments), model(*arguments), "compiled")
        require(len(graphs) == 1, f"another size is compiled anew: {len(graphs)} graphs for 2 sizes")


def exports_whole(subject: Subject) -> None:
    """torch.export takes the model with dynamic batch and lengths, and its answers are the same (D22)."""
    with _compiler(), torch.no_grad():
        model = _Scores(subject.shallow())
        first, *others = _sizes(subject)
        rows, longest = torch.export.Dim("rows"), getattr(subject.tiny, "max_seq_len", None)
        lengths = [torch.export.Dim(f"length_{i}", max=longest) for i in range(len(first) // 2) for _ in range(2)]
        shapes = tuple({0: rows, 1: length} for length in lengths)
        exported = torch.export.export(model, tuple(first), dynamic_shapes=(shapes,)).module()
        for arguments in others:
            same(exported(*arguments), model(*arguments), "exported")


class _Narrow(TorchDispatchMode):
    """Collects which of WIDE are asked of numbers narrower than float32."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WIDE and args[0].is_floating_point() and args[0].dtype.itemsize < 4:
            self.found.add(f"{name.strip('_')} of {args[0].dtype}")
        return func(*args, **(kwargs or {}))


class _Scores(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.names = model, list(batch(draw(model), "right"))

    def forward(self, *arguments: Tensor) -> Tensor:
        return scores(self.model(**dict(zip(self.names, arguments, strict=True))))


def _sizes(subject: Subject) -> list[list[Tensor]]:
    """The same inputs in two sizes, padded."""
    rows = draw(subject.exact)
    fewer: Rows = {name: [row[:-1] for row in each[:2]] for name, each in rows.items()}
    return [list(batch(each, "right").values()) for each in (rows, fewer)]


@contextmanager
def _compiler() -> Iterator[None]:
    """What the compiler has kept is forgotten before and after; a part it cannot take is a failure."""
    torch._dynamo.reset()
    logging.disable()  # the compiler would print whole graphs
    try:
        yield
    except (
        torch._dynamo.exc.TorchDynamoException,
        torch.fx.experimental.symbolic_shapes.ConstraintViolationError,
    ) as error:
        raise Failure(" ".join(str(error).split())[:300]) from None
    finally:
        logging.disable(logging.NOTSET)
        torch._dynamo.reset()


def _with_kernel(model: Any, name: str, rows: Rows) -> list[Tensor]:
    with _kernel(model, name):
        return answers(model, rows, "interior")


def _gradients(subject: Subject, kernel: str) -> dict[str, Tensor]:
    model = subject.exact
    with _kernel(model, kernel):
        loss = probe(model(**batch(draw(model), "right")).hidden).sum()
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


@contextmanager
def _kernel(model: nn.Module, name: str) -> Iterator[None]:
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    if not attentions:
        raise NotApplicable("the model has no attention of this library")
    before = [module.kernel for module in attentions]
    for module in attentions:
        module.kernel = name  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, kernel in zip(attentions, before, strict=True):
            module.kernel = kernel


def _each_attention(model: nn.Module, change: Any) -> Any:
    """A copy of ``model`` with every attention changed."""
    changed = copy.deepcopy(model)
    for module in changed.modules():
        if isinstance(module, Attention):
            change(module)
    return changed


def _group(attention: Attention) -> None:
    """Keep the keys and values of the first head only, for all heads to share."""
    _choose(attention, [0])


def _repeat(attention: Attention) -> None:
    """Give every head its own copy of the keys and values that it shared."""
    share = attention.num_heads // attention.num_kv_heads
    _choose(attention, [head // share for head in range(attention.num_heads)])


def _choose(attention: Attention, heads: Sequence[int]) -> None:
    attention.num_kv_heads = len(heads)
    for linear in (attention.k, attention.v):
        for name, parameter in linear.named_parameters():
            parts = parameter.detach().unflatten(0, (-1, attention.head_dim))
            setattr(linear, name, nn.Parameter(parts[list(heads)].flatten(0, 1)))


CHECKS = (
    kernels_agree,
    gradients_of_kernels_agree,
    grouped_heads_are_repeated_heads,
    low_precision_drifts_little,
    statistics_are_wide,
    autocast_keeps_weights_wide,
    compiles_whole,
    exports_whole,
)
