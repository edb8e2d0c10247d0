"""Two linear experts under a linear gate on 2dplanes: the model that the data are made of."""

from typing import NamedTuple

import keras
import numpy as np

import plait
from benchmarks.quality.measures import measure
from benchmarks.quality.networks import predict
from benchmarks.quality.sets import Split


class Planes(NamedTuple):
    """What two linear experts find.

    Attributes:
        rmse: On the test rows.
        feature: Which feature has the gate's largest coefficient, counted from 0.
    """

    rmse: float
    feature: int


def two_planes(split: Split, seed: int) -> Planes:
    """Returns what a mixture of two linear experts finds, trained on the mixture likelihood."""
    keras.utils.set_random_seed(seed)
    experts = [
        keras.Sequential([keras.Input(split.x.shape[1:]), keras.layers.Dense(1)]) for _ in range(2)
    ]
    gate = keras.layers.Dense(2)
    mixture = plait.Mixture(experts, gate, router="softmax")
    steps = 15 * -(-len(split.x) // 250)
    schedule = keras.optimizers.schedules.CosineDecay(0.05, steps)
    mixture.compile(keras.optimizers.Adam(schedule), plait.losses.MixtureNLL("gaussian"))
    mixture.fit(split.x, split.y, batch_size=250, epochs=15, verbose=0)
    rmse = measure(predict(mixture, split.x_test), split.y_test, split.task, split.scale)
    scores = gate.get_weights()[0]
    return Planes(rmse, int(np.argmax(np.abs(scores[:, 0] - scores[:, 1]))))
