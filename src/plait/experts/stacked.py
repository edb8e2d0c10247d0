"""Experts of one architecture in one vectorised call."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import keras
import numpy as np
from keras import ops, tree

from plait.compat import flat_layers
from plait.errors import first_line
from plait.experts.dispatch import group_of
from plait.experts.functional_call import call_with
from plait.experts.kept import KeptCalls
from plait.experts.runner import Results, Rows
from plait.experts.seeds import Seeds, advanced, seed_positions
from plait.experts.variables import ExpertVariables
from plait.ops.backend import (
    Group,
    is_float,
    keep_gradient,
    maps_seeds,
    refuses,
    unstack,
    vectorized_map,
)
from plait.ops.tracing import runs_one_by_one
from plait.typing import Mask, Nested, Tensor

Result = TypeVar("Result")


class StackedRunner:
    """Runs `e` experts of one architecture in one call.

    One expert is called as a pure function of the variables' values, which differ per expert.

    Args:
        layer: The built layer that is called. Its own variables are not read.
        variables: Where the values are read and written.
        vectorized: Whether one call runs all experts; if not, they run one after another.
    """

    def __init__(
        self, layer: keras.layers.Layer, variables: ExpertVariables, vectorized: bool = True
    ) -> None:
        self.layer = layer
        self.num_experts = variables.num_experts
        self.variables = variables
        self.layer_variables = list(layer.variables)
        self.vectorized = vectorized
        self.seeds = {share: Seeds(self.layer_variables, share) for share in (False, True)}
        self._kept = KeptCalls([layer])
        self._layers = flat_layers(layer)

    def representative(self) -> keras.layers.Layer:
        """Returns the layer that is called in place of all."""
        return self.layer

    def run_all(
        self,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        training: bool,
        used: Tensor | None = None,
    ) -> Results:
        """Runs every expert on every example; see `ExpertRunner.run_all`."""

        def run(vectorized: bool) -> Results:
            key = (vectorized, training, tuple(layer.trainable for layer in self._layers))
            function = partial(self._run_all, training, vectorized)
            return self._kept.run(key, self.state(), function, inputs, masks, used)

        return self._unless_refused(run)

    def _run_all(
        self,
        training: bool,
        vectorized: bool,
        inputs: Sequence[Nested],
        masks: Sequence[list[Mask]] | None,
        used: Tensor | None,
    ) -> Results:
        """Runs every expert on every example, in one vectorised call or not."""
        values = self.variables.read()
        if used is not None:
            values = [keep_gradient(v, used) if is_float(v) else v for v in values]
        each = len(inputs) > 1
        fed = (_stack(inputs), _stack(masks) if masks else None) if each else None
        common = (inputs[0], masks[0] if masks else None)
        seeds = self.seeds[vectorized and not maps_seeds]
        mapped, shared = seeds.split(values)

        def one(slices: Nested) -> Nested:
            joined = seeds.join(slices[0], shared)
            inputs, masks = slices[1] if each else common
            outcome = call_with(self.layer, self.layer_variables, joined, inputs, masks, training)
            updates = {str(position): value for position, value in outcome.updates.items()}
            return outcome.outputs, outcome.masks, updates, outcome.losses

        outputs, output_masks, updates, losses = self._for_all(one, (mapped, fed), vectorized)
        for position, value in ((int(name), value) for name, value in updates.items()):
            if position in shared:  # one stream of draws moved on, and with it every expert's
                value = values[position] + (value - shared[position])
            self.variables.write(position, value)
        return Results(outputs, output_masks, [ops.sum(loss) for loss in losses])

    def _for_all(
        self, function: Callable[[Nested], Nested], mapped: Nested, vectorized: bool
    ) -> Nested:
        """Calls a function of one expert for all experts.

        Args:
            function: Maps one expert's slices to a structure of tensors and `None`.
            mapped: Structure of tensors `(e, …)` and `None`.
            vectorized: Whether in one call.
        """
        leaves = tree.flatten(mapped)
        present = [leaf for leaf in leaves if leaf is not None]

        def of_one(slices: Sequence[Tensor]) -> Nested:
            given = iter(slices)
            filled = [None if leaf is None else next(given) for leaf in leaves]
            return function(tree.pack_sequence_as(mapped, filled))

        if vectorized:
            # Also over `arange(e)`, so that experts without variables have an axis to map.
            numbers = ops.arange(self.num_experts, dtype="int32")
            return vectorized_map(lambda slices, _=None: of_one(slices[1:]), [numbers, *present])
        columns = [unstack(leaf) for leaf in present]
        return _stack([of_one([column[i] for column in columns]) for i in range(self.num_experts)])

    def _unless_refused(self, run: Callable[[bool], Result]) -> Result:
        """Returns `run(True)`, or `run(False)` where the backend cannot vectorise the experts."""
        if not self.vectorized or runs_one_by_one():
            return run(False)
        try:
            return run(True)
        except Exception as error:
            if not refuses(error):
                raise
            reason = first_line(error)
        self.stop_vectorizing(reason)
        return run(False)

    def stop_vectorizing(self, reason: str) -> None:
        """Runs the experts one after another from now on, and warns."""
        self.vectorized = False
        warnings.warn(
            f"{self.num_experts} experts like {self.layer.name!r} run one after another: the "
            f"backend cannot vectorise them ({reason}).",
            stacklevel=3,
        )

    def state(self) -> list[keras.Variable]:
        """Returns the variables in which the experts' values live."""
        return self.variables.state()

    def dispatched(self, rows: Rows, positions: Sequence[int], training: bool) -> list[Group]:
        """Returns the experts as groups; see `ExpertRunner.dispatched`.

        Experts that read one part are one group, others a group each.
        """
        parts = [rows.part_of[position] for position in positions]
        values = self.variables.read()
        if len(set(parts)) == 1:
            return [self._group(values, self.num_experts, rows, parts[0], training)]
        columns = [unstack(value) for value in values]
        return [
            self._group([column[i][None] for column in columns], 1, rows, part, training)
            for i, part in enumerate(parts)
        ]

    def _group(
        self, values: Sequence[Tensor], count: int, rows: Rows, part: int, training: bool
    ) -> Group:
        vectorized = self.vectorized and count > 1
        return group_of(
            self.layer,
            self.layer_variables,
            self.seeds[vectorized and not maps_seeds],
            values,
            num_experts=count,
            masks=rows.masks[part],
            part=part,
            training=training,
            vectorized=vectorized,
        )

    def after_dispatch(self) -> None:
        """Moves the seeds on, so that the next step draws anew."""
        positions = seed_positions(self.layer_variables)
        values = self.variables.read() if positions else []
        for position in positions:
            self.variables.write(position, advanced(values[position]))

    def values(self, expert: int) -> list[Tensor]:
        """Returns the present values of one expert's variables."""
        return self.variables.read_one(expert)

    def set_values(self, expert: int, values: Sequence[Tensor]) -> None:
        """Sets the variables of one expert."""
        self.variables.write_one(expert, values)

    def set_all(self, values: Sequence[Sequence[Tensor]]) -> None:
        """Sets the variables of every expert, each stack at once."""
        for position, column in enumerate(zip(*values, strict=True)):
            arrays = [ops.convert_to_numpy(value) for value in column]
            self.variables.write(position, ops.convert_to_tensor(np.stack(arrays)))


def _stack(structures: Sequence[Nested]) -> Nested:
    """Returns one structure with leaves `(e, …)` from `e` structures; `None` stays `None`."""
    columns = zip(*(tree.flatten(structure) for structure in structures), strict=True)
    stacked = [None if column[0] is None else ops.stack(column) for column in columns]
    return tree.pack_sequence_as(structures[0], stacked)
