"""Experts: alone, stacked, and on the rows that chose them."""

from plait.experts.frozen import Frozen
from plait.experts.groups import ExpertBank, Placed, SharedBank
from plait.experts.initialization import (
    FreshValues,
    check_same,
    copy_of,
    copy_with_weights,
    stack_many,
)
from plait.experts.runner import input_of
from plait.experts.seeds import seed_positions
from plait.experts.signature import alike, shared_variables, why_alone
from plait.experts.single import SingleExpert
from plait.experts.stacked import StackedRunner
from plait.experts.variables import StackedExperts

__all__ = [
    "ExpertBank",
    "FreshValues",
    "Frozen",
    "Placed",
    "SharedBank",
    "SingleExpert",
    "StackedExperts",
    "StackedRunner",
    "alike",
    "check_same",
    "copy_of",
    "copy_with_weights",
    "input_of",
    "seed_positions",
    "shared_variables",
    "stack_many",
    "why_alone",
]
