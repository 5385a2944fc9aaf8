"""Beam-4 translation: sentences per second here and in transformers' generate; same weights, batches and output.

6 + 6 layers of 512 with random weights, so that every translation runs to its limit: what is measured is the cost of a
step. (Trained weights end sentences at different steps, and finished ones leave the batch here: the ratio grows.)
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

from regard import zoo
from regard.blocks.packed import pack
from regard.generate.beam import Beam
from regard.generate.front import generate
from regard.models.transformer import TransformerConfig

BEAMS, VOCAB, PAD, EOS = 4, 32_000, 0, 2
CONFIG = TransformerConfig(
    vocab_size=VOCAB, position_layout="half", logits_bias=True, pad_token=PAD, bos_token=PAD, eos_token=EOS
)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Sources of 8 to 30 tokens, sorted by length, 32 at a time."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(8, 31, (count,), generator=generator).sort().values
    made = []
    for some in lengths.split(32):
        valid = torch.arange(int(some.max())) < some[:, None]
        tokens = torch.randint(3, VOCAB, valid.shape, generator=generator)
        made.append((torch.where(valid, tokens, PAD), valid))
    return made


def translate_ours(folder: Path, sources: list[tuple[Tensor, Tensor]], limit: int) -> list[list[int]]:
    """What ``regard predict`` does with a batch."""
    model = pack(zoo.load(folder))
    answers = []
    for tokens, valid in sources:
        start = torch.full((len(tokens), 1), PAD)
        inputs = {"tokens": tokens, "valid": valid}
        found = generate(model, start, inputs=inputs, method=Beam(BEAMS), stop=[EOS], max_tokens=limit)  # type: ignore[arg-type]
        answers += [answer.tokens for answer in found]
    return answers


def translate_theirs(folder: Path, sources: list[tuple[Tensor, Tensor]], limit: int) -> list[list[int]]:
    """transformers' generate, as its users call it."""
    from transformers import MarianMTModel

    model = MarianMTModel.from_pretrained(folder).eval()
    model.generation_config.forced_eos_token_id = None
    answers = []
    for tokens, valid in sources:
        found = model.generate(
            input_ids=tokens, attention_mask=valid.long(), num_beams=BEAMS, max_new_tokens=limit, do_sample=False
        )
        answers += [row[1:].tolist() for row in found]
    return answers


def side(name: str, count: int, limit: int) -> dict[str, Any]:
    """Translate on one side; sentences per second, the model's loading left in on both sides, and the translations."""
    with tempfile.TemporaryDirectory() as folder:
        zoo.save(zoo.build(CONFIG, seed=0), folder, layout="hf")
        translate = translate_ours if name == "regard" else translate_theirs
        translate(Path(folder), batches(1), 2)  # imports and first calls are nobody's speed
        began = time.perf_counter()
        answers = translate(Path(folder), batches(count), limit)
        return {"sentences_per_second": count / (time.perf_counter() - began), "answers": answers}


def main() -> None:
    parser = harness.options(__doc__)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--limit", type=int, default=24, help="tokens of a translation")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side, options.sentences, options.limit)))
        return
    facts = {"model": "6 + 6 layers of 512, V=32000, float32", "sentences": options.sentences, "beams": BEAMS}
    result = harness.compare(
        "beam", "sentences_per_second", "regard", "transformers", options.rounds, options.threads, **facts
    )
    ours, theirs = (each["answers"] for each in result["last"])
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(json.dumps({"benchmark": "beam answers", "sentences": len(ours), "identical": same}))


if __name__ == "__main__":
    main()
