"""A run's folder belongs to one process, and to nobody once that process is gone."""

import os
import signal
import subprocess
import sys

import pytest

from regard.core.errors import TrainingError
from regard.train.state import claim

SCRIPT = """
import os, sys, time
from pathlib import Path
from regard.train.state import claim
with claim(Path(sys.argv[1]), resume=True):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


def test_a_forked_process_does_not_hold_the_folder_of_its_parent(tmp_path):
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            with pytest.raises(TrainingError, match="another process"), claim(tmp_path, resume=True):
                pass
            process.kill()
            process.wait()
            os.kill(child, 0)  # it lives
            with claim(tmp_path, resume=True) as begun:
                assert not begun
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)
