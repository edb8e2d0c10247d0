"""A metric that reads what a router recorded during the forward pass."""

from typing import Any

import keras
from keras import ops

from plait.typing import Tensor


class Tally(keras.metrics.Metric):
    """The mean of what was recorded since the last reset, in the logs only where anything was.

    A metric's own variables are not part of the forward pass: on JAX, what a layer assigns to them
    in `call` is lost. The sums therefore live in a variable of the layer, and this metric only
    reads and resets it. In the middle of an epoch a compiled JAX step cannot see that variable, so
    the progress bar shows zero or an old value there; the logs of the epoch are exact.

    Keras merges a result that is a dict into the logs, and of an empty one nothing is seen. A
    compiled step must have the keys that the logs of its epoch get. `add` therefore sets a flag
    while a step is traced, and `result`, at the end of the same step, reads and clears it: a trace
    of `evaluate` or `test_on_batch` never calls `add`.

    Args:
        totals: Variable of shape `(2,)`, the weighted sum and the sum of the weights.
        name: Key in the logs.
    """

    def __init__(self, totals: keras.Variable, name: str) -> None:
        super().__init__(name=name)
        # In a closure: as an attribute the variable would become a variable of the metric.
        self._read = lambda: totals.value
        self._write = totals.assign
        self._records = False

    def add(self, value: Tensor, count: Tensor = 1.0) -> None:
        """Adds a value with a weight."""
        value, count = ops.cast(ops.stop_gradient(value), "float32"), ops.cast(count, "float32")
        self._write(self._read() + ops.stack([value * count, count]))
        self._records = True

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the router records during the forward pass."""

    def mean(self) -> Tensor:
        """Returns the mean, a scalar tensor; zero where nothing was recorded."""
        try:
            totals = self._read()
        except TypeError:
            # Keras empties the model's variables while a compiled JAX step is traced.
            totals = ops.zeros((2,), dtype="float32")
        total, count = ops.unstack(totals, 2)
        return total / ops.maximum(count, 1e-30)

    def result(self) -> dict[str, Tensor]:
        """Returns the mean under the metric's name, or an empty dict where nothing was recorded."""
        records, self._records = self._records, False
        return {self.name: self.mean()} if records or self._counts() else {}

    def _counts(self) -> bool:
        """Returns whether the variable counts anything: a compiled step adds without `add`.

        False where the variable has no number, as while a step is traced.
        """
        try:
            return float(self._read()[1]) > 0
        except (TypeError, RuntimeError):  # the latter on PyTorch, where Keras infers shapes
            return False

    def reset_state(self) -> None:
        """Forgets what was recorded."""
        self._write(ops.zeros((2,), dtype="float32"))
        self._records = False
