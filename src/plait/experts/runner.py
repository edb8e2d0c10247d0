"""The contract of what runs experts of one architecture."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import keras

from plait.ops.backend import Group
from plait.typing import Mask, Nested, Tensor


class Results(NamedTuple):
    """What a call of several experts gives.

    Attributes:
        outputs: Structure with leaves `(e, b, …, u)`.
        masks: Flat list of the leaves' masks, `(e, b, …)` or `None`.
        losses: Scalars that the experts added and that Keras has not recorded yet.
    """

    outputs: Nested
    masks: list[Mask]
    losses: list[Tensor]


class Rows(NamedTuple):
    """What dispatched experts read: distinct inputs, and which of them each expert reads.

    Attributes:
        parts: Distinct inputs, each a structure of tensors `(n, …)`.
        masks: For each part a flat list of masks, or `None`.
        part_of: For each expert, the position of its part.
    """

    parts: list[Nested]
    masks: list[list[Mask] | None]
    part_of: list[int]


def input_of(inputs: Sequence[Nested], expert: int) -> Nested:
    """Returns what one expert reads.

    Args:
        inputs: One structure that all experts share, or one for each.
        expert: Position of the expert.
    """
    return inputs[0 if len(inputs) == 1 else expert]


class ExpertRunner(Protocol):
    """Runs one expert, or several of one architecture."""

    num_experts: int
    vectorized: bool

    def stop_vectorizing(self, reason: str) -> None:
        """Runs the experts one after another from now on, and warns."""

    def representative(self) -> keras.layers.Layer:
        """Returns the layer that is called."""

    def run_all(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
        used: Tensor | None = None,
    ) -> Results:
        """Runs every expert on every example.

        Args:
            inputs: One structure that all experts share, or one for each.
            masks: As `inputs`, flat lists; or `None`.
            training: As in Keras.
            used: `None`, or bool `(e,)`: an expert where it is false gets a gradient of zero.
        """

    def state(self) -> list[keras.Variable]:
        """Returns the variables in which the experts' values live."""

    def dispatched(self, rows: Rows, positions: Sequence[int], training: bool) -> list[Group]:
        """Returns the experts as groups for `plait.ops.dispatch.apply_groups`.

        Their functions take what `dispatch.fed_to_groups` makes of the rows, and return the outputs
        and the flat list of masks, as int32, of those that have one.

        Args:
            rows: What the experts of the mixture read.
            positions: Which experts of the mixture these are.
            training: As in Keras.
        """

    def after_dispatch(self) -> None:
        """Moves the seeds on, so that the next step draws anew."""

    def values(self, expert: int) -> list[Tensor]:
        """Returns the present values of one expert's variables."""

    def set_values(self, expert: int, values: Sequence[Tensor]) -> None:
        """Sets the variables of one expert."""

    def set_all(self, values: Sequence[Sequence[Tensor]]) -> None:
        """Sets the variables of every expert: a list of values for each."""
