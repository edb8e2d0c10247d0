"""Before and around every command: quiet back ends, and errors in one line."""

import contextlib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer

from plait.cli import interrupts
from plait.cli.text import plain


def prepare() -> None:
    """Keeps start-up logs off the terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import plait

    if importlib.util.find_spec("tensorflow"):
        # Wherever TensorFlow is installed Keras imports it sooner or later, on every backend, to
        # seed it or to ask whether an object is its own; no setting silences its greeting, nor
        # what it says of devices at its first tensor.
        with _no_stderr():
            import keras

            keras.utils.set_random_seed(0)
            keras.ops.zeros(1)
    plait._load()


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Sends what is written to standard error nowhere, also from C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def expected_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command: what the user can mend is one line on standard error and exit code 2.

    Commands import what they run inside themselves, after `prepare`.

    An interrupt exits with 130, a request to end with 143, a reader that closed the pipe with 141,
    as shells expect.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        prepare()
        try:
            with interrupts.noted():
                return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("\nInterrupted: no output was written.", err=True)
            raise typer.Exit(interrupts.exit_code()) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (ValueError, TypeError, OSError, ImportError) as error:
            typer.echo(plain(f"Error: {' '.join(str(error).split())}"), err=True)
            raise typer.Exit(2) from None

    return wrapped


__all__ = ["expected_errors", "prepare"]
