"""A training that can be stopped: run as a script, it dies for good at the end of an epoch.

`python -m tests.training.resuming FOLDER [EPOCH]` trains with `BackupAndRestore` in FOLDER, and
dies after EPOCH; without one it trains to the end and writes the weights to FOLDER/weights.npz.
"""

import os
import sys
from pathlib import Path

import keras
import numpy as np

import plait

EPOCHS = 4


class Die(keras.callbacks.Callback):
    """Ends the process at the end of an epoch, with no clean-up of any kind."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            os._exit(7)


def mixture(seed=3):
    """A compiled mixture with everything that has a state: noise, bias, dropout, a scale, Adam."""
    keras.utils.set_random_seed(seed)
    template = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3, seed=5),
            keras.layers.Dense(1),
        ]
    )
    router = plait.routers.TopK(
        2, noise=0.5, seed=1, bias_update_rate=0.01, load_balance=0.01, capacity_factor=1.25
    )
    model = plait.Mixture(template, num_experts=3, router=router)
    model.compile(keras.optimizers.Adam(0.01), plait.losses.MixtureNLL("gaussian"))
    return model


def train(model, folder, callbacks=(), epochs=EPOCHS):
    """Trains with a backup in `folder`; rows keep their order, which no backup knows."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 4)).astype("float32"), rng.normal(size=(48, 1)).astype("float32")
    backup = keras.callbacks.BackupAndRestore(str(Path(folder) / "backup"))
    arguments = {"batch_size": 16, "shuffle": False, "verbose": 0, "epochs": epochs}
    return model.fit(x, y, callbacks=[backup, *callbacks], **arguments)


def state(model):
    """Everything that changes in training: all variables, the optimizer's too."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


if __name__ == "__main__":
    place = sys.argv[1]
    dying = [Die(int(sys.argv[2]))] if len(sys.argv) > 2 else []
    woven = mixture(seed=3 if dying else 11)
    train(woven, place, dying)
    np.savez(Path(place) / "weights.npz", *state(woven))
