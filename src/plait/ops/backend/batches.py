"""Neighbouring experts of like load, which one vectorised call runs with few spare rows."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Batch", "affordable_padding", "batches", "work_per_row"]

# What one more call of Keras layers costs, in multiply-adds.
_CALL = 2e8
# Reading the variables of one more expert costs about what so many rows cost.
_READ = 16


class Batch(NamedTuple):
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


def work_per_row(variables: Sequence[Sequence[int]], leaves: Sequence[Sequence[int]]) -> int:
    """Returns about how many multiply-adds one expert spends on one row.

    One for each number of its variables, as in dense layers, at each position: pixel of an image
    or step of a sequence.

    Args:
        variables: Shapes of the variables of one expert.
        leaves: Shapes of the parts of one row.

    Example:
    >>> from plait.ops.backend.batches import work_per_row
    >>> work_per_row([(3, 3, 2, 4), (4,)], [(10, 10, 2)])
    7600
    """
    numbers = sum(map(math.prod, variables))
    positions = max(math.prod(leaf[:-1]) for leaf in leaves)
    return max(numbers * positions, *map(math.prod, leaves))


def affordable_padding(work: int) -> float:
    """Returns how many spare rows cost what another call costs.

    Args:
        work: Multiply-adds per row.
    """
    return _CALL / max(work, 1)


def batches(loads: Sequence[int], affordable: float) -> list[Batch]:
    """Returns groups of neighbouring experts that cover all that have rows.

    A group grows until its spare rows would cost more than a call of its own.

    Args:
        loads: How many rows each expert has.
        affordable: How many spare rows a group may have; below zero every expert is on its own.

    Example:
    >>> from plait.ops.backend.batches import batches
    >>> [tuple(batch) for batch in batches([5, 6, 90, 0, 4, 5], affordable=20)]
    [(0, 2, 6), (2, 3, 90), (4, 6, 5)]
    """
    rows = [0, *accumulate(loads)]
    idle = [0, *accumulate(not load for load in loads)]
    found: list[Batch] = []
    for expert, load in enumerate(loads):
        if not load:
            continue
        if found:
            grown = Batch(found[-1].start, expert + 1, max(found[-1].size, load))
            spare = grown.num_rows - (rows[grown.end] - rows[grown.start])
            if spare + _READ * (idle[grown.end] - idle[grown.start]) <= affordable:
                found[-1] = grown
                continue
        found.append(Batch(expert, expert + 1, load))
    return found
