"""What the backends share: groups of experts, sorted rows, structures of tensors as lists."""

import functools
import operator
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import accumulate, pairwise
from typing import NamedTuple

import keras
from keras import ops, tree

from plait.typing import Nested, Tensor

__all__ = [
    "GROUPED_PRODUCTS",
    "Choices",
    "Devices",
    "Flat",
    "Group",
    "NotLoweredError",
    "by_sorted_rows",
    "inside",
    "is_float",
    "numbered",
    "partition",
    "vectorized_map_with",
]

_exists = functools.partial(operator.is_not, None)
# Whether experts of one architecture run as grouped products, whatever their loads.
# Meant for GPUs; off until it is measured on one.
GROUPED_PRODUCTS = os.environ.get("PLAIT_GROUPED_PRODUCTS") == "1"
inside = ContextVar("inside a vectorised call", default=False)


class NotLoweredError(Exception):
    """A function applies an operation that is not known to act on each row separately."""


class Group(NamedTuple):
    """Experts of one architecture.

    Attributes:
        function: Maps `(variables_of_one_expert, rows, segment)` to a structure of tensors
            `(r, …)`; a backend's `map_choices` is given one that returns a list.
        variables: List of tensors `(e_g, …)`.
        num_experts: `e_g`, an integer.
        vectorized: Whether one call may run several of the experts.
        called: What the function calls, for what a backend remembers about it; or `None`.
    """

    function: Callable[..., Nested]
    variables: list[Tensor]
    num_experts: int
    vectorized: bool = True
    called: object = None


class Choices(NamedTuple):
    """Which rows chose which experts: the `n * k` choices sorted by expert, ties by row.

    Attributes:
        order: int32 `(n * k,)`, the choice at each place; choice `i * k + j` belongs to row `i`.
        place: int32 `(n * k,)`, the place of each choice.
        offsets: int32 `(e + 1,)`: the run of expert `l` is `offsets[l]:offsets[l + 1]`. The empty
            slots come after `offsets[e]`.
        num_selected: `k`, an integer.
        shards: Over how many devices the experts are split: about one slot in so many is filled.
    """

    order: Tensor
    place: Tensor
    offsets: Tensor
    num_selected: int
    shards: int = 1


class Devices(NamedTuple):
    """A mesh of devices over which a dispatch is spread.

    Attributes:
        mesh: The backend's mesh.
        rows: The axis of the mesh over which the rows are split.
        experts: The axis over which the experts are split, which may be the same; `None` where
            every device holds all of them.
        row_shards: Over how many devices the rows are split.
        expert_shards: Over how many devices the experts are split.
    """

    mesh: object
    rows: str
    experts: str | None
    row_shards: int
    expert_shards: int


class Flat:
    """A function of structures as a function that returns a list of tensors.

    Attributes:
        structure: What the function returned last, known once it was called or traced.
    """

    def __init__(self, function: Callable[..., Nested]) -> None:
        self.function = function
        self.structure: Nested = None

    def __call__(self, *args: Nested) -> list[Tensor]:
        """Returns the leaves that are not `None`, as tensors."""
        self.structure = self.function(*args)
        leaves = filter(_exists, tree.flatten(self.structure))
        return list(map(ops.convert_to_tensor, leaves))

    def unflatten(self, leaves: Sequence[Tensor]) -> Nested:
        """Returns the structure with other leaves."""
        given = iter(leaves)
        filled = [None if leaf is None else next(given) for leaf in tree.flatten(self.structure)]
        return tree.pack_sequence_as(self.structure, filled)


def is_float(tensor: Tensor) -> bool:
    """Whether a tensor has a floating dtype, and hence may have a gradient."""
    return "float" in keras.backend.standardize_dtype(tensor.dtype)


def partition(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Callable[..., list]]:
    """Parts a list into what may have a gradient and what may not.

    Returns:
        A triple `(floats, others, merge)`; `merge(floats, others)` is a list in the first order.
    """
    flags = []
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    for tensor in tensors:
        flags.append("float" in keras.backend.standardize_dtype(tensor.dtype))
        parts[0 if flags[-1] else 1].append(tensor)
    floats, others = parts

    def merge(floats: Sequence[Tensor], others: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(floats), iter(others)
        return [next(rest[0] if flag else rest[1]) for flag in flags]

    return floats, others, merge


def numbered(groups: Sequence[Group]) -> list[tuple[int, int]]:
    """Returns the first expert of each group and the one after its last, counted over all."""
    return list(pairwise(accumulate((group.num_experts for group in groups), initial=0)))


def by_sorted_rows(
    take_rows: Callable[..., Tensor],
    map_segments: Callable[..., list[Tensor]],
    groups: Sequence[Group],
    leaves: Sequence[Tensor],
    choices: Choices,
) -> list[Tensor]:
    """`map_choices` by gathering rows into runs, mapping the runs, and gathering back.

    Args:
        take_rows: A backend's.
        map_segments: A backend's: maps `(groups, rows, offsets)` to outputs `(m, …)` of rows
            `(m, …)` sorted by expert; those from `offsets[e]` on may be anything.
        groups: As for `map_choices`.
        leaves: As for `map_choices`.
        choices: As for `map_choices`.

    Returns:
        As for `map_choices`.
    """
    order, place, offsets, num_selected, _ = choices
    place = ops.where(place < offsets[-1], place, ops.shape(place)[0])
    back = ops.reshape(place, (-1, num_selected))
    rows = [take_rows(leaf, order // num_selected, back) for leaf in leaves]
    outputs = map_segments(groups, rows, offsets)
    return [take_rows(output, place, order[:, None]) for output in outputs]


def vectorized_map_with(
    vectorize: Callable[..., list[Tensor]],
    function: Callable[..., Nested],
    mapped: Nested,
    shared: Nested,
) -> Nested:
    """`vectorized_map` by a backend's `vectorize`, which takes only lists of tensors.

    Args:
        vectorize: Maps `(function, tensors)` to a list of tensors; its function takes the list of
            one expert's slices and returns a list of tensors.
        function: As for `vectorized_map`.
        mapped: As for `vectorized_map`.
        shared: As for `vectorized_map`.

    Returns:
        As for `vectorized_map`.
    """
    flat = Flat(function)

    def on_leaves(leaves: Sequence[Tensor]) -> list[Tensor]:
        return flat(tree.pack_sequence_as(mapped, leaves), shared)

    leaves = [ops.convert_to_tensor(leaf) for leaf in tree.flatten(mapped)]
    token = inside.set(True)
    try:
        stacked = vectorize(on_leaves, leaves)
    finally:
        inside.reset(token)
    return flat.unflatten(stacked)
