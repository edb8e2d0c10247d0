"""The weighted merge: the formula as a layer, and nothing else."""

from collections.abc import Sequence
from typing import Any

import keras

from plait.errors import message
from plait.ops.combine import combine_masks, expert_weight, merged_dtype
from plait.ops.merging import Combination, check_combination, combination
from plait.ops.presence import log_over_present, over_present
from plait.ops.shapes import Shape, agree, follows_rank_rule, is_shape, merge
from plait.typing import Config, Mask, Shapes, Tensor


@keras.saving.register_keras_serializable("plait")
class WeightedMerge(keras.layers.Layer):
    """Merges parallel outputs by weights: `out = Σ_l w_l · f_l`, or a pool of distributions.

    The weights come first, then the experts' outputs. The leading axes of the weights are a
    prefix of the outputs' shape: `(b, e)` over `(b, u)` weighs per example, `(b, t, e)` over
    `(b, t, u)` per time step, `(b, e)` over `(b, h, w, u)` per image, `(b, u, e)` over `(b, u)`
    per class. Weights that do not sum to one are used as they are. Products are summed in
    float32 or better, whatever the dtype policy.

    With `combination="geometric"` the outputs are distributions over the last axis (one unit is the
    probability of "yes"), merged to the logarithmic opinion pool `softmax_c Σ_l w_l · log f_l`; see
    `plait.ops.pool`. Whether they are probabilities is not checked, which would read every value:
    what they sum to does not matter, and a negative one gives NaN.

    A step of the output is valid where it is valid in every input that carries a mask.

    Args:
        log_space: Whether inputs and output are logarithms: log-weights and log-probabilities in,
            `log Σ_l exp(log w_l + log f_l)` out, also where a weight or a probability underflows;
            or the logarithm of the pool.
        combination: `"arithmetic"`, the weighted sum; `"geometric"`, the pool of classes; or
            `"gaussian"`, which has no log space.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: List `[weights, output_1, …, output_e]`: weights of shape `(b, …, e)`, then `e`
            floating-point tensors of one shape `(b, …, u)`.
        present: `None`, or bool `(b, e)`, false where an output is missing: its weight becomes
            zero, the others' grow in proportion to the same total, and what stands in its place,
            NaN for example, has no effect. Where all are missing the output is zero (in log space
            −∞), or the uniform distribution of the pool.

    Returns:
        Tensor of the outputs' shape.

    Raises:
        ValueError: If an output differs in shape from the first, if the weights count another
            number of experts, or if their leading axes are no prefix of the outputs' shape; if the
            combination takes no such outputs.
        TypeError: If an output has integers.
        ValueError: If there is no such combination.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> weights = np.array([[0.25, 0.75]])
    >>> y = plait.layers.WeightedMerge()([weights, np.array([[4.0, 0.0]]), np.array([[0.0, 4.0]])])
    >>> tuple(y.shape), [round(float(v), 4) for v in y[0]]
    ((1, 2), [1.0, 3.0])

    References:
        Jacobs, Jordan, Nowlan, Hinton (1991), Adaptive mixtures of local experts.
        Genest, Zidek (1986), Combining probability distributions: a critique and an annotated
        bibliography.
    """

    def __init__(
        self, log_space: bool = False, combination: str = "arithmetic", **kwargs: Any
    ) -> None:
        # Weights and outputs are summed as they come, not rounded to the compute dtype first.
        super().__init__(autocast=False, **kwargs)
        self.log_space = log_space
        self.combination = check_combination(combination)
        if log_space and self._rule.merge_logs is None:
            raise ValueError(
                message(
                    "`log_space` merges logarithms of weights and probabilities",
                    f"log_space=True, combination={combination!r}",
                    "Use log_space=False",
                )
            )
        self.supports_masking = True

    @property
    def _rule(self) -> Combination:
        return combination(self.combination)

    def build(self, input_shape: Sequence[Shape]) -> None:
        """Checks that weights and outputs fit together."""
        merged = _merged_shape(input_shape)
        self._rule.check(tuple(input_shape[0]), merged)

    def call(self, inputs: Sequence[Any], present: Mask = None) -> Tensor:
        """Returns the merged output; see `merged_dtype` for its dtype."""
        _check_floats(inputs)
        weights, *outputs = inputs
        dtypes = [keras.backend.standardize_dtype(output.dtype) for output in outputs]
        if present is not None:
            keep = log_over_present if self.log_space else over_present
            weights = keep(weights, present)
            nothing = -float("inf") if self.log_space and self.combination == "arithmetic" else 0.0
            outputs = [_filled(y, present, i, nothing) for i, y in enumerate(outputs)]
        merge = self._rule.merge_logs if self.log_space else self._rule.merge
        assert merge is not None  # the constructor has seen to it
        merged = merge(weights, outputs)
        return keras.ops.cast(merged, merged_dtype(dtypes, self.compute_dtype))

    def compute_output_shape(
        self, input_shape: Sequence[Shape], present_shape: Shape | None = None
    ) -> Shape:
        """Returns the outputs' shape, with every size that is known from any input."""
        del present_shape
        return _merged_shape(input_shape)

    def compute_output_spec(self, inputs: Sequence[Any], present: Mask = None) -> keras.KerasTensor:
        """Returns shape and dtype of the merged output."""
        del present
        _check_floats(inputs)
        shape = _merged_shape([tensor.shape for tensor in inputs])
        dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in inputs[1:]]
        return keras.KerasTensor(shape, merged_dtype(dtypes, self.compute_dtype))

    def compute_mask(self, inputs: Sequence[Any], mask: Mask = None) -> Tensor:
        """Returns where every masked input is valid, or `None` when none is masked."""
        return None if mask is None else combine_masks(mask)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "log_space": self.log_space,
            "combination": self.combination,
        }


def _merged_shape(shapes: Shapes) -> Shape:
    """Returns the shape of the merged output, or says what does not fit."""
    if is_shape(shapes) or isinstance(shapes, dict) or len(shapes) < 2:
        raise ValueError(
            message(
                "WeightedMerge takes a list: first the weights, then at least one output",
                f"shape {shapes}" if is_shape(shapes) else f"shapes {shapes}",
                "Call it as WeightedMerge()([weights, output_1, output_2, …])",
            )
        )
    weights, first, *others = (tuple(shape) for shape in shapes)
    output = first
    for position, shape in enumerate(others, start=1):
        if not agree(output, shape):
            raise ValueError(
                f"Output {position} has shape {shape}, but output 0 has {first}. "
                "Outputs merged by WeightedMerge must agree in shape."
            )
        output = merge(output, shape)
    count = len(others) + 1
    if not weights or weights[-1] not in (None, count):
        raise ValueError(
            message(
                "The last axis of the weights must count the outputs that follow them",
                f"weights of shape {weights} and {count} outputs",
                f"Pass weights of shape (…, {count}) first, then the outputs",
            )
        )
    if not follows_rank_rule(weights, output):
        raise ValueError(
            message(
                "The leading axes of the weights must be a prefix of the outputs' shape",
                f"weights of shape {weights} over outputs of shape {output}",
                f"Use weights of shape {(*output[:1], count)} to weigh per example",
            )
        )
    return merge(weights[:-1], output[: len(weights) - 1]) + output[len(weights) - 1 :]


def _filled(output: Tensor, present: Tensor, expert: int, nothing: float) -> Tensor:
    """Returns an expert's output with `nothing` where it is missing."""
    there = expert_weight(keras.ops.cast(present, "bool"), expert, len(output.shape))
    return keras.ops.where(there, output, keras.ops.full_like(output, nothing))


def _check_floats(inputs: Sequence[Any]) -> None:
    for position, tensor in enumerate(inputs):
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if "float" not in dtype:
            name = "The weights" if position == 0 else f"Output {position - 1}"
            raise TypeError(
                f"{name} must be floating-point to be merged. Received: dtype {dtype}. "
                "Merge probabilities or values, not labels or ids."
            )
