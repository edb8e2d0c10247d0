"""One expert that runs as itself."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from plait.experts.fresh import is_seed
from plait.experts.rows import advance_seeds, run_chosen
from plait.experts.stateless import attach_masks, masks_of

# Keras tracks an attribute of any name, but does not walk those that begin with two underscores
# when it saves: the mixture writes its experts itself, the same however they run.
_SCAFFOLD = "__scaffold"


class SingleExpert(keras.layers.Layer):
    """Runs one expert on its own variables, with an expert axis of length one.

    Args:
        expert: A built Keras layer or model.
    """

    def __init__(self, expert: keras.layers.Layer) -> None:
        super().__init__(name=expert.name, autocast=False, dtype="float32")
        self.supports_masking = True
        setattr(self, _SCAFFOLD, expert)
        self.built = True

    def representative(self) -> keras.layers.Layer:
        """Returns the expert; a property would be walked when Keras saves."""
        return getattr(self, _SCAFFOLD)

    def call(self, inputs: Any, masks: Any = None, training: bool = False) -> Any:
        """Runs the expert on every example; see `ExpertStack.call`."""
        fed = attach_masks(inputs[0], masks[0] if masks else None)
        outputs = self.representative()(fed, training=training)
        output_masks = [None if mask is None else mask[None] for mask in masks_of(outputs)]
        return tree.map_structure(lambda leaf: leaf[None], outputs), output_masks

    def run_chosen(
        self, rows: Any, masks: Any, indices: Any, capacity: int | None, training: bool
    ) -> tuple[Any, list[Any]]:
        """Runs the expert on the rows that chose it; see `plait.experts.rows.run_chosen`."""
        variables = self.representative().variables
        results = run_chosen(
            self.representative(),
            variables,
            [variable.value[None] for variable in variables],
            rows,
            masks,
            indices,
            num_experts=1,
            capacity=capacity,
            training=training,
            vectorized=False,
        )
        if training:
            advance_seeds(variables, [is_seed(variable) for variable in variables])
        return results

    def stacked_values(self) -> list[Any]:
        """Returns the expert's variables as NumPy arrays of shape `(1, …)`."""
        return [
            ops.convert_to_numpy(variable.value)[None]
            for variable in self.representative().variables
        ]

    def set_stacked(self, values: Sequence[Any]) -> None:
        """Sets the expert's variables from arrays of shape `(1, …)`."""
        for variable, value in zip(self.representative().variables, values, strict=True):
            variable.assign(value[0])

    def save_own_variables(self, store: Any) -> None:
        """Writes nothing: the mixture writes its experts' variables."""

    def load_own_variables(self, store: Any) -> None:
        """Reads nothing: the mixture reads its experts' variables."""
