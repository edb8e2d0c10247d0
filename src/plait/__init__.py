"""plait weaves parallel Keras models into one: out = Σ w_l(x) · f_l(x)."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from plait import default_backend

default_backend.pick()  # before anything imports Keras

if TYPE_CHECKING:
    from plait import (
        callbacks,
        distribution,
        experts,
        layers,
        losses,
        metrics,
        ops,
        routers,
        training,
    )
    from plait.export import export  # type: ignore[no-redef]  # the function, not its package
    from plait.mixture import Mixture, MultiGateMixture

__version__ = "0.1.0"

__all__ = [
    "Mixture",
    "MultiGateMixture",
    "callbacks",
    "distribution",
    "experts",
    "export",
    "layers",
    "losses",
    "metrics",
    "ops",
    "routers",
    "training",
]

_OBJECTS = {"Mixture": "mixture", "MultiGateMixture": "mixture", "export": "export"}
# Found by name, but of no use to most programs.
_ABOVE = ("encoding", "inspection", "interop", "plots", "report", "sklearn", "tables")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for (PEP 562)."""
    if name in _OBJECTS:
        found = getattr(importlib.import_module(f"plait.{_OBJECTS[name]}"), name)
        globals()[name] = found  # `export` is also the name of the room that it comes from
        return found
    if name in __all__ or name in _ABOVE:
        try:
            return importlib.import_module(f"plait.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"plait.{name}":
                raise
    raise AttributeError(f"module 'plait' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _load() -> None:
    """Imports every package whose classes a `.keras` file may name, and puts it in place."""
    for name in (*__all__, "encoding"):
        globals()[name] = __getattr__(name)


# Keras finds a class of a file by its registered name alone, hence only once its module is
# imported: a program that loads a model may do nothing with plait but import it. The command line
# calls `_load` itself, when a command runs, so that its help comes at once.
if not default_backend.on_command_line(sys.argv, sys.orig_argv):
    _load()
