"""The three candidates of `plait fit`: of equal size, and trained with the same care."""

import dataclasses
import itertools
import math
from typing import Any

import keras
import numpy as np

import plait
from plait.encoding import Schema

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
        rows: How many rows an epoch has, whatever a training set has: every training takes as
            many steps.
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
    rows: int
    noise: float
    rate: float = 5e-3
    decay: float = 0.1

    @property
    def steps(self) -> int:
        """Steps of one training."""
        return math.ceil(self.rows / self.batch) * self.epochs


def plan_for(schema: Schema, experts: int, hidden: int, gate: str, epochs: int, rows: int) -> Plan:
    """Returns a plan whose batch and noise follow from the number of rows."""
    batch = int(min(256, max(32, 2 ** round(math.log2(max(rows, 1) / 60)))))
    epochs = min(epochs, max(20, math.ceil(_STEPS / math.ceil(rows / batch))))
    noise = 0.5 if rows < _FEW_ROWS else 0.0
    return Plan(schema, experts, hidden, gate, epochs, batch, rows, noise)


def build(name: str, plan: Plan) -> "plait.Mixture":
    """Returns an untrained candidate; one network is a mixture of one expert.

    Args:
        name: One of `CANDIDATES`.
        plan: What all candidates share.
    """
    if name == NETWORK:
        units = _widened(plan)
        return plait.Mixture(_network(plan, units), num_experts=1, gate="uniform")
    template = _network(plan, plan.hidden)
    if name == AVERAGE:
        return plait.Mixture(template, num_experts=plan.experts, gate="uniform")
    gate: Any = None if plan.gate == "linear" else "constant"
    if plan.gate == "mlp":
        gate = keras.Sequential(
            [
                *_start(plan),
                keras.layers.Dense(plan.hidden, "relu"),
                keras.layers.Dense(plan.experts),
            ]
        )
        router = plait.routers.Softmax()
        return plait.Mixture(template, num_experts=plan.experts, gate=gate, router=router)
    return plait.Mixture(template, num_experts=plan.experts, gate=gate)


def _start(plan: Plan) -> list[Any]:
    noise = [keras.layers.GaussianNoise(plan.noise)] if plan.noise else []
    return [keras.Input((plan.schema.width,)), *noise]


def _network(plan: Plan, units: int) -> keras.Sequential:
    classes = len(plan.schema.classes)
    last = keras.layers.Dense(classes, "softmax") if classes else keras.layers.Dense(1)
    hidden = [keras.layers.Dense(units, "relu") for _ in range(2)]
    return keras.Sequential([*_start(plan), *hidden, last])


def _widened(plan: Plan) -> int:
    """Returns the hidden units with which one network has as many parameters as all experts."""

    def count(units: int) -> int:
        sizes = (plan.schema.width, units, units, max(1, len(plan.schema.classes)))
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    units = plan.hidden
    while count(units) < plan.experts * count(plan.hidden):
        units += 1
    return units


class Trainer:
    """Trains candidates; what was compiled once is used again.

    Args:
        plan: What all candidates share.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._compiled: dict[str, plait.Mixture] = {}

    def train(
        self,
        name: str,
        x: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        seed: int,
        callbacks: list[keras.callbacks.Callback],
    ) -> tuple["plait.Mixture", list[float]]:
        """Returns the trained candidate, good until it is trained again, and its loss per epoch.

        Args:
            name: One of `CANDIDATES`.
            x: Features `(b, d)`.
            y: Targets as the network sees them, `(b,)` or `(b, 1)`.
            weight: Weight of each row, `(b,)`, or `None`.
            seed: Seed of weights, order and noise.
            callbacks: For `keras.Model.fit`.
        """
        plan = self.plan
        model = self._fresh(name, seed)
        rows = math.ceil(plan.rows / plan.batch) * plan.batch
        rng = np.random.default_rng(seed)
        # Every epoch has the same number of rows: all of them, some drawn again.
        order = np.concatenate(
            [
                np.tile(np.arange(len(x)), rows // len(x)),
                rng.choice(len(x), rows % len(x), replace=False),
            ]
        )
        history = model.fit(
            x[order],
            y[order],
            sample_weight=None if weight is None else weight[order],
            batch_size=plan.batch,
            epochs=plan.epochs,
            callbacks=callbacks,
            verbose=0,
        )
        return model, [float(loss) for loss in history.history["loss"]]

    def _fresh(self, name: str, seed: int) -> "plait.Mixture":
        keras.utils.set_random_seed(seed)
        plan = self.plan
        new = build(name, plan)
        if name in self._compiled:
            model = self._compiled[name]
            model.set_weights(new.get_weights())
            for variable in model.optimizer.variables:
                variable.assign(np.zeros(variable.shape, variable.dtype))
            return model
        loss = "sparse_categorical_crossentropy" if plan.schema.classes else "mean_squared_error"
        schedule = keras.optimizers.schedules.CosineDecay(plan.rate, plan.steps)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=plan.decay)
        new.compile(
            optimizer,
            plait.losses.ExpertMean(loss, weighted=False) if name == AVERAGE else loss,
        )
        optimizer.build(new.trainable_variables)
        self._compiled[name] = new
        return new


__all__ = [
    "AVERAGE",
    "CANDIDATES",
    "MIXTURE",
    "NETWORK",
    "TITLES",
    "Plan",
    "Trainer",
    "build",
    "plan_for",
]
