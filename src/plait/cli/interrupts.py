"""Ctrl-C, and a request to end, that cannot get lost.

Python raises `KeyboardInterrupt` wherever it is, also in callbacks of compilers that swallow it or
turn it into another error. What was asked for is therefore kept, and looked at again.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked = threading.Event()
_number = signal.SIGINT


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes an interrupt or a request to end while the block runs, besides raising it.

    Raises:
        KeyboardInterrupt: Also in place of another error that an interrupt was turned into.
    """
    _asked.clear()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = [signal.signal(number, _note) for number in SIGNALS] if in_main_thread else []
    try:
        yield
    except Exception:
        check()
        raise
    finally:
        for number, handler in zip(SIGNALS, before, strict=False):
            signal.signal(number, handler)


def check() -> None:
    """Raises `KeyboardInterrupt` if one was asked for."""
    if _asked.is_set():
        raise KeyboardInterrupt


def exit_code() -> int:
    """Returns what a shell expects after the signal that was noted: 130 or 143."""
    return 128 + int(_number)


def _note(number: int, frame: FrameType | None) -> None:
    del frame
    global _number
    _number = signal.Signals(number)
    _asked.set()
    raise KeyboardInterrupt


__all__ = ["check", "exit_code", "noted"]
