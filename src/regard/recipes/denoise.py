"""Denoising with an encoder-decoder."""

from dataclasses import replace

from regard.objectives.denoise import Denoise
from regard.recipes.spans import spans
from regard.recipes.summarize import summarize
from regard.tasks.denoise import SpoiltText
from regard.train.recipe import Recipe


def denoise() -> Recipe:
    """As spans, with the model of summarize, which may begin with it; without data it learns to restore texts."""
    data = SpoiltText(vocab_size=2000, max_tokens=4096)
    return replace(spans(), model=summarize().model, data=data, objective=Denoise())
