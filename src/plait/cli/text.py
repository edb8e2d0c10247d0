"""Text from tables as a terminal may show it."""

import re

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def plain(text: object) -> str:
    r"""Returns a text in which control characters show as escapes, so that no terminal obeys them.

    Example:
    >>> from plait.cli.text import plain
    >>> plain("\x1b[31mred")
    '\\x1b[31mred'
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(text))


__all__ = ["plain"]
