"""Picks an installed backend where Keras would look for one that is not there."""

import importlib.util
import json
import os
import pathlib
import sys

_BACKENDS = ("jax", "torch", "tensorflow")


def pick() -> None:
    """Sets `KERAS_BACKEND` where it is not set and the backend that Keras would take is missing.

    Without a setting Keras takes TensorFlow, and fails where only JAX or PyTorch is installed. A
    choice that was made, in the environment, in Keras' own file or by importing Keras, is kept.
    """
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ:
        return
    installed = [name for name in _BACKENDS if importlib.util.find_spec(name)]
    if installed and _configured() not in installed:
        os.environ["KERAS_BACKEND"] = installed[0]


def on_command_line(argv: list[str], orig_argv: list[str]) -> bool:
    """Returns whether this process is the installed script `plait`, or `python -m plait.cli`.

    Example:
    >>> from plait.default_backend import on_command_line
    >>> on_command_line(["/usr/bin/plait"], []), on_command_line(["train.py"], ["python"])
    (True, False)
    >>> on_command_line(["-m"], ["python", "-m", "plait.cli", "--help"])
    True
    """
    script = pathlib.PurePath(argv[0]).name if argv else ""
    module = argv[:1] == ["-m"] and "plait.cli" in orig_argv
    return script.removesuffix(".exe") == "plait" or module


def _configured() -> str:
    """Returns the backend that Keras' own file names, or the one it takes without a file."""
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    try:
        return str(json.loads((home / "keras.json").read_text())["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"
