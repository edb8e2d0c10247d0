"""What the estimators share: training rows, random numbers, pickling."""

import pathlib
import tempfile
from typing import Any

import keras
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state

from plait.errors import choose_from, message
from plait.sklearn import steps
from plait.sklearn.randomness import isolated
from plait.sklearn.steps import Arrays, Rows
from plait.typing import Config, Tensor

_FILE = "model.keras"


class KerasEstimator(BaseEstimator):
    """An estimator around one Keras model, `model_`, which pickles as the bytes of its file."""

    model_: keras.Model

    def _train(self, model: keras.Model, rows: Rows, stratify: np.ndarray | None) -> None:
        """Trains a compiled model, and sets what MLPClassifier calls its results."""
        keeps = np.ones(len(rows.target), bool) if rows.weights is None else rows.weights > 0
        if not keeps.all():
            rows = rows.take(np.flatnonzero(keeps))
            stratify = None if stratify is None else stratify[keeps]
        generator = self._generator_
        held_out = None
        if self.early_stopping:
            held_out, rows = self._split(rows, stratify)
        with isolated(int(generator.randint(2**31 - 1))):
            curve = steps.train(
                model,
                rows,
                held_out,
                generator,
                batch_size=200 if self.batch_size == "auto" else self.batch_size,
                epochs=self.max_iter,
                patience=self.n_iter_no_change,
                tol=self.tol,
            )
        self.n_iter_ = len(curve.training)
        self.loss_curve_ = curve.training
        self.loss_ = curve.training[-1]
        self.validation_losses_ = curve.validation if self.early_stopping else None

    def _split(self, rows: Rows, stratify: np.ndarray | None) -> tuple[Rows, Rows]:
        """Returns the held-out rows and the others; every class keeps its share where it can."""
        if stratify is not None and np.unique(stratify, return_counts=True)[1].min() < 2:
            stratify = None
        others, held_out = train_test_split(
            np.arange(len(rows.target)),
            test_size=self.validation_fraction,
            random_state=self._generator_,
            stratify=stratify,
        )
        return rows.take(held_out), rows.take(others)

    def _start(self) -> int:
        """Draws the seed of a fit from `random_state`, and checks what a fit would trip over."""
        self._check_parameters()
        self._generator_ = check_random_state(self.random_state)
        if self.random_state is None or self._generator_ is self.random_state:
            # The caller's generator gives one number: its later numbers do not depend on the fit.
            generator = np.random.RandomState() if self.random_state is None else self._generator_
            self._generator_ = np.random.RandomState(generator.randint(2**31 - 1))
        return int(self._generator_.randint(2**31 - 1))

    def _check_parameters(self) -> None:
        for name in ("max_iter", "n_iter_no_change"):
            check_count(name, getattr(self, name))
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size)

    def _predicted(self, inputs: Arrays) -> np.ndarray:
        with isolated(0):
            return steps.outputs_of(self.model_, inputs)

    def __getstate__(self) -> Config:
        """Returns the attributes, the Keras model as the bytes of a `.keras` file."""
        state = dict(super().__getstate__())
        if isinstance(state.get("model_"), keras.Model):
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / _FILE
                state["model_"].save(path)
                state["model_"] = path.read_bytes()
        return state

    def __setstate__(self, state: Config) -> None:
        """Sets the attributes, and loads the Keras model in safe mode."""
        if isinstance(state.get("model_"), bytes):
            with tempfile.TemporaryDirectory() as folder, isolated(0):
                path = pathlib.Path(folder) / _FILE
                path.write_bytes(state["model_"])
                state = {**state, "model_": keras.saving.load_model(path)}
        super().__setstate__(state)


class Scaling:
    """Shift and scale of columns: the weighted mean and standard deviation of the training rows.

    Args:
        x: Array `(n, d)`.
        weights: Array `(n,)` or `None`.
    """

    def __init__(self, x: np.ndarray, weights: np.ndarray | None) -> None:
        x = np.asarray(x, "float64")
        self.mean = np.average(x, axis=0, weights=weights)
        spread = np.sqrt(np.average((x - self.mean) ** 2, axis=0, weights=weights))
        # A column that is constant but for rounding has no scale of its own.
        self.spread = np.where(spread > 1e-12 * (1.0 + np.abs(self.mean)), spread, 1.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Returns scaled values in float32."""
        return ((np.asarray(x, "float64") - self.mean) / self.spread).astype("float32")

    def undone(self, values: np.ndarray) -> np.ndarray:
        """Returns values in the unit of the training rows."""
        return values * self.spread + self.mean


def rows_of(x: Tensor) -> int:
    """Returns the number of rows of an array, a table or a list."""
    return int(x.shape[0] if hasattr(x, "shape") else np.asarray(x).shape[0])


def check_weights(sample_weight: Tensor, x: Tensor) -> np.ndarray | None:
    """Returns sample weights as an array `(n,)` in float64, or `None`.

    Raises:
        ValueError: If they are not a number for each row, not negative and not all zero.
    """
    if sample_weight is None:
        return None
    weights = check_array(
        sample_weight, dtype="float64", ensure_2d=False, input_name="sample_weight"
    )
    rows = rows_of(x)
    if weights.shape != (rows,) or (weights < 0).any() or not weights.any():
        shown = f"values from {weights.min():g} to {weights.max():g}"
        raise ValueError(
            message(
                f"`sample_weight` must be a number for each of the {rows} rows, not negative and "
                "not all zero",
                shown if weights.shape == (rows,) else f"shape {weights.shape}",
                "Use the number of rows that each row counts as",
            )
        )
    return weights


def shares(p: np.ndarray) -> np.ndarray:
    """Returns positive numbers `(n, c)` divided by their sum; float32 sums to one to 1e-7 only."""
    return p / p.sum(axis=1, keepdims=True)


def check_choice(name: str, value: Any, options: tuple[str, ...]) -> None:
    """Raises ValueError where a parameter is none of its words."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(choose_from(name, value, options))


def check_count(name: str, value: Any) -> None:
    """Raises ValueError where a parameter is no integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(
            message(
                f"`{name}` must be an integer of at least 1",
                f"{name}={value!r}",
                f"Use {name}=1 or more",
            )
        )
