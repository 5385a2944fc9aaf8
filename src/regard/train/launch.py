"""Starting a run as several processes of this machine, and starting it again when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import IO

from regard.core.errors import ConfigError, PeerError, RegardError
from regard.train.interrupt import end_after, interruptions

GRACE = 3.0
"""Seconds for the other processes to end by themselves, and to say why, once one has."""

LAUNCHED = "REGARD_LAUNCHED"
"""Names, for a process started here, what it reads from until this one ends: an open file's number."""

LINES = 20
"""How much is shown of what a process said that failed; the leader speaks at once."""

STOPPED = 130
"""The status of a process that was asked to stop, and saved."""

FINAL = {RegardError.status, STOPPED}
"""Statuses that starting again would not change: the user's error, interrupted."""


def launch(command: Sequence[str], nproc: int, *, restarts: int = 3) -> int:
    """Run a command as ``nproc`` processes that know of each other, as torchrun does on one machine.

    They find in their environment what torch.distributed looks for. When one is killed or crashes, the others are
    ended, and all begin again with ``--resume``; not so after an error of the user's (2), which would only happen
    again, or when interrupted (130). SIGINT, SIGTERM and SIGHUP are passed on, once; a second SIGINT or SIGTERM ends
    all at once.

    Args:
        command: a ``regard train`` command.
        nproc: how many processes.
        restarts: how often to begin again.

    Returns:
        the exit status: 0, or what the processes that failed ended with.

    Raises:
        ConfigError: ``nproc`` is below 1.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc {nproc} must be at least 1")
    with interruptions() as stop:
        for attempt in range(restarts + 1):
            statuses = _run([*command, *["--resume"] * (attempt > 0)], nproc, stop)
            rank, status = culprit(statuses)
            if stop.is_set() or status == 0 or status in FINAL:
                break
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"crashed (exit status {status})"
            again = f"; all go on from the last checkpoint, restart {attempt + 1} of {restarts}"
            sys.stderr.write(f"regard: process {rank} {how}{again * (attempt < restarts)}\n")
    return status if status >= 0 else 128 - status


def culprit(statuses: Sequence[int]) -> tuple[int, int]:
    """The process whose end is to be told, and its exit status: an error or a kill comes before what it led to."""

    def severity(each: tuple[int, int]) -> tuple[bool, ...]:
        _, status = each
        return status in FINAL, status < 0, status not in (0, PeerError.status), status != 0

    return max(enumerate(statuses), key=severity)


def _run(command: Sequence[str], nproc: int, stop: threading.Event) -> list[int]:
    """The exit status of each process, from one start to the end of all."""
    with ExitStack() as stack:
        errors = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(nproc)]
        port, (ours, theirs) = _free_port(), os.pipe()
        stack.callback(os.close, theirs)
        try:
            processes = [_start(command, rank, nproc, port, ours, errors[rank]) for rank in range(nproc)]
        finally:
            os.close(ours)
        try:
            _watch(processes, stop)
            statuses = [process.poll() or 0 for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for status, file in zip(statuses, errors, strict=True):
            told = status in FINAL and statuses[0] in FINAL  # by the leader
            if status not in (0, PeerError.status) and not told:
                sys.stderr.writelines(_said(file))
    return statuses


def _said(file: IO[str]) -> list[str]:
    file.seek(0)
    return file.readlines()[-LINES:]


def _watch(processes: Sequence["subprocess.Popen[str]"], stop: threading.Event) -> None:
    """Until the leader has ended or another process has failed; and then a little, for all to end by themselves.

    One that was told to stop, and did, has not failed: the leader may still be writing what it has to.
    """
    told = False
    while processes[0].poll() is None and not any(
        process.poll() not in (None, 0, STOPPED if told else 0) for process in processes
    ):
        time.sleep(0.05)
        if stop.is_set() and not told:
            told = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
    until = time.monotonic() + GRACE
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.05)


def _start(
    command: Sequence[str], rank: int, nproc: int, port: int, launcher: int, errors: IO[str]
) -> "subprocess.Popen[str]":
    """One process, which ends when nothing more is to be read from ``launcher``.

    The leader speaks; what another says is kept, to be shown if it is the one that fails.
    """
    threads = max(1, (os.cpu_count() or 1) // nproc)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHED: str(launcher),
    }
    return subprocess.Popen(
        command,
        env=environment,
        stderr=None if rank == 0 else errors,
        stdin=subprocess.DEVNULL,
        pass_fds=(launcher,),
        text=True,
        start_new_session=True,  # what the terminal sends comes to this process, which passes it on once
    )


def follow() -> None:
    """In a process started here: end with the launcher, however that ends."""
    launcher = os.environ.pop(LAUNCHED, None)
    if launcher is not None:
        end_after(partial(os.read, int(launcher), 1))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
