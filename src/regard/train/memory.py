"""How a process that trains on a CPU uses memory."""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""What glibc's mallopt calls two of its settings."""


def settle_memory() -> None:
    """Let this process keep few compiled kernels and all freed memory; what the environment says goes before that."""
    keep_few_kernels()
    keep_freed_memory()


def keep_few_kernels() -> None:
    """Let oneDNN keep 64 compiled kernels, unless it has begun to work.

    It compiles one for each shape of batch, and shapes hardly ever come twice: the 1,024 that it would keep take
    gigabytes, and training is a little slower with them.
    """
    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, and torch's of its handles
        os.environ.setdefault(cache, "64")


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for what is needed next; without glibc, nothing.

    Each step frees what it has made and the next one makes the like, but large tensors are mapped from the system and
    given back to it, which clears every page anew.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
