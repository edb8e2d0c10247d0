"""Experts: alone, stacked, and on the rows that chose them."""

from plait.experts.alike import (
    Functional,
    flat_layers,
    refresh_adapted,
    shares_variables,
    why_alone,
)
from plait.experts.bank import ExpertBank
from plait.experts.fresh import copy_of, recorded_initializers
from plait.experts.rows import CoupledRowsError
from plait.experts.stateless import attach_masks, masks_of

__all__ = [
    "CoupledRowsError",
    "ExpertBank",
    "Functional",
    "attach_masks",
    "copy_of",
    "flat_layers",
    "masks_of",
    "recorded_initializers",
    "refresh_adapted",
    "shares_variables",
    "why_alone",
]
