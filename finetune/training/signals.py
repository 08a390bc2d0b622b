"""SIGINT and SIGTERM: the first one ends the work where that is safe, a second Ctrl-C ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune.errors import Interrupted

_received: int | None = None
_deferring = 0
_exits = True  # whether a second Ctrl-C ends the process


def listen() -> None:
    """Handle the signals of this process from now on. Only the main thread may call it."""
    global _received, _exits
    _received, _exits = None, True
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


@contextmanager
def listening() -> Iterator[None]:
    """As `listen`, for the length of the block, in a process that goes on after it: there a second Ctrl-C raises
    KeyboardInterrupt at once. In another thread than the main one nothing is heard."""
    global _exits
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen()
    _exits = False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        forget()


def _handle(signum: int, frame: FrameType | None) -> None:
    global _received
    if _received is None:
        _received = signum
        if not _deferring:
            raise Interrupted(signum)
    elif signum == signal.SIGINT and not _exits:
        raise KeyboardInterrupt
    elif signum == signal.SIGINT and not _launched():
        os._exit(128 + signum)


def _launched() -> bool:
    """torchrun passes on the Ctrl-C that the terminal has already sent to its workers; it also ends them in time."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def pending() -> int | None:
    """The signal that waits to be heeded."""
    return _received


def check() -> None:
    """Raises Interrupted when a signal has come."""
    if _received is not None:
        raise Interrupted(_received)


def forget() -> None:
    """The signal has done what it was meant to: the work ends well."""
    global _received
    _received = None


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal strikes only where `check` is called, and at the end."""
    global _deferring
    _deferring += 1
    try:
        yield
    finally:
        _deferring -= 1
    if not _deferring:
        check()
