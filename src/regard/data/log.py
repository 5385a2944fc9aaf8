"""The log of a run, read back."""

import json
from pathlib import Path
from typing import Any

from regard.core.errors import DataError
from regard.data.source import read_lines


def read_log(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, one a line; none where there is no log. Raises :class:`DataError` naming the line."""
    if not path.exists():
        return []
    log = []
    for i, line in enumerate(read_lines(path) if path.stat().st_size else [], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {i}: not valid JSON ({error})") from None
        if not isinstance(record, dict) or not {"step", "seconds"} <= record.keys():
            raise DataError(f"{path}, line {i}: expected an object with 'step' and 'seconds'")
        log.append(record)
    return log
