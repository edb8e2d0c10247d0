"""Ctrl-C that cannot get lost.

Python raises `KeyboardInterrupt` wherever it is, also in callbacks of compilers that swallow it or
turn it into another error. What was asked for is therefore kept, and looked at again.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes an interrupt while the block runs, besides raising it.

    Raises:
        KeyboardInterrupt: Also in place of another error that an interrupt was turned into.
    """
    _asked.clear()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, _note) if in_main_thread else None
    try:
        yield
    except Exception:
        check()
        raise
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, before)


def check() -> None:
    """Raises `KeyboardInterrupt` if one was asked for."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _note(number: int, frame: FrameType | None) -> None:
    del number, frame
    _asked.set()
    raise KeyboardInterrupt


__all__ = ["check", "noted"]
