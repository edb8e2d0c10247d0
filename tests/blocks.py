"""Runs the Python blocks of a page, one after another, as a reader would paste them."""

import contextlib
import io
import re

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", flags=re.M | re.S)


def python_blocks(page):
    """Returns the fenced Python blocks of a page."""
    return [code for code, _ in BLOCK.findall(page.read_text())]


def run_blocks(page):
    """Runs the blocks of a page in one namespace; what a `text` block after one shows is printed.

    Returns:
        How many blocks there were.
    """
    namespace = {"__name__": "__main__"}
    blocks = BLOCK.findall(page.read_text())
    for number, (code, shown) in enumerate(blocks):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
        assert not shown or shown.split() == printed.getvalue().split(), printed.getvalue()
    return len(blocks)
