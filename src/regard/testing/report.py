"""What a run of the suite found, and how a check says that it fails or does not apply."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not applicable", "expected failure"]


class Failure(AssertionError):
    """Raised by a check: the promise is broken; the message says by how much, where, and what the limit is."""


class NotApplicable(Exception):
    """Raised by a check: the promise has no meaning for this model; the message says why."""


@dataclass(frozen=True)
class Row:
    """What became of one check.

    Attributes:
        name: of the check.
        section: its letter.
        status: how it went.
        reason: why it failed or does not apply; of a passed check, a number worth recording.
        seconds: how long it took.
    """

    name: str
    section: str
    status: Status
    reason: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """Every row of a run; as a string, a table."""

    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that failed."""
        return tuple(row for row in self.rows if row.status == "failed")

    def __str__(self) -> str:
        width = max((len(row.name) for row in self.rows), default=0)
        lines = [
            f"{row.section}  {row.name:<{width}}  {row.status:<16}  {row.seconds:5.2f} s  {row.reason}".rstrip()
            for row in self.rows
        ]
        return "\n".join(lines)


def require(condition: bool, message: str) -> None:
    """Raise :class:`Failure` with the message unless the condition holds."""
    if not condition:
        raise Failure(message)
