"""Being asked to stop: by a terminal, a scheduler, or the end of whoever started the process."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def interruptions() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set; a second SIGINT, or SIGTERM, raises KeyboardInterrupt.

    (A terminal that closes may send several SIGHUP; under nohup, as any signal that is ignored, it stays so.) Outside
    the main thread nothing sets the event.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(number: int, _: object) -> None:
        event.set()
        if number != signal.SIGHUP:
            signal.signal(number, signal.default_int_handler)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_after(wait: Callable[[], object]) -> None:
    """End this process, whatever it is at, as soon as ``wait`` returns."""

    def follow() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
