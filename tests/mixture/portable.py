"""Compiled models in files: written by a process of one backend, read by one of any.

`python -m tests.mixture.portable write FOLDER` and `… read FOLDER`, one backend a process.
"""

import json
import sys
import traceback
from pathlib import Path

import keras
import numpy as np

import plait

layers, optimizers = keras.layers, keras.optimizers
BACKENDS = ["jax", "tensorflow", "torch"]
RATE = 0.01
PLAIN = [
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "Ftrl", "Lamb", "Lion"),
    *("Muon", "Nadam", "RMSprop", "ScheduleFreeAdamW", "SGD"),
]
OPTIMIZERS = {
    **{name: lambda name=name: getattr(optimizers, name)(RATE) for name in PLAIN},
    "schedule": lambda: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(RATE, 2, 0.5), momentum=0.9, nesterov=True
    ),
    "clipped": lambda: optimizers.Adam(RATE, global_clipnorm=0.1, weight_decay=0.1),
    "accumulated": lambda: optimizers.Adam(RATE, gradient_accumulation_steps=2),
    "averaged": lambda: optimizers.RMSprop(RATE, use_ema=True, ema_overwrite_frequency=1),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.AdamW(RATE), initial_scale=8.0),
}


def expert():
    return keras.Sequential([keras.Input((4,)), layers.Dense(5, "tanh"), layers.Dense(3)])


def gate():
    return keras.Sequential([keras.Input((4,)), layers.Dense(2)])


def mixture(router="softmax"):
    return plait.Mixture([layers.Dense(3), layers.Dense(3)], gate(), router=router)


def around(inner):
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(3)(inner(x)))


def cases():
    """Names and compiled models: a model around a mixture for every optimizer; and mixtures."""
    for name, make in OPTIMIZERS.items():
        # Most of them step by step, so that nothing is compiled.
        yield _compiled(f"{name}-outer", around(mixture()), make(), run_eagerly=name != "Adam")
    for name in ("Adam", "Muon", "schedule", "scaled"):
        yield _compiled(f"{name}-mixture", mixture(), OPTIMIZERS[name](), run_eagerly=True)
    template = plait.Mixture(expert(), gate(), num_experts=2, router=plait.routers.TopK(1))
    yield _compiled("sparse-mixture", template)
    yield _compiled("sparse-outer", around(mixture(plait.routers.TopK(1))))
    yield _compiled("likelihood-mixture", mixture(), loss=plait.losses.MixtureNLL("gaussian"))


def _compiled(name, model, optimizer="adam", loss="mse", **kwargs):
    model.compile(optimizer, loss, **kwargs)
    return name, model


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(8, 4)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")


def step(model):
    model.train_on_batch(*data())


def predictions(model):
    return keras.ops.convert_to_numpy(model(data()[0], training=False))


def write(folder):
    """Trains for a step, saves, and trains for one more."""
    keras.utils.set_random_seed(0)
    for name, model in cases():
        step(model)
        path = folder / f"{name}-{keras.config.backend()}"
        model.save(f"{path}.keras")
        before = predictions(model)
        step(model)
        np.savez(f"{path}.npz", before=before, after=predictions(model))


def read(folder):
    """Notes what every backend's files give: the largest differences, or the error."""
    found = {}
    for path in sorted(folder.glob("*.keras")):
        try:
            model = keras.saving.load_model(path, safe_mode=True)
            expected = np.load(path.with_suffix(".npz"))
            before = np.abs(predictions(model) - expected["before"]).max()
            step(model)
            after = np.abs(predictions(model) - expected["after"]).max()
            found[path.stem] = [float(before), float(after)]
        except Exception:
            found[path.stem] = traceback.format_exc()
    name = f"read_by_{keras.config.backend()}.json"
    (folder / name).write_text(json.dumps(found))


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
