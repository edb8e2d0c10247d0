"""An upcycled network beside the one it came from, trained on for as many steps."""

import functools

import keras
import numpy as np

import plait
from benchmarks.quality.measures import measure
from benchmarks.quality.networks import network, predict
from benchmarks.quality.sets import Split
from benchmarks.quality.settings import Settings

EXPERTS, CHOSEN, NOISE = 4, 2, 0.02


def upcycling(split: Split, settings: Settings, seed: int) -> dict[str, float]:
    """Returns the measure of a trained network, of that trained on, and of the upcycled one."""
    keras.utils.set_random_seed(seed)
    features, activation = split.x.shape[1], settings.activation
    base = network(features, split.classes, settings.hidden, activation, noise=0.0)
    on = functools.partial(_train, split=split, settings=settings)
    on(base, rate=settings.rate)
    hidden = [layer.name for layer in base.layers[:-1]]
    router = plait.routers.TopK(CHOSEN)
    new, difference = plait.training.upcycle(
        base, hidden, EXPERTS, router, noise=NOISE, seed=seed, x=split.x_test[:256]
    )
    found = {"trained": _on_test(base, split), "changed by upcycling": difference}
    on(base, rate=settings.rate / 5)
    on(new, rate=settings.rate / 5)
    found["trained on"] = _on_test(base, split)
    found["upcycled, trained on"] = _on_test(new, split)
    return found


def _train(model: keras.Model, split: Split, settings: Settings, rate: float) -> None:
    batch, epochs = settings.batch, settings.epochs // 2
    rows = np.arange(len(split.x) // batch * batch)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(rows) // batch)
    loss = "sparse_categorical_crossentropy" if split.classes else "mean_squared_error"
    model.compile(keras.optimizers.Adam(schedule), loss)
    model.fit(split.x[rows], split.y[rows], batch_size=batch, epochs=epochs, verbose=0)


def _on_test(model: keras.Model, split: Split) -> float:
    return measure(predict(model, split.x_test), split.y_test, split.task, split.scale)
