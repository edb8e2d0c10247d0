"""Cross-fitting: the outputs of experts on rows that they have not seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
from keras import tree

from plait.compat import flat_layers
from plait.errors import message
from plait.experts import Frozen
from plait.experts.frozen import predictions
from plait.experts.initialization import copy_of
from plait.mixture import Mixture
from plait.mixture.inputs import Selector, select_each, selectors
from plait.training.folds import class_labels, fold_numbers
from plait.typing import Config, Nested

Compile: TypeAlias = Callable[[keras.Model], Any] | Config | None
"""How a copy of an expert is compiled."""


class CrossFit(NamedTuple):
    """What `cross_fit` gives.

    Attributes:
        outputs: Array `(n, e, …, u)`: each expert's output for each row, by the copy that was
            trained without the row's fold. What `fit_gate` takes as `outputs`.
        experts: The experts trained on all rows, for a `Mixture`; scikit-learn models in `Frozen`.
            Empty without `refit`.
        folds: Integers `(n,)`: the fold that held out each row.
    """

    outputs: np.ndarray
    experts: list[keras.layers.Layer]
    folds: np.ndarray


def cross_fit(
    experts: Sequence[Any],
    x: Nested,
    y: np.ndarray,
    folds: Any = 5,
    groups: np.ndarray | None = None,
    *,
    sample_weight: np.ndarray | None = None,
    expert_inputs: Selector = None,
    compile: Compile = None,
    fit: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    classes: Sequence[Any] | None = None,
    refit: bool = True,
    seed: int | None = 0,
) -> CrossFit:
    """Trains each expert once per fold and predicts the fold; a gate on these outputs sees no leak.

    On rows that an expert was trained on it looks better than it is, and a gate that is fitted on
    them trusts whoever memorised most. The given experts stay as they are: copies are trained.
    The copy of a Keras model starts from fresh weights; layers that are frozen
    (`trainable = False`) or were adapted keep theirs.

    Args:
        experts: Keras models and scikit-learn models (anything with `fit` and `predict_proba` or
            `predict`), in any mixture.
        x: Array or structure of arrays, `n` rows.
        y: Array of `n` rows, for all experts. Class labels of scikit-learn models are the columns
            of the outputs in sorted order; beside Keras models use class numbers from 0 on.
        folds: How many; or the fold of each row `(n,)`; or a splitter of scikit-learn. Class labels
            are stratified.
        groups: `(n,)`: rows of one group are held out together.
        sample_weight: `(n,)`, or `None`.
        expert_inputs: As in `Mixture`.
        compile: How a copy of a Keras model is compiled: `None` as the given model is; a dict of
            arguments of `compile`; or a function that compiles a model.
        fit: Arguments of `keras.Model.fit`, one dict for all Keras models or one for each expert;
            `callbacks` may be a function that makes them anew for each training.
        classes: The classes that columns stand for; `None` for those of `y`.
        refit: Whether to train the experts on all rows as well.
        seed: Of the folds.

    Returns:
        `CrossFit`.

    Raises:
        ValueError: If the folds do not fit, a Keras model is not compiled, or experts differ in the
            shape of their outputs.
        TypeError: If an expert can not be trained.

    Example:
    >>> import keras, numpy as np, plait
    >>> x = np.linspace(-1.0, 1.0, 12, dtype="float32")[:, None]
    >>> experts = [keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]) for _ in "ab"]
    >>> found = plait.training.cross_fit(
    ...     experts, x, 2 * x, folds=3, compile={"optimizer": "sgd", "loss": "mse"},
    ...     fit={"epochs": 2, "verbose": 0},
    ... )
    >>> found.outputs.shape, len(found.experts)
    ((12, 2, 1), 2)

    References:
        Wolpert (1992), Stacked generalization.
        van der Laan, Polley, Hubbard (2007), Super learner.
    """
    y = np.asarray(y)
    for position, expert in enumerate(experts):
        _check(expert, position, compile)
    numbers = fold_numbers(y, folds, groups, seed)
    x = tree.map_structure(np.asarray, x)
    parts = select_each(x, selectors(expert_inputs, len(experts)))
    parts = parts * len(experts) if len(parts) == 1 else parts
    by_expert: list[Any] = (
        [fit or {}] * len(experts) if isinstance(fit, Mapping) or not fit else list(fit)
    )
    if len(by_expert) != len(experts):
        raise ValueError(
            message(
                f"`fit` must be one dict, or one for each of the {len(experts)} experts",
                f"{len(by_expert)} of them",
                "Pass a dict for all, such as fit={'epochs': 10}",
            )
        )
    known = classes if classes is not None else _classes(y)
    weights = None if sample_weight is None else np.asarray(sample_weight)
    columns: list[np.ndarray] = []
    whole = []
    for expert, part, arguments in zip(experts, parts, by_expert, strict=True):
        trained = _Trainer(expert, compile, arguments, known)
        column: np.ndarray | None = None
        for fold in range(int(numbers.max()) + 1):
            seen, held = np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)
            model = trained.on(*_rows(seen, part, y, weights), fold)
            found = trained.predict(model, _take(part, held))
            if column is None:
                column = np.empty((len(y), *found.shape[1:]), found.dtype)
            column[held] = found
        assert column is not None  # there are at least two folds
        columns.append(column)
        if refit:
            whole.append(trained.finished(trained.on(part, y, weights, int(numbers.max()) + 1)))
    shapes = [column.shape[1:] for column in columns]
    for position, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"Expert {position} returns rows of shape {shape}, but expert 0 of {shapes[0]}. "
                "Experts of one mixture must agree in shape."
            )
    return CrossFit(np.stack(columns, axis=1), whole, numbers)


class _Trainer:
    """Trains copies of one expert."""

    def __init__(
        self,
        expert: Any,
        compile: Compile,
        arguments: Mapping[str, Any],
        classes: Sequence[Any] | None,
    ) -> None:
        self.expert = expert
        self.compile = compile
        self.arguments = arguments
        self.classes = classes if hasattr(expert, "predict_proba") else None

    def on(self, x: Nested, y: np.ndarray, weights: np.ndarray | None, number: int) -> Any:
        """Returns a new copy, trained on rows."""
        if not isinstance(self.expert, keras.Model):
            copy = _clone(self.expert)
            flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
            return copy.fit(x, flat, **({} if weights is None else {"sample_weight": weights}))
        copy = _compiled(_fresh(self.expert, number), self.expert, self.compile)
        arguments = dict(self.arguments)
        if callable(arguments.get("callbacks")) and not isinstance(
            arguments["callbacks"], keras.callbacks.Callback
        ):
            arguments["callbacks"] = arguments["callbacks"]()
        copy.fit(x, y, sample_weight=weights, **arguments)
        return copy

    def predict(self, model: Any, x: Nested) -> np.ndarray:
        """Returns what a trained copy gives for rows."""
        if isinstance(model, keras.Model):
            found = model.predict(x, batch_size=256, verbose=0)
            if not isinstance(found, np.ndarray):
                raise ValueError(
                    message(
                        "An expert of cross_fit must have one output",
                        f"{model.name!r} with {len(tree.flatten(found))}",
                        "Pass models that return one of them",
                    )
                )
            return found
        return np.asarray(predictions(model, x, self.classes), keras.config.floatx())

    def finished(self, model: Any) -> keras.layers.Layer:
        """Returns a trained copy as an expert of a mixture."""
        return model if isinstance(model, keras.Model) else Frozen(model, classes=self.classes)


def _check(expert: Any, position: int, compile: Compile) -> None:
    """Raises unless an expert can be trained."""
    if isinstance(expert, keras.Model):
        if compile is None and not expert.compiled:
            raise ValueError(
                message(
                    f"Expert {position} of cross_fit must be compiled, or `compile` say how",
                    f"{expert.name!r}, which is not compiled, and compile=None",
                    "Call its compile, or pass compile={'optimizer': 'adam', 'loss': 'mse'}",
                )
            )
        return
    trains = hasattr(expert, "fit") and hasattr(expert, "predict")
    if isinstance(expert, keras.layers.Layer) or not trains:
        raise TypeError(
            message(
                f"Expert {position} of cross_fit must be a Keras model or have `fit` and `predict`",
                f"{expert!r} of type {type(expert).__name__}",
                "Put a layer in a keras.Sequential; a Frozen is trained already",
            )
        )


def _clone(estimator: Any) -> Any:
    """Returns an unfitted estimator of the same parameters."""
    if hasattr(estimator, "get_params"):
        from sklearn.base import clone

        return clone(estimator)
    return type(estimator)(**vars(estimator))


def _fresh(expert: keras.Model, number: int) -> keras.Model:
    """Returns a copy with fresh weights, but for layers that are frozen or adapted."""
    copy = copy_of(expert, number)
    if expert.built and not copy.built:
        copy.build_from_config(expert.get_build_config())
    if not expert.built:
        return copy
    for own, original in zip(flat_layers(copy), flat_layers(expert), strict=False):
        if own.trainable != original.trainable:
            own.trainable = original.trainable
        if original.variables and (not original.trainable or hasattr(original, "adapt")):
            own.set_weights(original.get_weights())
            if hasattr(own, "finalize_state"):
                own.finalize_state()
    return copy


def _compiled(copy: keras.Model, expert: keras.Model, compile: Compile) -> keras.Model:
    """Returns a copy, compiled as it is said or as its original is, with its own optimizer."""
    if callable(compile):
        compile(copy)
    elif compile is not None:
        arguments = dict(compile)
        optimizer = keras.optimizers.get(arguments.pop("optimizer", "rmsprop"))
        copy.compile(type(optimizer).from_config(optimizer.get_config()), **arguments)
    elif isinstance(expert, Mixture):
        expert.compile_like(copy)
    else:
        copy.compile_from_config(expert.get_compile_config())
    if not copy.compiled:
        raise ValueError(
            message(
                "A copy must be compiled to be trained",
                f"a copy of {expert.name!r}, whose compile arguments Keras could not serialise",
                "Pass `compile`, a dict or a function that compiles a model",
            )
        )
    return copy


def _classes(y: np.ndarray) -> list[Any] | None:
    flat = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    return list(np.unique(flat)) if flat.ndim == 1 and class_labels(flat) is not None else None


def _take(x: Nested, rows: np.ndarray) -> Nested:
    return tree.map_structure(lambda leaf: leaf[rows], x)


def _rows(
    rows: np.ndarray, x: Nested, y: np.ndarray, weights: np.ndarray | None
) -> tuple[Nested, np.ndarray, np.ndarray | None]:
    return _take(x, rows), y[rows], None if weights is None else weights[rows]


__all__ = ["CrossFit", "cross_fit"]
