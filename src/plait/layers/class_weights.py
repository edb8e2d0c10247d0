"""Free weights: of any sign and sum, for each expert, or for each class and expert."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.typing import Config, Nested, Shapes, Tensor


@keras.saving.register_keras_serializable("plait")
class ClassWeights(keras.layers.Layer):
    """Gives every example the same weights, one for each class and expert, `w_lc = start_l + v_lc`.

    As the gate of a mixture with `combination="geometric"`, without a router, it makes the pool
    `softmax_c Σ_l w_lc · log f_l(x)[c]`. Its crossentropy is convex in the weights. The
    deviations `v` start at zero and are penalised, which keeps the weights near `start` where rows
    are few. With `units=None` there is one weight for each expert, `w_l = start_l + v_l`: then the
    weights of a pool may sum to more than one, which sharpens it, and those of a weighted sum are
    the least squares of stacked regression (Breiman 1996).

    Args:
        num_experts: Number of experts, `e`.
        units: Number of classes, `u`; `None` for weights that are the same for all.
        start: Weight of each expert that the penalty draws to, such as the best constant weights;
            `None` for the plain average.
        l2: Coefficient of `Σ v²` in the loss.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Tensor of shape `(b, …)`, or a structure of such tensors; only `b` is read.

    Returns:
        Weights of shape `(b, u, e)`, or `(b, e)`, in float32 or better.

    Raises:
        ValueError: If `start` has not one finite number for each expert.

    Example:
    >>> import keras, plait
    >>> experts = [keras.layers.Dense(3, activation="softmax") for _ in "ab"]
    >>> gate = plait.layers.ClassWeights(num_experts=2, units=3)
    >>> mix = plait.Mixture(experts, gate, combination="geometric")
    >>> tuple(mix(keras.ops.ones((5, 4))).shape), mix.gate_weights(keras.ops.ones((5, 4))).shape
    ((5, 3), (5, 3, 2))

    References:
        Breiman (1996), Stacked regressions.
    """

    def __init__(
        self,
        num_experts: int,
        units: int | None,
        start: Sequence[float] | None = None,
        l2: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"autocast": False, **kwargs})
        self.num_experts = num_experts
        self.units = units
        self.l2 = l2
        self.start = [1.0 / num_experts] * num_experts if start is None else [*map(float, start)]
        if len(self.start) != num_experts or not np.isfinite(self.start).all():
            raise ValueError(
                message(
                    "`start` of ClassWeights must be a finite number for each of the "
                    f"{num_experts} experts",
                    f"start={start!r}",
                    "Leave it out for the plain average",
                )
            )
        self.supports_masking = True

    @property
    def _shape(self) -> tuple[int, ...]:
        """The weights of one example."""
        return (self.num_experts,) if self.units is None else (self.units, self.num_experts)

    @property
    def _dtype(self) -> str:
        return keras.backend.result_type(self.variable_dtype, "float32")

    def build(self, input_shape: Shapes) -> None:
        """Creates the deviations."""
        del input_shape
        self.deviations = self.add_weight(
            shape=self._shape,
            initializer="zeros",
            regularizer=keras.regularizers.L2(self.l2),
            name="deviations",
            dtype=self._dtype,
            autocast=False,
        )

    def call(self, inputs: Nested) -> Tensor:
        """Returns the weights, repeated for each example."""
        size = ops.shape(tree.flatten(inputs)[0])[0]
        deviations = ops.convert_to_tensor(self.deviations)
        weights = deviations + ops.cast(ops.convert_to_tensor(self.start), deviations.dtype)
        return ops.broadcast_to(weights[None], (size, *self._shape))

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """Weights of whole examples have no masked steps."""
        del inputs, mask

    def compute_output_spec(self, inputs: Nested) -> keras.KerasTensor:
        """One weight per expert, or per class and expert."""
        rows = tree.flatten(inputs)[0].shape[0]
        return keras.KerasTensor((rows, *self._shape), self._dtype)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "num_experts": self.num_experts,
            "units": self.units,
            "start": list(self.start),
            "l2": self.l2,
        }
