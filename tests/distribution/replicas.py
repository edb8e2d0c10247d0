"""Trains mixtures on two virtual CPU devices under `MirroredStrategy`; prints JSON.

For each case, how far losses, variables and outputs are from those of one device.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf
from tests.distribution.recipes import CASES, made

ROWS = 16


def train(case, scope):
    with scope:
        model = made(case)
        model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3 * ROWS, 6)).astype("float32")
    y = rng.normal(size=(3 * ROWS, 2)).astype("float32")
    losses = model.fit(x, y, batch_size=ROWS, shuffle=False, epochs=2, verbose=0).history["loss"]
    return losses, [np.asarray(v) for v in model.trainable_variables], model.predict(x, verbose=0)


def run(case, strategy):
    one = train(case, tf.distribute.get_strategy().scope())
    many = train(case, strategy.scope())
    names = ("losses", "variables", "outputs")
    return {
        name: max(
            float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(*pair, strict=True)
        )
        for name, *pair in zip(names, one, many, strict=True)
    }


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {case: run(case, strategy) for case in sys.argv[1:] or CASES}
    print(json.dumps({"replicas": strategy.num_replicas_in_sync, **found}))
