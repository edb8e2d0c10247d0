"""Which experts of a mixture run together, and what one of their calls gets and does."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import keras

from plait.experts.runner import ExpertRunner, Rows
from plait.experts.traits import Traits, traits_of
from plait.typing import Mask, Nested

__all__ = ["Placed", "Plan", "plan_of", "rows_of", "share", "traits_of_group"]

Item = TypeVar("Item")


class Placed(NamedTuple):
    """What runs some experts of a mixture.

    Attributes:
        positions: Which experts of the mixture these are.
        runner: What runs them.
    """

    positions: list[int]
    runner: ExpertRunner


class Plan(NamedTuple):
    """How dispatched experts run, found once for calls of one kind.

    Attributes:
        groups: The groups, in the order in which experts are numbered.
        traits: What a call of each group does.
        mask_ranks: For each output the rank of its mask, where any of the experts gives one.
        dtypes: The outputs' common dtypes where those of the experts differ, else `None`.
        numbers: For each expert its number in that order, and last the number for an empty slot;
            `None` where the order is the experts' own.
    """

    groups: list[Placed]
    traits: list[Traits]
    mask_ranks: list[int | None]
    dtypes: list[str] | None
    numbers: list[int] | None


def traits_of_group(
    positions: Sequence[int],
    runner: ExpertRunner,
    inputs: Sequence[Nested],
    masks: Sequence[list[Mask]] | None,
    training: bool,
) -> Traits:
    """Returns what a call of some experts does."""
    given = share(masks, positions)[0] if masks else None
    return traits_of(runner.representative(), share(inputs, positions)[0], given, training)


def plan_of(
    groups: list[Placed],
    inputs: Sequence[Nested],
    masks: Sequence[list[Mask]] | None,
    training: bool,
) -> Plan:
    """Returns how dispatched experts run; see `Plan`."""
    traits = [traits_of_group(*group, inputs, masks, training) for group in groups]
    kinds = list(zip(*(each.dtypes for each in traits), strict=True))
    differ = any(len(set(kind)) > 1 for kind in kinds)
    order = [position for positions, _ in groups for position in positions]
    numbers = {position: number for number, position in enumerate(order)}
    in_order = order == sorted(order)
    return Plan(
        groups=groups,
        traits=traits,
        mask_ranks=_common_ranks(traits),
        dtypes=[keras.backend.result_type(*kind) for kind in kinds] if differ else None,
        numbers=None if in_order else [*(numbers[p] for p in sorted(order)), len(order)],
    )


def share(values: Sequence[Item], positions: Sequence[int]) -> list[Item]:
    """Returns one value where some experts share it, else one for each of them."""
    if len(values) == 1:
        return list(values)
    chosen = [values[position] for position in positions]
    return chosen[:1] if all(value is chosen[0] for value in chosen) else chosen


def rows_of(inputs: Sequence[Nested], masks: Sequence[list[Mask]] | None, num_experts: int) -> Rows:
    """Returns the distinct inputs, and which of them each expert reads."""
    parts: dict[int, int] = {}
    part_of = [parts.setdefault(id(part), len(parts)) for part in inputs]
    distinct = [part_of.index(number) for number in range(len(parts))]
    return Rows(
        parts=[inputs[position] for position in distinct],
        masks=[masks[position] if masks else None for position in distinct],
        part_of=part_of if len(inputs) > 1 else [0] * num_experts,
    )


def _common_ranks(traits: Sequence[Traits]) -> list[int | None]:
    """Returns the rank of each output's mask, where any of the experts gives one."""
    columns = zip(*(each.mask_ranks for each in traits), strict=True)
    return [max((rank for rank in column if rank is not None), default=None) for column in columns]
