"""Networks and mixtures of equal size, and how each of them is trained."""

import functools
import itertools
import math
from typing import Any

import keras
import numpy as np

import plait
from benchmarks.quality.radial import Radial
from benchmarks.quality.settings import Knobs, Settings

NETWORK, BLENDED, LIKELIHOOD = "one network", "mixture, blended loss", "mixture, MixtureNLL"
EXPERT_MEAN, ENSEMBLE = "mixture, ExpertMean", "independent networks"
BATCH = 512  # of predictions
TRAINED = (NETWORK, BLENDED, LIKELIHOOD, EXPERT_MEAN, ENSEMBLE)


def network(
    features: int, classes: int, hidden: tuple[int, ...], activation: str, noise: float
) -> keras.Sequential:
    """Returns a network that ends in `classes` probabilities, or in one value for 0 classes."""
    return keras.Sequential(
        [
            keras.Input((features,)),
            *([keras.layers.GaussianNoise(noise)] if noise else []),
            *(
                Radial(units) if activation == "radial" else keras.layers.Dense(units, activation)
                for units in hidden
            ),
            keras.layers.Dense(classes or 1, "softmax" if classes else "linear"),
        ]
    )


def widened(features: int, classes: int, hidden: tuple[int, ...], parameters: int) -> tuple:
    """Returns the hidden units, in the same proportion, with which one network has so many."""

    def count(units: tuple[int, ...]) -> int:
        sizes = [features, *units, classes or 1]
        return sum((a + 1) * b for a, b in itertools.pairwise(sizes))

    scale = 1.0
    while count(tuple(round(scale * units) for units in hidden)) < parameters:
        scale += 1.0 / hidden[0]
    return tuple(round(scale * units) for units in hidden)


def build(method: str, features: int, classes: int, settings: Settings, noise: float) -> Any:
    """Returns an untrained model for one of the methods in `TRAINED`."""
    small = functools.partial(
        network, features, classes, activation=settings.activation, noise=noise
    )
    experts = [small(hidden=settings.hidden) for _ in range(settings.experts)]
    if method == NETWORK:
        size = plait.Mixture(experts).count_params()
        return small(hidden=widened(features, classes, settings.hidden, size))
    return plait.Mixture(experts, gate="uniform" if method == ENSEMBLE else None)


def objective(method: str, classes: int) -> Any:
    """Returns what a method trains on."""
    plain = "sparse_categorical_crossentropy" if classes else "mean_squared_error"
    if method == LIKELIHOOD:
        return plait.losses.MixtureNLL("categorical" if classes else "gaussian")
    if method in (EXPERT_MEAN, ENSEMBLE):
        return plait.losses.ExpertMean(plain, weighted=method == EXPERT_MEAN)
    return plain


class Trainer:
    """Trains the methods on one data set; models that were compiled once are used again.

    Args:
        features: `d`.
        classes: Number of classes; 0 for regression.
        settings: The set's settings.
    """

    def __init__(self, features: int, classes: int, settings: Settings) -> None:
        self.features = features
        self.classes = classes
        self.settings = settings
        self._compiled: dict[Any, Any] = {}

    def train(
        self, method: str, knobs: Knobs, x: np.ndarray, y: np.ndarray, seed: int, rows: int
    ) -> Any:
        """Returns the trained model, good until the method is trained again.

        Args:
            method: One of `TRAINED`.
            knobs: What tuning tries, or has chosen.
            x: Features `(b, d)`.
            y: Targets `(b,)`.
            seed: Seed of weights, order and noise.
            rows: Training takes as many steps as an epoch of so many rows has, whatever `b`: the
                last batches are filled up with rows drawn again.
        """
        settings = self.settings
        steps = math.ceil(rows / settings.batch)
        model = self._fresh(method, knobs, steps * settings.epochs, seed)
        more = np.random.default_rng(seed).choice(len(x), steps * settings.batch - len(x))
        order = np.concatenate([np.arange(len(x)), more])
        model.fit(x[order], y[order], batch_size=settings.batch, epochs=settings.epochs, verbose=0)
        return model

    def _fresh(self, method: str, knobs: Knobs, steps: int, seed: int) -> Any:
        """Returns the compiled model for these arguments, with new weights drawn from `seed`."""
        keras.utils.set_random_seed(seed)
        settings, key = self.settings, (method, knobs, steps)
        new = build(method, self.features, self.classes, settings, knobs.noise)
        schedule = keras.optimizers.schedules.CosineDecay(settings.rate, steps)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=knobs.decay)
        new.compile(optimizer, objective(method, self.classes))
        if key not in self._compiled:
            optimizer.build(new.trainable_variables)
            self._compiled[key] = new
            return new
        model = self._compiled[key]
        model.set_weights(new.get_weights())
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape, variable.dtype))
        return model


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns predictions `(b, u)`."""
    return model.predict(_filled(x), batch_size=BATCH, verbose=0)[: len(x)]


def expert_outputs(model: plait.Mixture, x: np.ndarray) -> np.ndarray:
    """Returns the experts' outputs `(b, e, u)`."""
    return model.expert_outputs(_filled(x), batch_size=BATCH)[: len(x)]


def _filled(x: np.ndarray) -> np.ndarray:
    """Returns the rows with zeros after them, so that every batch has one size."""
    return np.pad(x, ((0, -len(x) % BATCH), (0, 0)))
