"""What is asked of torch before an operator of our own is used."""

import torch


def transformed() -> bool:
    """Whether a transform of torch.func is at work: these know no operators of our own."""
    # torch.compile cannot follow the question, and transforms what it compiles itself.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
