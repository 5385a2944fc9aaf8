"""What a run shows while it goes: lines in its log, and a progress bar or plain lines on the terminal."""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from regard.core.console import console
from regard.core.errors import TrainingError
from regard.data.log import read_log

Record = Mapping[str, Any]

UNSAID = ("step", "grad_norm_max", "waiting")
"""Numbers of a record that a line for people leaves out, or has elsewhere."""


class Log:
    """log.jsonl: one JSON object a line, each with its ``step``.

    Args:
        path: the file; None for a process that is not to write.
        length: bytes to keep of it; what a killed process wrote after its last checkpoint is written again.
    """

    def __init__(self, path: Path | None, length: int = 0) -> None:
        self.path = path
        self.file = path.open("ab") if path else tempfile.TemporaryFile()  # noqa: SIM115 - see close
        self.file.truncate(min(length, os.fstat(self.file.fileno()).st_size))
        self.file.seek(0, os.SEEK_END)

    def records(self) -> list[dict[str, Any]]:
        """What stands in it, line by line. Raises DataError for a line that is no record."""
        return read_log(self.path) if self.path else []

    def write(self, record: Record) -> None:
        """Append one line. Raises TrainingError when it cannot be written."""
        try:
            self.file.write(json.dumps(record).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise TrainingError(f"{self.path}: the log cannot be written ({error.strerror})") from None

    def sync(self) -> int:
        """Make what was written safe from a crash, and return its length in bytes."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        """Nothing more will be written."""
        self.file.close()


class Watch:
    """Shows the run to whoever started it: a bar where there is a terminal, plain lines where there is none.

    Args:
        num_steps: the last step.
        step: where the run stands already.
    """

    def __init__(self, num_steps: int, *, step: int = 0) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.num_steps = num_steps
        self.console = console()
        self.bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} tokens/s  loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=self.console.quiet or not sys.stderr.isatty(),
        )
        self.job = self.bar.add_task("", total=num_steps, completed=step, rate=0.0, loss=float("nan"))

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """Print a line, above the bar."""
        self.console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Move the bar to ``step``."""
        self.bar.update(self.job, completed=step)

    def show(self, record: Record) -> None:
        """A line of the log: what ails the run and a validation are always printed, the rest where there is no bar."""
        place = f"step {record['step']:>6,} / {self.num_steps:,}   "
        if "health" in record:
            self.say(f"{place}{record['health']}: {record['message']}")
            return
        if "loss" in record:
            self.bar.update(self.job, rate=record["tokens_per_second"], loss=record["loss"])
        if "loss" not in record or self.bar.disable:
            values = [
                f"{name} {value:.4g}"
                for name, value in record.items()
                if name not in UNSAID and isinstance(value, (int, float))
            ]
            self.say(place + "   ".join([*values, *self._left(record)]))

    def _left(self, record: Record) -> list[str]:
        """How much longer it will take, by the mean of the steps so far; of a validation it need not be said again."""
        if "loss" not in record or "seconds" not in record or record["step"] >= self.num_steps:
            return []
        return [f"left {rough(record['seconds'] / record['step'] * (self.num_steps - record['step']))}"]


def rough(seconds: float) -> str:
    """A time to come, no more exactly than it can be known: 40 s, 3 min, 2 h 10 min."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
