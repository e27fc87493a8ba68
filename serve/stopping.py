"""The end of the server process: signals before it serves, and threads that still compute when it has served."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Makes SIGTERM and Ctrl-C end the process with code 0, since nothing is lost before the server serves.

    The server has handlers of its own while it serves. Afterwards another signal ends what the process still does.
    """
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread gets signals.
        yield
        return
    before = {one: signal.signal(one, _stop) for one in SIGNALS}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    # Not an exception: what runs at the moment, such as the import of a library, might catch it.
    end_at_once(f"stopped by {signal.Signals(number).name}")


def end_at_once(reason: str) -> None:
    """Ends the process with code 0, whatever runs in it."""
    try:
        logging.getLogger("serve").info("%s", reason)
    finally:
        os._exit(0)


def within(limit_s: float, function: Callable[[], None]) -> bool:
    """Calls a function on another thread, and says whether it returned within ``limit_s`` seconds."""
    thread = threading.Thread(target=function, name="closing", daemon=True)
    thread.start()
    thread.join(limit_s)
    return not thread.is_alive()


def leave_if_busy(code: int) -> None:
    """Ends the process with ``code`` if other threads still run.

    Python would wait for some of them without limit, and take away the interpreter of those that compute, which aborts
    the process.
    """
    busy = [one.name for one in threading.enumerate() if one is not threading.current_thread()]
    if busy:
        logging.getLogger("serve").debug("ended while these threads still ran: %s", ", ".join(busy))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
