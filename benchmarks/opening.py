"""Opening a checkpoint of 500 MB whose file is in the disk cache: seconds, and those of merely reading the file."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import regard
from regard.models.transformer import TransformerConfig

CONFIG = TransformerConfig(vocab_size=32_000, embed_dim=768, ffn_dim=3072, num_heads=12)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        regard.save(regard.build(CONFIG), folder)
        file = Path(folder, "model.safetensors")
        began = time.perf_counter()
        size = len(file.read_bytes())
        reading = time.perf_counter() - began
        regard.load(folder)  # imports are nobody's speed
        began = time.perf_counter()
        regard.load(folder)
        opening = time.perf_counter() - began
    print(json.dumps({"benchmark": "opening", "megabytes": size / 1e6, "seconds": opening, "read_seconds": reading}))


if __name__ == "__main__":
    main()
