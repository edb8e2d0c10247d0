"""The three candidates of `plait fit`: of equal size, and trained with the same care.

Every training of a candidate runs in one: a stack of copies that differ in the rows they count, one
for each fold held out and one for each set of rows to learn from. A program is compiled once, and
a step costs little more than one copy's.
"""

import dataclasses
import itertools
import math
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

import plait
from plait.encoding import Schema
from plait.losses.base import MixtureObjective
from plait.typing import Tensor

# From the simplest on: where held-out rows cannot tell two apart, the earlier is chosen.
NETWORK, AVERAGE, MIXTURE = "network", "average", "mixture"
CANDIDATES = (NETWORK, AVERAGE, MIXTURE)
TITLES = {
    NETWORK: "one network",
    AVERAGE: "networks averaged",
    MIXTURE: "blended mixture",
}
_FEW_ROWS = 1000  # below it noise on the features keeps networks from learning rows by heart
_STEPS = 1500  # of an optimizer at least, unless `epochs` allows fewer
_TINY = 1e-12


class ByRow(Protocol):
    """What gives rows by number, as an array does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its rows come first."""

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Returns rows."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all candidates share.

    Args:
        schema: Says how many features come in, and what goes out.
        experts: How many networks the average and the mixture have.
        hidden: Units of each of their two hidden layers.
        gate: `"linear"`, `"mlp"` or `"constant"`: the mixture's.
        epochs: Passes over the rows.
        batch: Rows per step.
        noise: Standard deviation of Gaussian noise on the features in training.
        rate: First learning rate of a cosine decay to zero.
        decay: Weight decay of AdamW.
    """

    schema: Schema
    experts: int
    hidden: int
    gate: str
    epochs: int
    batch: int
    noise: float
    rate: float = 5e-3
    decay: float = 0.1


def plan_for(schema: Schema, experts: int, hidden: int, gate: str, epochs: int, rows: int) -> Plan:
    """Returns a plan whose batch and noise follow from the number of rows."""
    batch = int(min(256, max(32, 2 ** round(math.log2(max(rows, 1) / 60)))))
    epochs = min(epochs, max(20, math.ceil(_STEPS / math.ceil(rows / batch))))
    noise = 0.5 if rows < _FEW_ROWS else 0.0
    return Plan(schema, experts, hidden, gate, epochs, batch, noise)


class Trained:
    """A candidate, trained on several choices of rows at once.

    Args:
        name: One of `CANDIDATES`.
        plan: What all candidates share.
        x: Features `(b, d)`, an array or anything else that gives rows by number.
        y: Targets as the network sees them, `(b,)`.
        weight: What each row counts in each copy, `(b, copies)`, in the mean 1; as `x`.
        seed: Seed of weights, order and noise.
        callbacks: For `keras.Model.fit`.

    Attributes:
        curve: The mean training loss of each epoch.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        x: ByRow,
        y: np.ndarray,
        weight: ByRow,
        seed: int,
        callbacks: list[keras.callbacks.Callback],
    ) -> None:
        self.name, self.plan, self.copies = name, plan, weight.shape[1]
        keras.utils.set_random_seed(seed)
        self._stack = _stacked(name, plan, self.copies)
        if not self._stack.built:
            self._stack.build((None, plan.schema.width))
        _draw(self._stack, seed)
        data = _Batches(x, y, weight, plan, seed)
        schedule = keras.optimizers.schedules.CosineDecay(plan.rate, plan.epochs * len(data))
        self._stack.compile(
            keras.optimizers.AdamW(schedule, weight_decay=plan.decay),
            _EachCopy(self.copies, bool(plan.schema.classes)),
        )
        found = self._stack.fit(data, epochs=plan.epochs, callbacks=callbacks, verbose=0)
        self.curve = [float(loss) for loss in found.history["loss"]]

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns what each copy predicts, `(copies, b, u)`."""
        outputs = np.moveaxis(self._stack.expert_outputs(x, batch_size=1024), 1, 0)
        return outputs.reshape(self.copies, -1, *outputs.shape[1:]).mean(axis=1)

    def copy(self, i: int) -> "plait.Mixture":
        """Returns one copy as a mixture of its own; one network is a mixture of one expert."""
        found = build(self.name, self.plan)
        e = found.num_experts
        own = i if self.name == MIXTURE else slice(i * e, (i + 1) * e)
        for variable, values in zip(
            found.trainable_variables, self._stack.trainable_variables, strict=True
        ):
            variable.assign(ops.convert_to_numpy(values)[own])
        return found


def build(name: str, plan: Plan) -> "plait.Mixture":
    """Returns an untrained candidate; one network is a mixture of one expert.

    Args:
        name: One of `CANDIDATES`.
        plan: What all candidates share.
    """
    if name == NETWORK:
        return plait.Mixture(_network(plan, _widened(plan)), num_experts=1, gate="uniform")
    template = _network(plan, plan.hidden)
    if name == AVERAGE:
        return plait.Mixture(template, num_experts=plan.experts, gate="uniform")
    layers = [keras.Input((plan.schema.width,))]
    if plan.gate == "mlp":
        layers.append(_dense(plan.hidden, "relu"))
    gate = keras.Sequential([*layers, _dense(plan.experts)])
    if plan.gate == "constant":
        return plait.Mixture(template, num_experts=plan.experts, gate="constant")
    router = plait.routers.Softmax()
    return plait.Mixture(template, num_experts=plan.experts, gate=gate, router=router)


def _stacked(name: str, plan: Plan, copies: int) -> "plait.Mixture":
    """Returns so many copies of a candidate as the experts of one mixture.

    Networks that are averaged learn apart: their copies stand side by side.
    """
    if name == MIXTURE:
        return plait.Mixture(build(name, plan), num_experts=copies, gate="uniform")
    units = _widened(plan) if name == NETWORK else plan.hidden
    each = 1 if name == NETWORK else plan.experts
    return plait.Mixture(_network(plan, units), num_experts=each * copies, gate="uniform")


def _network(plan: Plan, units: int) -> keras.Sequential:
    classes = len(plan.schema.classes)
    last = _dense(classes, "softmax") if classes else _dense(1)
    hidden = [_dense(units, "relu") for _ in range(2)]
    return keras.Sequential([keras.Input((plan.schema.width,)), *hidden, last])


def _dense(units: int, activation: str | None = None) -> keras.layers.Dense:
    """Returns a layer of zeros: JAX compiles a draw of one shape longer than it trains."""
    return keras.layers.Dense(units, activation, kernel_initializer="zeros")


def _draw(model: keras.Model, seed: int) -> None:
    """Draws all kernels in NumPy, each network's by itself (Glorot and Bengio 2010)."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if variable.name == "kernel":
            limit = math.sqrt(6.0 / sum(variable.shape[-2:]))
            variable.assign(rng.uniform(-limit, limit, variable.shape).astype("float32"))


def _widened(plan: Plan) -> int:
    """Returns the hidden units with which one network has as many parameters as all experts."""

    def count(units: int) -> int:
        sizes = (plan.schema.width, units, units, max(1, len(plan.schema.classes)))
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    units = plan.hidden
    while count(units) < plan.experts * count(plan.hidden):
        units += 1
    return units


class _Batches(keras.utils.PyDataset):
    """Rows in another order every epoch, all batches of one size, with fresh noise."""

    def __init__(self, x: ByRow, y: np.ndarray, weight: ByRow, plan: Plan, seed: int) -> None:
        super().__init__()
        self._x, self._y, self._weight = x, y, weight
        self._noise = plan.noise
        self._rng = np.random.default_rng(seed)
        steps = math.ceil(len(y) / plan.batch)
        self._shape = steps, math.ceil(len(y) / steps)
        self.on_epoch_end()

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self._order[step]
        x = self._x[rows].astype("float32", copy=False)
        if self._noise:
            x = x + self._noise * self._rng.standard_normal(x.shape, "float32")
        y = np.concatenate([self._y[rows, None], self._weight[rows]], axis=1)
        return x, y.astype("float32")

    def on_epoch_end(self) -> None:
        """Draws an order; to fill the last batch some rows come twice."""
        order = self._rng.permutation(np.arange(len(self._y), dtype="uint32"))
        self._order = np.resize(order, self._shape)


class _EachCopy(MixtureObjective):
    """The loss of each copy on the rows that count for it.

    The target has the value or class code in its first column, then a weight for each copy.
    """

    def __init__(self, copies: int, classes: bool) -> None:
        super().__init__(name="each_copy")
        self.copies, self.classes = copies, classes

    def per_example(self, y_true: Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
        """Returns the mean over the copies, each the mean over its networks."""
        y_true = ops.convert_to_tensor(y_true)
        if self.classes:
            right = ops.one_hot(ops.cast(y_true[:, 0], "int32"), outputs.shape[-1])
            losses = -ops.log(ops.maximum(ops.sum(outputs * right[None], axis=-1), _TINY))
        else:
            losses = ops.square(outputs[..., 0] - y_true[None, :, 0])
        each = ops.mean(ops.reshape(losses, (self.copies, -1, ops.shape(y_true)[0])), axis=1)
        return ops.mean(each * ops.transpose(y_true[:, 1:]), axis=0)


__all__ = [
    "AVERAGE",
    "CANDIDATES",
    "MIXTURE",
    "NETWORK",
    "TITLES",
    "ByRow",
    "Plan",
    "Trained",
    "build",
    "plan_for",
]
