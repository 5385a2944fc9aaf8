"""What a run shows while it goes: lines in its log, and a progress bar or plain lines on the terminal."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from regard.core.errors import TrainingError

Record = Mapping[str, Any]


class Log:
    """log.jsonl: one JSON object a line, each with its ``step``.

    Args:
        path: the file.
        length: bytes to keep of it; what a killed process wrote after its last checkpoint is written again.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        self.file = path.open("ab")
        self.file.truncate(min(length, os.fstat(self.file.fileno()).st_size))
        self.file.seek(0, os.SEEK_END)

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


def console(*, quiet: bool) -> Any:
    """A console on standard error; if its reader leaves, the run goes on unseen."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    return Lasting(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)


class Watch:
    """Shows the run to whoever started it: a bar where there is a terminal, plain lines where there is none.

    Args:
        num_steps: the last step.
        step: where the run stands already.
        quiet: show nothing.
    """

    def __init__(self, num_steps: int, *, step: int = 0, quiet: bool = False) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.num_steps = num_steps
        self.console = console(quiet=quiet)
        self.bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} tokens/s  loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.console,
            disable=quiet or not sys.stderr.isatty(),
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
        """A line of the log: a validation is always printed, the rest only where there is no bar."""
        if "loss" in record:
            self.bar.update(self.job, rate=record["tokens_per_second"], loss=record["loss"])
        if "loss" not in record or self.bar.disable:
            values = [f"{name} {value:.4g}" for name, value in record.items() if name != "step"]
            self.say(f"step {record['step']:>6,} / {self.num_steps:,}   {'   '.join(values)}")
