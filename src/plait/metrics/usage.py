"""Metrics of mixing weights: who is used, how sharply the gate decides, who is dead."""

from typing import Any

import keras
from keras import ops

from plait.errors import message
from plait.ops.combine import at_least_float32
from plait.ops.usage import gate_entropy, idle
from plait.typing import Config, Tensor


class _OfWeights(keras.metrics.Metric):
    """Sums of the weights over the rows, in float32 whatever the policy."""

    def __init__(self, num_experts: int, name: str, dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        if not isinstance(num_experts, int) or num_experts < 1:
            raise ValueError(
                message(
                    f"`num_experts` of {type(self).__name__} must be an integer of at least 1",
                    f"num_experts={num_experts!r}",
                    "Use the number of experts of the mixture",
                )
            )
        self.num_experts = num_experts
        self.totals = self.add_variable(
            shape=(num_experts,), initializer="zeros", name="totals", dtype="float32"
        )

    def update_state(self, weights: Tensor, sample_weight: Tensor = None) -> None:
        """Adds the weights of some rows.

        Args:
            weights: Tensor of shape `(b, …, e)`.
            sample_weight: `None`, or a tensor of shape `(b, …)`: how much each row counts.
        """
        weights = rows_of(weights, self.num_experts)
        if sample_weight is not None:
            weights = weights * ops.reshape(ops.cast(sample_weight, weights.dtype), (-1, 1))
        self.totals.assign(self.totals + ops.cast(ops.sum(weights, axis=0), "float32"))

    def usage(self) -> Tensor:
        """Returns each expert's share of all weight, `(e,)`."""
        return self.totals / ops.maximum(ops.sum(self.totals), 1e-30)

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "num_experts": self.num_experts}


@keras.saving.register_keras_serializable("plait")
class ExpertUsage(_OfWeights):
    """Each expert's share of all weight; the shares sum to one.

    `update_state` takes weights `(b, …, e)`; the result is a dict of `e` scalars.

    Args:
        num_experts: Number of experts, `e`.
        name: Expert `l` is logged as `"<name>_<l>"`.
        dtype: As in `keras.metrics.Metric`.

    Raises:
        ValueError: If `num_experts` is no positive integer, or does not count the weights.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> metric = plait.metrics.ExpertUsage(2)
    >>> metric.update_state(np.array([[0.5, 0.5], [1.0, 0.0]]))
    >>> {key: float(value) for key, value in metric.result().items()}
    {'usage_0': 0.75, 'usage_1': 0.25}
    """

    def __init__(self, num_experts: int, name: str = "usage", dtype: Any = None) -> None:
        super().__init__(num_experts, name=name, dtype=dtype)

    def result(self) -> dict[str, Any]:
        """Returns a dict of scalars, one for each expert."""
        usage = self.usage()
        return {f"{self.name}_{expert}": usage[expert] for expert in range(self.num_experts)}


@keras.saving.register_keras_serializable("plait")
class DeadExperts(_OfWeights):
    """How many experts have less than a small fraction of an even share of all weight.

    `update_state` takes weights `(b, …, e)`; the result is a scalar.

    Args:
        num_experts: Number of experts, `e`.
        threshold: An expert is dead with less than `threshold / e` of all weight.
        name: Name in the logs.
        dtype: As in `keras.metrics.Metric`.

    Raises:
        ValueError: If `num_experts` is no positive integer, or does not count the weights.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> metric = plait.metrics.DeadExperts(3)
    >>> metric.update_state(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    >>> float(metric.result())
    1.0
    """

    def __init__(
        self,
        num_experts: int,
        threshold: float = 0.01,
        name: str = "dead_experts",
        dtype: Any = None,
    ) -> None:
        super().__init__(num_experts, name=name, dtype=dtype)
        self.threshold = threshold

    def result(self) -> Tensor:
        """Returns a scalar; zero before any weights were seen."""
        dead = ops.sum(ops.cast(idle(self.usage(), self.threshold), "float32"))
        return ops.where(ops.sum(self.totals) > 0, dead, ops.zeros_like(dead))

    def get_config(self) -> Config:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable("plait")
class GateEntropy(keras.metrics.Mean):
    """The mean entropy of the weights, in nats: 0 where one expert decides, log e where all do.

    `update_state` takes weights `(b, …, e)`; the result is a scalar.

    Args:
        name: Name in the logs.
        dtype: As in `keras.metrics.Metric`.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> metric = plait.metrics.GateEntropy()
    >>> metric.update_state(np.array([[0.5, 0.5], [1.0, 0.0]]))
    >>> round(float(metric.result()), 4)
    0.3466
    """

    def __init__(self, name: str = "gate_entropy", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, weights: Tensor, sample_weight: Tensor = None) -> None:
        """Adds the weights `(b, …, e)` of some rows, which count as `sample_weight` `(b, …)`."""
        super().update_state(gate_entropy(weights), sample_weight=sample_weight)


def rows_of(weights: Tensor, num_experts: int) -> Tensor:
    """Returns the weights as `(n, e)`, checked to count the experts."""
    weights = at_least_float32(weights)
    if weights.shape[-1] != num_experts:
        raise ValueError(
            message(
                f"The last axis of the weights must count the experts, num_experts={num_experts}",
                f"weights of shape {tuple(weights.shape)}",
                f"Use num_experts={weights.shape[-1]}",
            )
        )
    return ops.reshape(weights, (-1, num_experts))
