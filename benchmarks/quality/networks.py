"""Networks and mixtures of equal size, and how each of them is trained."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import plait
from benchmarks.quality.radial import Radial
from benchmarks.quality.settings import Knobs, Settings

NETWORK, HALVES = "one network", "2 networks averaged"
ENSEMBLE, ADAPTED = "n networks averaged", "one network, n adapters"
BLENDED, LIKELIHOOD = "mixture, blended loss", "mixture, MixtureNLL"
EXPERT_MEAN = "mixture, ExpertMean"
BATCH = 512  # of predictions


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


def adapted(
    features: int, classes: int, hidden: tuple[int, ...], activation: str, noise: float, k: int
) -> keras.Sequential:
    """Returns `k` networks that share their kernels, as TabM has them (Gorishniy et al. 2024).

    Each network scales the inputs and the outputs of every shared kernel by vectors of its own (Wen
    et al. 2020), and has its own biases and last layer. Outputs `(b, k, u)`.
    """

    def scaled(units: int, start: Any, bias: bool) -> keras.layers.EinsumDense:
        axes = "kd" if bias else None
        return keras.layers.EinsumDense(
            "bkd,kd->bkd", (k, units), bias_axes=axes, kernel_initializer=start
        )

    layers = [keras.Input((features,))]
    if noise:
        layers.append(keras.layers.GaussianNoise(noise))
    layers.append(keras.layers.RepeatVector(k))
    start: Any = _signs
    for before, units in itertools.pairwise((features, *hidden)):
        radial = activation == "radial"
        shared = Radial(units) if radial else keras.layers.Dense(units, use_bias=False)
        layers += [scaled(before, start, False), shared, scaled(units, "ones", True)]
        layers += [] if radial else [keras.layers.Activation(activation)]
        start = "ones"
    last = "softmax" if classes else "linear"
    layers.append(
        keras.layers.EinsumDense(
            "bkd,kdu->bku", (k, classes or 1), activation=last, bias_axes="ku",
            kernel_initializer=keras.initializers.RandomNormal(stddev=hidden[-1] ** -0.5),
        )
    )  # fmt: skip
    return keras.Sequential(layers)


def _signs(shape: Any, dtype: Any = None) -> Any:
    return keras.ops.sign(keras.random.normal(shape, dtype=dtype))


def _parameters(features: int, classes: int, hidden: tuple[int, ...]) -> int:
    sizes = [features, *hidden, classes or 1]
    return sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def _parameters_adapted(features: int, classes: int, hidden: tuple[int, ...], k: int) -> int:
    pairs = itertools.pairwise([features, *hidden])
    return sum(a * b + k * (a + 2 * b) for a, b in pairs) + k * (hidden[-1] + 1) * (classes or 1)


def widened(
    hidden: tuple[int, ...], parameters: float, count: Callable[[tuple[int, ...]], int]
) -> tuple[int, ...]:
    """Returns hidden units, in the same proportion, with which a network has so many parameters.

    Args:
        hidden: The proportion.
        parameters: How many there shall be at least.
        count: Says how many there are for given hidden units.
    """
    step = scale = 1.0 / hidden[0]
    while count(tuple(round(scale * units) for units in hidden)) < parameters:
        scale += step
    return tuple(round(scale * units) for units in hidden)


def build(
    method: str, features: int, classes: int, settings: Settings, noise: float, experts: int
) -> Any:
    """Returns an untrained model for one of the methods above, of as many parameters as `experts`.

    Networks that are averaged are the experts of a mixture under a uniform gate.
    """
    small = functools.partial(
        network, features, classes, activation=settings.activation, noise=noise
    )
    count = functools.partial(_parameters, features, classes)
    size = experts * (count(settings.hidden) + (features + 1))  # a linear gate has the rest
    if method == NETWORK:
        return small(hidden=widened(settings.hidden, size, count))
    if method == HALVES:
        half = widened(settings.hidden, size / 2, count)
        return plait.Mixture([small(hidden=half) for _ in range(2)], gate="uniform")
    if method == ADAPTED:
        count = functools.partial(_parameters_adapted, features, classes, k=experts)
        hidden = widened(settings.hidden, size, count)
        return adapted(features, classes, hidden, settings.activation, noise, experts)
    members = [small(hidden=settings.hidden) for _ in range(experts)]
    return plait.Mixture(members, gate="uniform" if method == ENSEMBLE else None)


def objective(method: str, classes: int) -> Any:
    """Returns what a method trains on."""
    plain = "sparse_categorical_crossentropy" if classes else "mean_squared_error"
    if method == LIKELIHOOD:
        return plait.losses.MixtureNLL("categorical" if classes else "gaussian")
    if method in (EXPERT_MEAN, ENSEMBLE, HALVES):
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
        self,
        method: str,
        knobs: Knobs,
        x: np.ndarray,
        y: np.ndarray,
        seed: int,
        rows: int,
        experts: int | None = None,
    ) -> Any:
        """Returns the trained model, good until the method is trained again.

        Args:
            method: A name of this file.
            knobs: What tuning tries, or has chosen.
            x: Features `(b, d)`.
            y: Targets `(b,)`.
            seed: Seed of weights, order and noise.
            rows: Training takes as many steps as epochs of so many rows have, whatever `b`.
            experts: How many; `None` for as many as the settings say.
        """
        settings, batch = self.settings, self.settings.batch
        experts = experts or settings.experts
        size = math.ceil(rows / batch) * batch
        model = self._fresh(method, knobs, size // batch * settings.epochs, seed, experts)
        if method == ADAPTED:
            y = np.repeat(y[:, None], experts, axis=1)
            y = y if self.classes else y[:, :, None]
        # All epochs in one: what Keras does between two takes longer than these steps. An epoch's
        # last batch is filled up with rows that come twice.
        rng = np.random.default_rng(seed)
        order = np.concatenate(
            [np.resize(rng.permutation(len(x)), size) for _ in range(settings.epochs)]
        )
        model.fit(x[order], y[order], batch_size=batch, shuffle=False, verbose=0)
        return model

    def _fresh(self, method: str, knobs: Knobs, steps: int, seed: int, experts: int) -> Any:
        """Returns the compiled model for these arguments, with new weights drawn from `seed`."""
        keras.utils.set_random_seed(seed)
        settings, key = self.settings, (method, knobs, steps, experts)
        new = build(method, self.features, self.classes, settings, knobs.noise, experts)
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
    """Returns predictions `(b, u)`, the mean where networks with adapters give several."""
    found = model.predict(_filled(x), batch_size=BATCH, verbose=0)[: len(x)]
    return found.mean(axis=1) if found.ndim == 3 else found


def expert_outputs(model: plait.Mixture, x: np.ndarray) -> np.ndarray:
    """Returns the experts' outputs `(b, e, u)`."""
    return model.expert_outputs(_filled(x), batch_size=BATCH)[: len(x)]


def _filled(x: np.ndarray) -> np.ndarray:
    """Returns the rows with zeros after them, so that every batch has one size."""
    return np.pad(x, ((0, -len(x) % BATCH), (0, 0)))
