"""Classification of texts with BERT."""

from regard.models.bert import BertConfig
from regard.objectives.supervise import Supervise
from regard.tasks.classify import LabelledText
from regard.train.optimize import Optimizer
from regard.train.recipe import Recipe
from regard.train.schedule import Schedule


def classify() -> Recipe:
    """A tiny model for two cores; without data it learns to tell eight languages apart."""
    model = BertConfig(
        vocab_size=0, embed_dim=128, ffn_dim=512, num_heads=4, num_layers=2, max_seq_len=128, norm_eps=1e-5
    )
    return Recipe(
        model=model,
        data=LabelledText(),
        missing="head",
        objective=Supervise(label_smoothing=0.0),
        optimizer=Optimizer("adamw", betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01),
        schedule=Schedule("linear", lr=1e-3, warmup=100),
        num_steps=1000,
        average=0.99,
        valid_every=100,
    )


def classify_finetune() -> Recipe:
    """What a published encoder, which ``start`` names, is trained by for small data.

    Rates and lengths are near those of Devlin et al. 2019 (A.3). Smoothed targets, passes that agree (Liang et al.
    2021) and the mean of the weights along the way at a constant rate (Izmailov et al. 2018) keep it from learning
    a few thousand examples by heart.
    """
    return Recipe(
        model=BertConfig(),
        data=LabelledText(max_tokens=1024),
        missing="head",
        objective=Supervise(label_smoothing=0.1, consistency=4.0),
        optimizer=Optimizer("adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
        schedule=Schedule("constant", lr=4e-5, warmup=60),
        num_steps=600,
        average=6,
        valid_every=60,
    )
