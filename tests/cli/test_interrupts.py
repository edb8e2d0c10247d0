"""Ctrl-C is not lost where a compiler swallows it."""

import signal

import pytest

from plait.cli import interrupts


def interrupted_compiler():
    """What a compiler may do to an interrupt."""
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as interrupt:
        raise ValueError("compilation failed") from interrupt


def test_an_interrupt_that_was_turned_into_another_error_is_one():
    with pytest.raises(KeyboardInterrupt), interrupts.noted():
        interrupted_compiler()


def test_an_interrupt_that_was_swallowed_is_found_at_the_next_look():
    with interrupts.noted():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_other_errors_pass_and_the_old_handler_is_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no interrupt"), interrupts.noted():
        raise ValueError("no interrupt")
    assert signal.getsignal(signal.SIGINT) is before
