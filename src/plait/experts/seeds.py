"""Random numbers of experts that share a call: which seeds each has, and how they move on."""

from collections.abc import Sequence

import keras
from keras import ops

from plait.compat import flat_layers
from plait.typing import Tensor

# Draws that one call may take from one seed generator before the next step repeats them.
DRAWS_PER_CALL = 1024
# Odd and prime to the step between experts, so that no two segments draw the same numbers.
_STEP_OF_SEGMENT = 7_919_333


def is_seed(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a `keras.random.SeedGenerator`, or a stack of such."""
    return variable.name.endswith("seed_generator_state")


def seed_positions(variables: Sequence[keras.Variable]) -> list[int]:
    """Returns the positions of the seeds among variables."""
    return [position for position, variable in enumerate(variables) if is_seed(variable)]


def advanced(seeds: Tensor) -> Tensor:
    """Returns seeds `(…, 2)` behind all that one call may have drawn from them."""
    return seeds + ops.cast([0, DRAWS_PER_CALL], seeds.dtype)


class Seeds:
    """The seeds among the variables of experts of one architecture.

    Args:
        variables: The variables of one expert.
        share: Whether experts draw from the sum of their seeds, as in a vectorised call on PyTorch,
            which needs one integer for all and draws differently for each expert. If not, each
            draws from its own.
    """

    def __init__(self, variables: Sequence[keras.Variable], share: bool = False) -> None:
        self.positions = seed_positions(variables)
        self.shared = self.positions if share else []
        self.mapped = [p for p in range(len(variables)) if p not in self.shared]

    def split(self, values: Sequence[Tensor]) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Returns the values `(e, …)` to be mapped over, and the seeds that all share.

        Args:
            values: A tensor `(e, …)` for each variable.
        """
        if not self.shared:
            return list(values), {}
        shared = {p: ops.sum(values[p], axis=0) for p in self.shared}
        return [values[p] for p in self.mapped], shared

    def join(self, mapped: Sequence[Tensor], shared: dict[int, Tensor]) -> list[Tensor]:
        """Returns a value for each variable, in order, for one expert."""
        if not shared:
            return list(mapped)
        by_position = dict(zip(self.mapped, mapped, strict=True)) | shared
        return [by_position[position] for position in sorted(by_position)]

    def of_segment(self, values: list[Tensor], segment: Tensor) -> list[Tensor]:
        """Returns the values with seeds of their own for a segment of rows."""
        moved = list(values)
        for position in self.positions:
            seed = values[position]
            step = ops.cast(segment, seed.dtype) * _STEP_OF_SEGMENT
            moved[position] = seed + ops.stack([step, ops.zeros_like(step)])
        return moved


# Attributes by which Keras' layers tell how much they draw: with zeros they draw nothing.
_AMOUNTS = ("dropout", "rate", "recurrent_dropout", "stddev")


def draws(expert: keras.layers.Layer) -> bool:
    """Whether a layer of an expert draws random numbers in training."""
    for layer in flat_layers(expert):
        if any(isinstance(v, keras.random.SeedGenerator) for v in vars(layer).values()):
            amounts = [getattr(layer, name) for name in _AMOUNTS if hasattr(layer, name)]
            if not amounts or any(amounts):
                return True
    return False
