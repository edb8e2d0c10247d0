"""Experts: alone, stacked, and on the rows that chose them; `Frozen` is the one to use by name."""

from plait.experts.frozen import Frozen

__all__ = ["Frozen"]
