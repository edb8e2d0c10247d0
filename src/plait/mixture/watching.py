"""Records of the routings in mixtures' calls, kept while a `watching` block is active."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from plait.ops.routing import Routing
from plait.typing import Mask, Nested

if TYPE_CHECKING:
    from plait.mixture.of_experts import OfExperts


class Call(NamedTuple):
    """One routing in the call of a mixture.

    Attributes:
        mixture: The mixture.
        task: The task whose gate it was, or `None` where there is one gate.
        experts: Positions of the experts that the gate scores.
        routing: Weights `(b, …, e)` of these, and which were chosen.
        mask: Where a row counts, `(b, …)`, or `None` for everywhere.
        inputs: What the mixture was called on.
        input_mask: Its masks, in the same structure, or `None`.
    """

    mixture: "OfExperts"
    task: str | None
    experts: list[int]
    routing: Routing
    mask: Mask
    inputs: Nested
    input_mask: Nested


_listener: ContextVar[list[Call] | None] = ContextVar("who listens to mixtures", default=None)


@contextlib.contextmanager
def watching() -> Iterator[list[Call]]:
    """Yields a list to which mixtures called in the block append, in the order of the calls."""
    calls: list[Call] = []
    token = _listener.set(calls)
    try:
        yield calls
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Records nothing in the block: tensors of a traced loop are not valid outside of it."""
    token = _listener.set(None)
    try:
        yield
    finally:
        _listener.reset(token)


def watched() -> bool:
    """Whether calls are recorded."""
    return _listener.get() is not None


def tell(call: Call) -> None:
    """Appends a record of a call, where calls are recorded."""
    calls = _listener.get()
    if calls is not None:
        calls.append(call)
