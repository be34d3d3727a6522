"""Graceful stop: after Ctrl-C or SIGTERM, the current step is finished and a checkpoint is written.

An interrupted step would leave some weights updated and others not, and a run resumed from it would give other bytes. So the
signal is recorded and acted on between steps. A second Ctrl-C stops at once; the last checkpoint remains.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Pending request to stop, and its signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def note(self, number: int, _frame: FrameType | None) -> None:
        """Record the first signal; a second one interrupts at once."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def obey(self) -> None:
        """Stop if a signal has arrived.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after SIGTERM, with the shell's exit status for it, 143.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(128 + self.signal)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Inside the block, SIGINT and SIGTERM are recorded; has no effect outside the main thread."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
