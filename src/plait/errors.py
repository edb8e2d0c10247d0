"""Helpers that put what went wrong into words: the rule, the value received, the remedy."""

import difflib
from collections.abc import Iterable


def message(rule: str, received: str, remedy: str) -> str:
    """Returns one error text in the house form.

    Args:
        rule: What must hold, without a full stop.
        received: The offending value, as `name=value` or a short description.
        remedy: What to do about it, without a full stop.

    Example:
    >>> from plait.errors import message
    >>> message("`k` must be at least 1", "k=0", "Use k=1 or more")
    '`k` must be at least 1. Received: k=0. Use k=1 or more.'
    """
    return f"{rule}. Received: {received}. {remedy}."


def first_line(error: BaseException) -> str:
    """Returns the first line of what an exception says."""
    return (str(error).splitlines() or [""])[0]


def choose_from(what: str, received: object, options: Iterable[str]) -> str:
    """Returns the text for a value that is not one of a closed set, naming the nearest one.

    Example:
    >>> from plait.errors import choose_from
    >>> choose_from("execution", "stack", ["auto", "loop", "stacked"])
    "`execution` must be one of 'auto', 'loop', 'stacked'. Received: 'stack'. Use 'stacked'."
    """
    names = sorted(options)
    near = difflib.get_close_matches(str(received), names, n=1, cutoff=0.4)
    remedy = f"Use {near[0]!r}" if near else "Use one of these"
    return message(f"`{what}` must be one of {', '.join(map(repr, names))}", repr(received), remedy)
