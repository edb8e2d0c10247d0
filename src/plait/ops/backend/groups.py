"""Neighbouring experts of like load, which one vectorised call runs with few spare rows."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Group", "affordable_spare_rows", "groups"]

# What one more call of Keras layers costs, in multiply-adds.
_CALL = 2e8
# Reading the variables of one more expert costs about what so many rows cost.
_READ = 16


class Group(NamedTuple):
    """The experts `start:end`, on `size` rows each."""

    start: int
    end: int
    size: int

    @property
    def num_experts(self) -> int:
        """How many experts there are."""
        return self.end - self.start

    @property
    def num_rows(self) -> int:
        """How many rows there are, the spare ones included."""
        return self.num_experts * self.size


def affordable_spare_rows(numbers: int) -> float:
    """Returns how many spare rows cost what another call costs.

    Args:
        numbers: How many numbers the variables of one expert hold. As in dense layers, a row is
            taken to cost one multiply-add for each.
    """
    return _CALL / max(numbers, 1)


def groups(loads: Sequence[int], affordable: float) -> list[Group]:
    """Returns groups of neighbouring experts that cover all that have rows.

    A group grows until its spare rows would cost more than a call of its own.

    Args:
        loads: How many rows each expert has.
        affordable: How many spare rows a group may have; below zero every expert is on its own.

    Example:
    >>> from plait.ops.backend.groups import groups
    >>> [tuple(group) for group in groups([5, 6, 90, 0, 4, 5], affordable=20)]
    [(0, 2, 6), (2, 3, 90), (4, 6, 5)]
    """
    rows = [0, *accumulate(loads)]
    idle = [0, *accumulate(not load for load in loads)]
    found: list[Group] = []
    for expert, load in enumerate(loads):
        if not load:
            continue
        if found:
            grown = Group(found[-1].start, expert + 1, max(found[-1].size, load))
            spare = grown.num_rows - (rows[grown.end] - rows[grown.start])
            if spare + _READ * (idle[grown.end] - idle[grown.start]) <= affordable:
                found[-1] = grown
                continue
        found.append(Group(expert, expert + 1, load))
    return found
