"""What a call of an expert does besides computing its output, found by a symbolic call."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
from keras import ops, tree

from plait.experts.functional_call import Outcome, call_with
from plait.experts.seeds import is_seed
from plait.ops.backend import outside_of_graphs
from plait.typing import Mask, Nested


class Traits(NamedTuple):
    """What a call does.

    Attributes:
        mask_ranks: For each output the rank of its mask, `None` where it carries none.
        dtypes: The dtype of each output.
        moves_state: Whether the call assigns variables other than seeds, as batch norm does.
        adds_losses: Whether it adds losses, as activity regularisers do.
        draws: Whether it draws random numbers, as dropout does in training.
    """

    mask_ranks: tuple[int | None, ...]
    dtypes: tuple[str, ...]
    moves_state: bool
    adds_losses: bool
    draws: bool


class _Probe(keras.layers.Layer):
    """Calls a function of tensors where Keras asks a layer for its output's shape."""

    def __init__(self, function: Callable[[Nested], Nested]) -> None:
        super().__init__(autocast=False, name="probe")
        self.function = function
        self.built = True

    def call(self, inputs: Nested) -> Nested:
        return self.function(inputs)


def traits_of(
    expert: keras.layers.Layer, inputs: Nested, masks: Sequence[Mask] | None, training: bool
) -> Traits:
    """Returns what a call of an expert does.

    Args:
        expert: A built layer.
        inputs: Structure of tensors, of which only shapes and dtypes are read.
        masks: Flat list of their masks, or `None`.
        training: As in Keras.
    """
    specs = tree.map_structure(
        lambda leaf: keras.KerasTensor(
            (None, *leaf.shape[1:]), keras.backend.standardize_dtype(leaf.dtype)
        ),
        inputs,
    )
    ranks = [None if mask is None else len(mask.shape) for mask in masks or []]
    variables = expert.variables
    outcomes: list[Outcome] = []

    def call(inputs: Nested) -> Nested:
        leaves = tree.flatten(inputs)
        ones = [
            None if rank is None else ops.ones(ops.shape(leaf)[:rank], "bool")
            for leaf, rank in zip(leaves, ranks or [None] * len(leaves), strict=True)
        ]
        # Not the variables' own values, which Keras takes away while it traces a step.
        values = [ops.zeros(variable.shape, variable.dtype) for variable in variables]
        outcome = call_with(expert, variables, values, inputs, ones, training)
        outcomes.append(outcome)
        return outcome.outputs

    with outside_of_graphs():
        _Probe(call).compute_output_spec(specs)
    outcome = outcomes[-1]
    return Traits(
        mask_ranks=tuple(None if mask is None else len(mask.shape) for mask in outcome.masks),
        dtypes=tuple(
            keras.backend.standardize_dtype(leaf.dtype) for leaf in tree.flatten(outcome.outputs)
        ),
        moves_state=any(not is_seed(variables[position]) for position in outcome.updates),
        adds_losses=bool(outcome.losses),
        draws=any(is_seed(variables[position]) for position in outcome.updates),
    )
