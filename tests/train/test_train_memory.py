"""Memory: what a step frees is kept for the next, unless the environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from regard.train.memory import settle_memory

if sys.argv[1] == "settled":
    settle_memory()

def step():
    [torch.ones(10_000_000) for _ in range(4)]  # each larger than what glibc ever keeps by itself

for _ in range(10):
    step()  # until the heap is large enough for all of it
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how, **environment):
    """How many pages the system had to clear in four steps that each make and free the same."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_kept_unless_the_environment_decides():
    assert faults("settled") < 100
    assert faults("as it is") > 1000
    assert faults("settled", MALLOC_TRIM_THRESHOLD_="100000") > 1000
