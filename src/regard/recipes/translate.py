"""Translation with the 2017 Transformer."""

from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.tasks.several import ParallelTexts
from regard.tasks.translate import ParallelText
from regard.train.recipe import Recipe
from regard.train.schedule import Schedule, vaswani


def translate() -> Recipe:
    """A tiny model for two cores; without data it learns phrases, in under four minutes."""
    model = TransformerConfig(
        vocab_size=0, embed_dim=128, ffn_dim=512, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
        norm_order="pre", dropout=0.1,
    )  # fmt: skip
    data = ParallelText(vocab_size=2000, max_tokens=2048)
    return _two_cores(model, data, Schedule("linear", lr=3e-3, warmup=200), num_steps=2000, average=0.99)


def translate_small() -> Recipe:
    """A small model for two cores and tens of thousands of real sentences, in half an hour."""
    model = TransformerConfig(
        vocab_size=0, embed_dim=256, ffn_dim=1024, num_heads=4, num_encoder_layers=3, num_decoder_layers=3,
        norm_order="pre", dropout=0.3,
    )  # fmt: skip
    data = ParallelText(vocab_size=6000, max_tokens=3000)
    return _two_cores(model, data, Schedule("linear", lr=2e-3, warmup=500), num_steps=4000, average=0.998)


def translate_many() -> Recipe:
    """The tiny model for several pairs of languages at once; without data it learns phrases in three of them."""
    model = TransformerConfig(
        vocab_size=0, embed_dim=128, ffn_dim=512, num_heads=4, num_encoder_layers=2, num_decoder_layers=2,
        norm_order="pre", dropout=0.1,
    )  # fmt: skip
    data = ParallelTexts(vocab_size=3000, max_tokens=2048, num_scored=100)
    return _two_cores(model, data, Schedule("linear", lr=3e-3, warmup=200), num_steps=4000, average=0.99)


def translate_base() -> Recipe:
    """The paper's base model and training (Vaswani et al. 2017, table 3 and section 5); needs accelerators."""
    return _paper(TransformerConfig(vocab_size=0), num_steps=100_000)


def translate_big() -> Recipe:
    """The paper's big model and training (Vaswani et al. 2017, table 3 and section 5); needs accelerators."""
    big = TransformerConfig(vocab_size=0, embed_dim=1024, ffn_dim=4096, num_heads=16, dropout=0.3)
    return _paper(big, num_steps=300_000)


def _two_cores(
    model: TransformerConfig, data: ParallelText | ParallelTexts, schedule: Schedule, *, num_steps: int, average: float
) -> Recipe:
    """Small batches, and a rate that has fallen to 0 when the time is over: what learns most in minutes."""
    return Recipe(
        model=model,
        data=data,
        objective=Supervise(label_smoothing=0.1),
        schedule=schedule,
        num_steps=num_steps,
        average=average,
        valid_every=num_steps // 10,
    )


def _paper(model: TransformerConfig, num_steps: int) -> Recipe:
    """Batches of 25,000 source and 25,000 target tokens, and no clipping."""
    return Recipe(
        model=model,
        data=ParallelText(vocab_size=37_000, max_tokens=50_000, num_scored=500),
        objective=Supervise(label_smoothing=0.1),
        schedule=vaswani(model.embed_dim),
        num_steps=num_steps,
        clip_norm=0.0,
        average=0.9995,
        valid_every=2000,
    )
