"""Training speed of one decoder of 30M parameters: here, in transformers' Trainer, x-transformers, and torch alone.

Eight pre-norm layers of 512 with 8 heads, 2,048 inside, learned positions and a tied head over 8,192 ids; a step is 8
rows of 256 random ids, AdamW (torch's fused one for all) and clipping at 1. Ours is the step of ``regard train``. The
peers are at their best: SDPA, tanh GELU as one kernel, no cache, whole models compiled with their loss. The modes have
no dropout, but for ``default``: each as its users run it, with dropout 0.1; transformers eager in float32, ours eager
in the precision that a recipe has unless told otherwise.

Each case is a process of its own, and those of a round follow each other, with the machine's GEMM peak; what is quoted
is the median over rounds of the ratio to ours. ``share`` is the arithmetic of a step (6 operations for a parameter and
token, and attention's) by its time and the GEMM peak of its type.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import harness
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LR, CLIP = 3e-4, 1.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the model and of a batch."""

    vocab_size: int = 8192
    embed_dim: int = 512
    num_layers: int = 8
    num_heads: int = 8
    rows: int = 8
    length: int = 256

    @property
    def ffn_dim(self) -> int:
        return 4 * self.embed_dim

    def flops(self, parameters: int) -> float:
        """Operations of a step (Kaplan et al. 2020, section 2.1, and attention's half that is not masked)."""
        attention = 6 * self.num_layers * self.length * self.embed_dim
        return self.rows * self.length * (6.0 * parameters + attention)


@dataclass(frozen=True)
class Mode:
    """How a side is run."""

    bf16: bool = False
    compiled: bool = False
    dropout: float = 0.0
    default: bool = False


MODES = {
    "float32": Mode(),
    "bf16": Mode(bf16=True),
    "float32-compiled": Mode(compiled=True),
    "bf16-compiled": Mode(bf16=True, compiled=True),
    "default": Mode(dropout=0.1, default=True),
}
QUICK = Shape(vocab_size=64, embed_dim=32, num_layers=2, num_heads=2, rows=2, length=16)


def rows_of_ids(shape: Shape, count: int) -> list[Tensor]:
    """``count`` batches [rows, length + 1], the same for every side."""
    generator = torch.Generator().manual_seed(0)
    size = (shape.rows, shape.length + 1)
    return [torch.randint(shape.vocab_size, size, generator=generator) for _ in range(count)]


class Clock:
    """When steps ended, after the first ``warm_up`` of them, in seconds and in the processor's."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.steps, self.marks = warm_up, 0, list[tuple[float, float]]()

    def tick(self) -> None:
        """A step has ended."""
        self.steps += 1
        if self.steps >= self.warm_up:
            self.marks.append((time.perf_counter(), time.process_time()))

    def read(self) -> dict[str, float]:
        """The median of the steps' seconds, and the mean of the processor's."""
        seconds = [after[0] - before[0] for before, after in itertools.pairwise(self.marks)]
        processor = (self.marks[-1][1] - self.marks[0][1]) / len(seconds)
        return {"seconds": statistics.median(seconds), "processor_seconds": processor}


def next_ids(rows: list[Tensor]) -> dict[str, Tensor]:
    """A batch in which each id but the last is read, and the one after it to be said."""
    ids = torch.stack(rows)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


def regard(shape: Shape, mode: Mode, batches: list[Tensor], clock: Clock) -> tuple[nn.Module, float]:
    """Run the library's own step on a task that has no data of its own."""
    from regard.data.loader import Loader
    from regard.models.gpt2 import GPT2Config
    from regard.objectives.supervise import Supervise
    from regard.tasks.language import PlainText
    from regard.train.fit import Run, default_device
    from regard.train.memory import settle_memory
    from regard.train.optimize import Optimizer
    from regard.train.precision import resolve
    from regard.train.recipe import Recipe
    from regard.train.schedule import Schedule

    settle_memory()
    precision = "auto" if mode.default else "bfloat16" if mode.bf16 else "float32"
    recipe = Recipe(
        model=GPT2Config(
            vocab_size=shape.vocab_size, embed_dim=shape.embed_dim, ffn_dim=shape.ffn_dim, num_heads=shape.num_heads,
            num_layers=shape.num_layers, max_seq_len=shape.length, dropout=mode.dropout, embed_dropout=mode.dropout,
            attn_dropout=mode.dropout, bos_token=None, eos_token=None,
        ),
        data=PlainText(),
        objective=Supervise(label_smoothing=0.0),
        optimizer=Optimizer("adamw", betas=(0.9, 0.999), eps=1e-8),
        schedule=Schedule("linear", lr=LR, warmup=1),
        num_steps=len(batches) + 1,
        clip_norm=CLIP,
        average=0.0,
        compile=mode.compiled,
        precision=resolve(precision, default_device()),
    )  # fmt: skip
    rows = list(torch.cat(batches))
    sizes = [[shape.length]] * len(rows)
    loader = Loader(rows, sizes, next_ids, max_tokens=shape.rows * shape.length)
    task: Any = SimpleNamespace(loader=lambda **_: loader, validation=list)
    run = Run(recipe, task, Path("unused"))
    feed = iter(loader)
    for _ in batches:
        run.step(feed)
        clock.tick()
    return run.model, run.progress.window["loss"] / run.progress.window["targets"]


def transformers(shape: Shape, mode: Mode, batches: list[Tensor], clock: Clock) -> tuple[nn.Module, float]:
    """GPT-2 and the Trainer."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Ticks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

    quick = {} if mode.default else {"activation_function": "gelu_pytorch_tanh", "use_cache": False}
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_embd=shape.embed_dim, n_layer=shape.num_layers, n_head=shape.num_heads,
        n_positions=shape.length, resid_pdrop=mode.dropout, embd_pdrop=mode.dropout, attn_pdrop=mode.dropout,
        bos_token_id=None, eos_token_id=None, **quick,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    rows = [{"input_ids": row, "labels": row} for ids in batches for row in ids[:, :-1]]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=shape.rows, max_steps=len(batches), learning_rate=LR,
            max_grad_norm=CLIP, bf16=mode.bf16, torch_compile=mode.compiled, use_cpu=True, report_to="none",
            save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        done = Trainer(model, settings, train_dataset=rows, callbacks=[Ticks()]).train()  # type: ignore[arg-type]
    return model, done.training_loss


def loop(model: nn.Module, mode: Mode, batches: list[Tensor], clock: Clock) -> tuple[nn.Module, float]:
    """The loop that a user of a bare model, from tokens to logits, writes."""

    def forward(ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    learner = torch.compile(forward) if mode.compiled else forward
    losses = []
    for ids in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode.bf16):
            loss = learner(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        clock.tick()
    return model, statistics.mean(losses)


def x_transformers(shape: Shape, mode: Mode, batches: list[Tensor], clock: Clock) -> tuple[nn.Module, float]:
    """x-transformers' decoder; its projections have no biases in attention."""
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.embed_dim, depth=shape.num_layers, heads=shape.num_heads,
        attn_dim_head=shape.embed_dim // shape.num_heads, attn_flash=True, attn_dropout=mode.dropout,
        ff_dropout=mode.dropout,
    )  # fmt: skip
    model = TransformerWrapper(
        num_tokens=shape.vocab_size, max_seq_len=shape.length, attn_layers=layers, tie_embedding=True,
        emb_dropout=mode.dropout,
    )  # fmt: skip
    return loop(model, mode, batches, clock)


class Encoder(nn.Module):
    """nn.TransformerEncoder under a causal mask, with embeddings and a tied head."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.embed_dim)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.positions = nn.Embedding(shape.length, shape.embed_dim)
        layer = nn.TransformerEncoderLayer(
            shape.embed_dim, shape.num_heads, shape.ffn_dim, dropout, functools.partial(F.gelu, approximate="tanh"),
            batch_first=True, norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(
            layer, shape.num_layers, nn.LayerNorm(shape.embed_dim), enable_nested_tensor=False
        )
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(shape.length))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight
        return F.linear(self.layers(x, mask=self.mask, is_causal=True), self.tokens.weight)


def torch_alone(shape: Shape, mode: Mode, batches: list[Tensor], clock: Clock) -> tuple[nn.Module, float]:
    """torch's own layers."""
    return loop(Encoder(shape, mode.dropout), mode, batches, clock)


Side = Callable[[Shape, Mode, list[Tensor], Clock], tuple[nn.Module, float]]
SIDES: dict[str, Side] = {
    "regard": regard,
    "transformers": transformers,
    "x_transformers": x_transformers,
    "torch": torch_alone,
}
NEEDS = {"transformers": ("transformers", "accelerate"), "x_transformers": ("x_transformers",)}
"""The packages that a side is left out without."""


def peak() -> dict[str, float]:
    """FLOP/s of this machine's fastest product of two matrices, by type."""
    from regard.explain.profile import peak as fastest

    kinds = {"float32": torch.float32, "bf16": torch.bfloat16}
    return {name: fastest(kind, torch.device("cpu"), times=20) for name, kind in kinds.items()}


def measure(name: str, shape: Shape, steps: int, warm_up: int) -> dict[str, Any]:
    """Run the case ``mode/side``, or the peak."""
    if name == "peak":
        return peak()
    mode, side = name.split("/")
    torch.manual_seed(0)
    clock = Clock(warm_up)
    model, loss = SIDES[side](shape, MODES[mode], rows_of_ids(shape, warm_up + steps), clock)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    measured = clock.read()
    return measured | {
        "tokens_per_second": shape.rows * shape.length / measured["seconds"],
        "flops": shape.flops(parameters) / measured["seconds"],
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "parameters": parameters,
        "loss": loss,
    }


def compare(modes: list[str], sides: list[str], rounds: int, threads: int) -> list[dict[str, Any]]:
    """All cases in turn, ``rounds`` times; one line for each that a mode and a side make."""
    cases = [f"{mode}/{side}" for mode in modes for side in sides if mode != "default" or side in DEFAULT]
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        found.append({name: harness.run_side(name, threads) for name in ("peak", *cases)})
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    lines = []
    for case in cases:
        mode, side = case.split("/")
        kind = "bf16" if "bf16" in mode or (mode == "default" and side == "regard") else "float32"
        each = [dict(peak=turn["peak"][kind], ours=turn[f"{mode}/regard"], **turn[case]) for turn in found]

        def median(of: Callable[[dict[str, Any]], float], each: list[dict[str, Any]] = each) -> float:
            return statistics.median(map(of, each))

        line = {
            "benchmark": "decoder", "mode": mode, "side": side,
            "tokens_per_second": median(lambda turn: turn["tokens_per_second"]),
            "regard_is_faster": median(lambda turn: turn["ours"]["tokens_per_second"] / turn["tokens_per_second"]),
            "regard_takes_less_processor": median(
                lambda turn: turn["processor_seconds"] / turn["ours"]["processor_seconds"]
            ),
            "share": median(lambda turn: turn["flops"] / turn["peak"]),
            "peak_flops": median(lambda turn: turn["peak"]),
            "peak_memory": median(lambda turn: turn["peak_memory"]),
            "parameters": each[0]["parameters"], "loss": each[0]["loss"],
            "rounds": [turn["tokens_per_second"] for turn in each], "threads": threads, "torch": torch.__version__,
        }  # fmt: skip
        print(json.dumps(line), flush=True)
        lines.append(line)
    return lines


DEFAULT = ("regard", "transformers")
"""Who has a way to be run by default."""


def table(lines: list[dict[str, Any]]) -> None:
    """The lines for people, on stderr."""
    print(f"{'mode':17} {'side':15} {'tokens/s':>9} {'regard is':>10} {'processor':>10} {'share':>6} {'memory':>8}",
          file=sys.stderr)  # fmt: skip
    for line in lines:
        print(
            f"{line['mode']:17} {line['side']:15} {line['tokens_per_second']:9,.0f} {line['regard_is_faster']:9.2f}x "
            f"{line['regard_takes_less_processor']:9.2f}x {line['share']:6.0%} {line['peak_memory'] / 1e6:5,.0f} MB",
            file=sys.stderr,
        )


def main() -> None:
    parser = harness.options(__doc__)
    parser.set_defaults(rounds=3)  # a quarter of an hour each
    parser.add_argument("--mode", action="append", choices=MODES, help="one of them; may be repeated (default: all)")
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured, of each case and round")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that everything runs")
    options = parser.parse_args()
    if options.side:
        shape = QUICK if options.quick else Shape()
        print(json.dumps(measure(options.side, shape, options.steps, options.warm_up)))
        return
    sides = [side for side in SIDES if all(map(importlib.util.find_spec, NEEDS.get(side, ())))]
    lines = compare(options.mode or list(MODES), sides, options.rounds, options.threads)
    table(lines)


if __name__ == "__main__":
    main()
