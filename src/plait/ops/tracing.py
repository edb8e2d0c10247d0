"""How a mixture is written down while a model is traced for another runtime."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Literal

Tracing = Literal["as it is", "every expert", "one by one"]
"""How a graph is traced: as the model runs here; with every expert on every row, experts of one
architecture in one call; or with every expert on every row, one after another."""

_tracing: ContextVar[Tracing] = ContextVar("how a graph is traced", default="as it is")


@contextlib.contextmanager
def traced(how: Tracing) -> Iterator[None]:
    """Sets how experts run in the block, whatever their `execution` is.

    Every way gives the same numbers: what an expert gives for a row that did not choose it has
    weight zero. Few runtimes take loops of dynamic length, which dispatched experts need, and some
    take no vectorised calls.
    """
    token = _tracing.set(how)
    try:
        yield
    finally:
        _tracing.reset(token)


def runs_every_expert() -> bool:
    """Whether experts run on every row, also where they could run on those that chose them."""
    return _tracing.get() != "as it is"


def runs_one_by_one() -> bool:
    """Whether experts run one after another, also where one call could run several."""
    return _tracing.get() == "one by one"
