"""Training speed and losses: the same MarianMT architecture, weights and batches, here and in transformers.

``--check`` compares 50 losses in float32 without dropout; without it, tokens per second with dropout 0.1, ours in the
precision that a recipe has unless told otherwise. The other side is transformers' model and label smoother with torch's
fused AdamW, in float32, as its Trainer has it unless told otherwise, in a lean loop: no slower than its Trainer.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch

from regard import zoo
from regard.core.types import IGNORE
from regard.models.transformer import PUBLISHED
from regard.objectives.supervise import Supervise
from regard.recipes import find
from regard.train.fit import Run
from regard.train.precision import PrecisionName
from regard.train.schedule import vaswani

SMOOTHING, CLIP = 0.1, 1.0


def recipe(dropout: float, data: str | None, precision: PrecisionName) -> Any:
    """The ``translate_small`` recipe with a published model's details, so that both sides can build it."""
    base = find("translate_small")
    published = {name: getattr(PUBLISHED, name) for name in ("norm_order", "position_layout", "logits_bias")}
    model = dataclasses.replace(base.model, dropout=dropout, **published)
    text = dataclasses.replace(base.data, train=data)
    return dataclasses.replace(
        base, model=model, data=text, objective=Supervise(SMOOTHING), average=0.0, clip_norm=CLIP,
        schedule=vaswani(model.embed_dim), precision=precision,
    )  # fmt: skip


def train_ours(run: Run, batches: list[Any]) -> tuple[list[float], list[float]]:
    """The library's own step, as ``regard train`` takes it."""
    losses, seconds = [], []
    for batch in batches:
        began = time.perf_counter()
        run.step(iter([batch]))
        seconds.append(time.perf_counter() - began)
        losses.append(run.progress.window["loss"] / run.progress.window["targets"])
        run.progress.window = {}
    return losses, seconds


def train_theirs(folder: Path, batches: list[Any], plan: Any) -> tuple[list[float], list[float]]:
    """transformers' model, its label smoother, torch's fused AdamW (by default at 1e-3) and clipping."""
    from transformers import MarianMTModel
    from transformers.trainer_pt_utils import LabelSmoother

    model = MarianMTModel.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=plan.optimizer.betas, eps=plan.optimizer.eps, weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: plan.schedule(done + 1, len(batches)) / 1e-3)
    smoother = LabelSmoother(SMOOTHING)
    losses, seconds = [], []
    for batch in batches:
        began = time.perf_counter()
        outputs = model(
            input_ids=batch["tokens"], attention_mask=batch["valid"].long(), decoder_input_ids=batch["decoder_tokens"]
        )
        loss = smoother(outputs, batch["targets"].clone())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        seconds.append(time.perf_counter() - began)
    return losses, seconds


def side(name: str, steps: int, dropout: float, data: str | None, precision: PrecisionName) -> dict[str, Any]:
    """Train one side; its losses, and its tokens per second over all but the first five steps."""
    plan = recipe(dropout, data, precision)
    task = plan.data.open()
    plan = dataclasses.replace(plan, model=task.configure(plan.model))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(plan, task, Path(folder))
        batches = list(itertools.islice(run.loader, steps))
        zoo.save(run.model, Path(folder) / "start", layout="hf")
        if name == "regard":
            losses, seconds = train_ours(run, batches)
        else:
            losses, seconds = train_theirs(Path(folder) / "start", batches, plan)
    tokens = [int(b["valid"].sum() + (b["targets"] != IGNORE).sum()) for b in batches]
    return {"losses": losses, "tokens_per_second": sum(tokens[5:]) / sum(seconds[5:])}


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--check", action="store_true", help="compare losses instead of speed")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--data", help="parallel text to train on; the embedded phrases unless given")
    parser.add_argument("--precision", default="auto", choices=("auto", "float32"), help="of our side")
    options = parser.parse_args()
    dropout = 0.0 if options.check else 0.1
    precision: PrecisionName = "float32" if options.check else options.precision
    if options.side:
        print(json.dumps(side(options.side, options.steps, dropout, options.data, precision)))
        return
    facts = {
        "model": "translate_small recipe, post-norm",
        "steps": options.steps,
        "dropout": dropout,
        "precision": precision,
    }
    rounds = 1 if options.check else options.rounds
    result = harness.compare("train", "tokens_per_second", "regard", "transformers", rounds, options.threads, **facts)
    if options.check:
        ours, theirs = (each["losses"] for each in result["last"])
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        print(json.dumps({"benchmark": "train losses", "steps": options.steps, "largest_difference": worst}))
        if worst > 1e-4:
            raise SystemExit(f"losses differ by {worst:g}, more than 1e-4")


if __name__ == "__main__":
    main()
