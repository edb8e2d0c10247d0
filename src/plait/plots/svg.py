"""Figures as text: SVG that can stand inside an HTML page, in the page's own ink."""

import html
import io
import re
from typing import Any

_INK = "#010203"  # drawn in this colour, replaced by the page's: readable by day and by night
_STYLE: Any = {
    "font.size": 9.0,
    "text.parse_math": False,  # a class may be called "$5"
    "svg.fonttype": "none",
    "svg.hashsalt": "plait",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def to_svg(plot: Any, *args: Any, label: str) -> str:
    """Draws a picture as SVG text, the same for the same numbers.

    Args:
        plot: A function of this package that returns a figure.
        *args: What it draws.
        label: What the picture shows, for readers who cannot see it.

    Returns:
        The text of one `<svg>` element.

    Example:
    >>> import plait.plots
    >>> from plait.inspection import Score
    >>> rows = [Score("mixture", 0.5, accuracy=0.9)]
    >>> text = plait.plots.to_svg(plait.plots.plot_scores, rows, label="Accuracy")
    >>> text.startswith('<svg role="img" aria-label="Accuracy"'), "mixture" in text
    (True, True)
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        out = io.StringIO()
        plot(*args).savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Identifiers must differ between the pictures of one page.
    mark = re.sub(r"\W", "", label)
    svg = re.sub(r'\bid="', f'id="{mark}-', svg)
    svg = re.sub(r'(xlink:href="|url\()#', rf"\1#{mark}-", svg)
    # Fonts of the page, not of the machine that drew it.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


__all__ = ["to_svg"]
