"""Report: what a mixture did on a table, as one HTML file (needs `plait[cli]`)."""

from plait.report.facts import Facts, gather
from plait.report.numbers import finite
from plait.report.page import render, score_cells, score_head

__all__ = ["Facts", "finite", "gather", "render", "score_cells", "score_head"]
