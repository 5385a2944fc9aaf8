"""The public conformance suite: ``check_model(model)`` says whether a model keeps the library's promises.

Anyone may run it, on a model of this library, of their own, or on a checkpoint: every check is a small function whose
docstring says what is promised, and whose failure says the numbers. Sections: A definition, B published layout,
C batches, padding and positions, D kernels and precision, E gradients and training, F caches and generation,
I files. Parity with other libraries needs them as oracles, so it is tested in this repository, not here.
"""

from regard.testing.check import CHECKS, check_model
from regard.testing.report import Failure, NotApplicable, Report, Row
from regard.testing.subject import Subject

__all__ = ["CHECKS", "Failure", "NotApplicable", "Report", "Row", "Subject", "check_model"]
