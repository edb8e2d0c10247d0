"""One expert that runs as itself."""

from collections.abc import Sequence

import keras
from keras import tree

from plait.compat import attach_masks, masks_of
from plait.experts.dispatch import group_of
from plait.experts.functional_call import call_with
from plait.experts.runner import Results, Rows
from plait.experts.seeds import Seeds, advanced, is_seed
from plait.ops.backend import Group, is_float, keep_gradient
from plait.typing import Mask, Nested, Tensor


class SingleExpert:
    """Runs one expert on its own variables.

    Args:
        expert: A built Keras layer or model.
    """

    num_experts = 1
    vectorized = False

    def __init__(self, expert: keras.layers.Layer) -> None:
        self.expert = expert

    def stop_vectorizing(self, reason: str) -> None:
        """Does nothing: one expert is not vectorised."""

    def representative(self) -> keras.layers.Layer:
        """Returns the expert."""
        return self.expert

    def run_all(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
        used: Tensor | None = None,
    ) -> Results:
        """Runs the expert on every example; see `ExpertRunner.run_all`."""
        if used is not None:
            return self._run_guarded(inputs[0], masks[0] if masks else None, training, used)
        fed = attach_masks(inputs[0], masks[0]) if masks else inputs[0]
        outputs = self.expert(fed, training=training)
        output_masks = [None if mask is None else mask[None] for mask in masks_of(outputs)]
        return Results(tree.map_structure(lambda leaf: leaf[None], outputs), output_masks, [])

    def _run_guarded(
        self, inputs: Nested, masks: list[Mask] | None, training: bool, used: Tensor
    ) -> Results:
        """Runs the expert with a gradient of zero where it is not used."""
        variables = self.expert.variables
        values = [
            keep_gradient(v.value[None], used)[0] if is_float(v) else v.value for v in variables
        ]
        outcome = call_with(self.expert, variables, values, inputs, masks, training)
        for position, value in outcome.updates.items():
            variables[position].assign(value)
        output_masks = [None if mask is None else mask[None] for mask in outcome.masks]
        outputs = tree.map_structure(lambda leaf: leaf[None], outcome.outputs)
        return Results(outputs, output_masks, [])

    def state(self) -> list[keras.Variable]:
        """Returns the expert's variables."""
        return list(self.expert.variables)

    def dispatched(self, rows: Rows, positions: Sequence[int], training: bool) -> list[Group]:
        """Returns the expert as a group of one; see `ExpertRunner.dispatched`."""
        variables = self.expert.variables
        part = rows.part_of[positions[0]]
        return [
            group_of(
                self.expert,
                variables,
                Seeds(variables),
                [variable.value[None] for variable in variables],
                num_experts=1,
                masks=rows.masks[part],
                part=part,
                training=training,
                vectorized=False,
            )
        ]

    def after_dispatch(self) -> None:
        """Moves the seeds on, so that the next step draws anew."""
        for seed in filter(is_seed, self.expert.variables):
            seed.assign(advanced(seed.value))

    def values(self, expert: int) -> list[Tensor]:
        """Returns the present values of the expert's variables."""
        del expert
        return [variable.value for variable in self.expert.variables]

    def set_values(self, expert: int, values: Sequence[Tensor]) -> None:
        """Sets the expert's variables."""
        del expert
        for variable, value in zip(self.expert.variables, values, strict=True):
            variable.assign(value)

    def set_all(self, values: Sequence[Sequence[Tensor]]) -> None:
        """Sets the variables of the one expert."""
        self.set_values(0, values[0])
