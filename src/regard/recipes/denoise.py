"""Denoising with an encoder-decoder."""

from regard.models.transformer import TransformerConfig
from regard.objectives.denoise import Denoise
from regard.tasks.denoise import SpoiltText
from regard.train.optimize import Optimizer
from regard.train.recipe import Recipe
from regard.train.schedule import Schedule


def denoise() -> Recipe:
    """A tiny model for two cores; without data it learns to restore Python's reference."""
    model = TransformerConfig(
        vocab_size=0, embed_dim=128, ffn_dim=512, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
        norm_order="pre", dropout=0.1,
    )  # fmt: skip
    return Recipe(
        model=model,
        data=SpoiltText(vocab_size=2000, max_tokens=4096),
        objective=Denoise(),
        optimizer=Optimizer("adamw", betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01),
        schedule=Schedule("linear", lr=2e-3, warmup=200),
        num_steps=2000,
        average=0.99,
        valid_every=200,
    )
