"""A gate over scikit-learn estimators, fitted on their outputs for rows that they have not seen."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin, clone
from sklearn.model_selection import check_cv, cross_val_predict
from sklearn.utils import Bunch, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_is_fitted,
    has_fit_parameter,
    validate_data,
)

from plait.errors import message
from plait.sklearn.base import KerasEstimator, Scaling, check_choice, check_weights, rows_of, shares
from plait.sklearn.networks import GATES, gate_network, weights_network
from plait.sklearn.randomness import isolated
from plait.sklearn.steps import Arrays, Rows, outputs_of
from plait.typing import Config, Tensor

# A probability of zero, which forests give, must not veto a class whatever the others say.
_SMALLEST = 1e-6
_COMBINATIONS = ("arithmetic", "geometric")
_BY_ROW = ("linear", "mlp")


class _GatedEstimator(KerasEstimator):
    """The parameters and the fit of both estimators."""

    _gates: tuple[str, ...] = GATES
    _method = ""

    def __init__(
        self,
        estimators: Sequence[tuple[str, Any]],
        *,
        cv: Any = 5,
        gate: str = "linear",
        combination: str = "arithmetic",
        gate_transformer: Any = None,
        alpha: float = 1e-4,
        n_jobs: int | None = None,
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.01,
        max_iter: int = 200,
        tol: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.estimators = estimators
        self.cv = cv
        self.gate = gate
        self.combination = combination
        self.gate_transformer = gate_transformer
        self.alpha = alpha
        self.n_jobs = n_jobs
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state

    def get_params(self, deep: bool = True) -> Config:
        """Returns the parameters; if `deep`, also the estimators by name, and theirs."""
        found = super().get_params(deep=deep)
        if deep:
            for name, estimator in self._pairs():
                found[name] = estimator
                for key, value in estimator.get_params(deep=True).items():
                    found[f"{name}__{key}"] = value
        return found

    def set_params(self, **params: Any) -> "_GatedEstimator":
        """Sets parameters, also whole estimators by name, and theirs as `name__parameter`."""
        if "estimators" in params:
            self.estimators = params.pop("estimators")
        named = dict(self._pairs())
        for name in [each for each in params if each in named]:
            named[name] = params.pop(name)
            self.estimators = [(key, named[key]) for key, _ in self.estimators]
        for key in [each for each in params if each.partition("__")[0] in named]:
            name, _, inner = key.partition("__")
            named[name].set_params(**{inner: params.pop(key)})
        super().set_params(**params)
        return self

    def _pairs(self) -> list[tuple[str, Any]]:
        pairs = self.estimators
        if not isinstance(pairs, (list, tuple)):
            return []
        return [each for each in pairs if isinstance(each, tuple) and len(each) == 2]

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_choice("gate", self.gate, self._gates)
        check_choice("combination", self.combination, _COMBINATIONS)
        pairs = self._pairs()
        names = [name for name, _ in pairs]
        own = set(super().get_params(deep=False))
        if not pairs or len(pairs) != len(self.estimators) or len(set(names)) < len(names):
            raise ValueError(
                message(
                    "`estimators` must be a list of (name, estimator) with names of their own",
                    repr(self.estimators)[:200],
                    'Use for example [("rf", RandomForestClassifier())]',
                )
            )
        for name, estimator in pairs:
            if not isinstance(name, str) or "__" in name or name in own:
                raise ValueError(
                    message(
                        "A name must be text without '__', and no parameter of its owner",
                        repr(name),
                        "Use another name",
                    )
                )
            if not hasattr(estimator, self._method):
                raise ValueError(
                    message(
                        f"Every estimator needs `{self._method}`",
                        f"{name!r}, a {type(estimator).__name__}",
                        "Wrap it in sklearn.calibration.CalibratedClassifierCV"
                        if self._method == "predict_proba"
                        else "Leave it out",
                    )
                )

    def _fit(
        self, X: Tensor, y: np.ndarray, units: int, sample_weight: np.ndarray | None, loss: str
    ) -> None:
        """Fits the estimators, then the gate on their outputs."""
        self.transformer_ = None
        if self.gate in _BY_ROW and self.gate_transformer is not None:
            self.transformer_ = clone(self.gate_transformer).fit(X, y)
        # Read before anything is fitted: a column that the gate cannot read costs no fit.
        self._gate_scaling_ = None
        if self.gate in _BY_ROW:
            self._gate_scaling_ = Scaling(self._numbers(X), sample_weight)
        x = self._gate_input(X)
        fit_args = {} if sample_weight is None else {"sample_weight": sample_weight}
        if self.cv == "prefit":
            self.estimators_ = [estimator for _, estimator in self._pairs()]
            for estimator in self.estimators_:
                check_is_fitted(estimator)
            found = self._outputs(X)
        else:
            splits = check_cv(self.cv, y, classifier=self._method == "predict_proba")
            # A splitter that draws its folds is asked once: all estimators see the same.
            folds = list(splits.split(X, y))
            outputs, self.estimators_ = [], []
            for name, estimator in self._pairs():
                self._check_weights(name, estimator, fit_args)
                fresh = clone(estimator)
                made = cross_val_predict(
                    fresh,
                    X,
                    y,
                    cv=folds,
                    n_jobs=self.n_jobs,
                    method=self._method,
                    params=fit_args or None,
                )
                self.estimators_.append(fresh.fit(X, y, **fit_args))
                outputs.append(self._aligned(fresh, made, name))
            found = outputs
        self.named_estimators_ = Bunch(
            **{name: each for (name, _), each in zip(self._pairs(), self.estimators_, strict=True)}
        )
        target = self._prepare(y, found, sample_weight)
        with isolated(self._start()):
            model = gate_network(
                self.gate,
                x.shape[1],
                len(found),
                units,
                pooled=self.combination == "geometric" and self._method == "predict_proba",
                alpha=self.alpha,
                log_precisions=self._log_precisions(y, found, sample_weight),
            )
            model.compile(keras.optimizers.Adam(self.learning_rate_init), loss)
        self.n_iter_ = 0
        if model.trainable_variables:
            rows = Rows([x, *self._fed(found)], target, sample_weight)
            self._train(model, rows, target if self._method == "predict_proba" else None)
        self.model_ = model

    def _check_weights(self, name: str, estimator: Any, fit_args: Config) -> None:
        if fit_args and not has_fit_parameter(estimator, "sample_weight"):
            raise TypeError(
                message(
                    "Under `sample_weight` every estimator must take it in `fit`",
                    f"{name!r}, a {type(estimator).__name__}",
                    "Leave it out, or fit without sample_weight",
                )
            )

    def _numbers(self, X: Tensor) -> np.ndarray:
        made = X if self.transformer_ is None else self.transformer_.transform(X)
        return check_array(made, dtype="float64", estimator=self, input_name="X")

    def _gate_input(self, X: Tensor) -> np.ndarray:
        """Returns what the gate reads, `(n, d)`; one constant column where it reads nothing."""
        if self._gate_scaling_ is None:
            return np.zeros((rows_of(X), 1), "float32")
        return self._gate_scaling_(self._numbers(X))

    def _outputs(self, X: Tensor) -> Arrays:
        return [
            self._aligned(each, getattr(each, self._method)(X), name)
            for (name, _), each in zip(self._pairs(), self.estimators_, strict=True)
        ]

    def _read(self, X: Tensor) -> Arrays:
        check_is_fitted(self, "model_")
        if getattr(X, "ndim", 2) != 2:
            check_array(X, estimator=self, input_name="X")  # says which shape is needed
        validate_data(self, X, reset=False, skip_check_array=True)
        return [self._gate_input(X), *self._fed(self._outputs(X))]

    def gate_weights(self, X: Tensor) -> np.ndarray:
        """Returns the weights of the estimators for every row.

        Args:
            X: Array or table `(n, d)`.

        Returns:
            Array `(n, e)`, or `(n, c, e)` with `gate="per-class"`.
        """
        inputs = self._read(X)
        with isolated(0):
            return outputs_of(weights_network(self.model_), inputs)

    def _aligned(self, estimator: Any, output: np.ndarray, name: str) -> np.ndarray:
        """Returns one estimator's output as `(n, u)`."""
        raise NotImplementedError

    def _prepare(self, y: np.ndarray, found: Arrays, weights: np.ndarray | None) -> np.ndarray:
        """Returns the target that the gate is trained on."""
        raise NotImplementedError

    def _fed(self, found: Arrays) -> Arrays:
        """Returns the estimators' outputs as the gate's model reads them."""
        raise NotImplementedError

    def _log_precisions(
        self, y: np.ndarray, found: Arrays, weights: np.ndarray | None
    ) -> np.ndarray | None:
        """Returns what is added to the gate's scores, or `None`."""
        del y, found, weights
        return None


class GatedClassifier(ClassifierMixin, _GatedEstimator):
    """Weighs classifiers by the row: `p(c | x) = Σ_l w_l(x) · p_l(c | x)`.

    The parameters are named as in `sklearn.ensemble.StackingClassifier`. The gate is fitted on
    probabilities for rows that an estimator was not fitted to, by cross-validation; the estimators
    are then fitted to all rows.

    `fit` takes rows `(n, d)` and classes `(n,)`; `predict_proba` returns `(n, c)`, and `predict`
    `(n,)`.
    A model over other models' out-of-fold predictions is stacking (Wolpert 1992).

    Args:
        estimators: List of (name, classifier with `predict_proba`).
        cv: Number of folds, a splitter, or `"prefit"`: the estimators are used as they are, and
            the rows given to `fit` should be new to them.
        gate: `"linear"` or `"mlp"`, weights by the row; `"constant"`, alike for every row;
            `"per-class"`, by the class; `"uniform"`, equal weights.
        combination: `"arithmetic"`, or `"geometric"`: the softmax of `Σ_l w_l log p_l`.
        gate_transformer: `None`, or a transformer of `X` to the numbers that the gate reads, such
            as a `ColumnTransformer`. Without it `"linear"` and `"mlp"` read `X` itself.
        alpha: Weight of the squared coefficients of the gate in its loss.
        n_jobs: Processes of the cross-validation.
        batch_size: As in `MixtureClassifier`, as are the parameters below.
        learning_rate_init: See there.
        max_iter: See there.
        tol: See there.
        early_stopping: See there.
        validation_fraction: See there.
        n_iter_no_change: See there.
        random_state: See there; estimators have their own.

    Attributes:
        named_estimators_: The fitted estimators by name, in a list as `estimators_`.
        classes_: The classes.
        model_: The Keras model of the scaled columns and the estimators' outputs.

    Example:
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.naive_bayes import GaussianNB
    >>> from plait.sklearn import GatedClassifier
    >>> x, y = load_iris(return_X_y=True)
    >>> pairs = [("lr", LogisticRegression(max_iter=500)), ("nb", GaussianNB())]
    >>> model = GatedClassifier(pairs, max_iter=10, random_state=0).fit(x, y)
    >>> model.gate_weights(x).shape, sorted(model.named_estimators_), model.score(x, y) > 0.9
    ((150, 2), ['lr', 'nb'], True)
    """

    _method = "predict_proba"

    def fit(self, X: Tensor, y: Tensor, sample_weight: Tensor = None) -> "GatedClassifier":
        """Fits estimators and gate to rows and their classes.

        Args:
            X: Array or table `(n, d)`, of what the estimators and the gate read.
            y: Classes `(n,)`.
            sample_weight: `None` or a weight for each row, for estimators and gate.

        Raises:
            ValueError: If there are fewer than two classes, or a parameter is none of its words.
            TypeError: If an estimator does not take the sample weights.
        """
        self._check_parameters()
        X, y, weights = _checked(self, X, y, sample_weight)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(
                message(
                    "The target must have at least 2 classes",
                    f"y with one class, {self.classes_.tolist()}",
                    "Check the target's column",
                )
            )
        self._fit(X, y, len(self.classes_), weights, "sparse_categorical_crossentropy")
        return self

    def _aligned(self, estimator: Any, output: np.ndarray, name: str) -> np.ndarray:
        known = np.asarray(estimator.classes_)
        if not np.isin(known, self.classes_).all():
            raise ValueError(
                message(
                    "A fitted estimator must know no class that the target lacks",
                    f"{name!r} with classes {known.tolist()} beside {self.classes_.tolist()}",
                    "Fit the gate to rows of every class",
                )
            )
        if len(known) == len(self.classes_):
            return np.asarray(output, "float64")
        wide = np.zeros((len(output), len(self.classes_)))
        wide[:, np.searchsorted(self.classes_, known)] = output
        return wide

    def _prepare(self, y: np.ndarray, found: Arrays, weights: np.ndarray | None) -> np.ndarray:
        del found, weights
        return np.searchsorted(self.classes_, y)

    def _fed(self, found: Arrays) -> Arrays:
        if self.combination == "geometric":
            return [np.log(shares(np.maximum(p, _SMALLEST))).astype("float32") for p in found]
        return [p.astype("float32") for p in found]

    def predict_proba(self, X: Tensor) -> np.ndarray:
        """Returns the probability of every class, `(n, c)`, in float64; rows sum to one."""
        return shares(self._predicted(self._read(X)))

    def predict(self, X: Tensor) -> np.ndarray:
        """Returns the most probable class of every row, `(n,)`."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(axis=1)]


class GatedRegressor(RegressorMixin, _GatedEstimator):
    """Weighs regressors by the row: `out = Σ_l w_l(x) · f_l(x)`.

    `fit` takes rows `(n, d)` and targets `(n,)`; `predict` returns `(n,)`. As
    `GatedClassifier`, this is stacking (Wolpert 1992).

    Args:
        estimators: List of (name, regressor).
        cv: As in `GatedClassifier`, as are all other parameters.
        gate: See there; there is no `"per-class"`.
        combination: `"arithmetic"`, or `"geometric"`: the mean of the product of Gaussians
            `Π_l N(f_l, s_l²)^{w_l}`, which weighs by `w_l / s_l²`, with `s_l²` the mean squared
            error on the rows that the gate is fitted to.
        gate_transformer: See there.
        alpha: See there.
        n_jobs: See there.
        batch_size: See there.
        learning_rate_init: See there.
        max_iter: See there.
        tol: See there.
        early_stopping: See there.
        validation_fraction: See there.
        n_iter_no_change: See there.
        random_state: See there.

    Attributes:
        named_estimators_: The fitted estimators by name, in a list as `estimators_`.
        model_: The Keras model of the scaled columns and the estimators' scaled outputs.

    Example:
    >>> import numpy as np
    >>> from sklearn.linear_model import LinearRegression
    >>> from sklearn.tree import DecisionTreeRegressor
    >>> from plait.sklearn import GatedRegressor
    >>> x = np.linspace(-1, 1, 60)[:, None]
    >>> pairs = [("line", LinearRegression()), ("tree", DecisionTreeRegressor(random_state=0))]
    >>> model = GatedRegressor(pairs, gate="constant", random_state=0).fit(x, x[:, 0])
    >>> model.gate_weights(x[:1])[0].argmax(), model.predict(x).shape
    (np.int64(0), (60,))
    """

    _gates = tuple(name for name in GATES if name != "per-class")
    _method = "predict"

    def fit(self, X: Tensor, y: Tensor, sample_weight: Tensor = None) -> "GatedRegressor":
        """Fits estimators and gate to rows and their targets.

        Args:
            X: Array or table `(n, d)`, of what the estimators and the gate read.
            y: Numbers `(n,)`.
            sample_weight: `None` or a weight for each row, for estimators and gate.

        Raises:
            ValueError: If a parameter is none of its words.
            TypeError: If an estimator does not take the sample weights.
        """
        self._check_parameters()
        X, y, weights = _checked(self, X, y, sample_weight, numbers=True)
        self._fit(X, y, 1, weights, "mean_squared_error")
        return self

    def _aligned(self, estimator: Any, output: np.ndarray, name: str) -> np.ndarray:
        del estimator, name
        return np.asarray(output, "float64").reshape(len(output), 1)

    def _prepare(self, y: np.ndarray, found: Arrays, weights: np.ndarray | None) -> np.ndarray:
        del found
        self._target_scaling_ = Scaling(y.reshape(-1, 1), weights)
        return self._target_scaling_(y.reshape(-1, 1))

    def _fed(self, found: Arrays) -> Arrays:
        return [self._target_scaling_(each) for each in found]

    def _log_precisions(
        self, y: np.ndarray, found: Arrays, weights: np.ndarray | None
    ) -> np.ndarray | None:
        if self.combination == "arithmetic":
            return None
        squares = [np.average((each[:, 0] - y) ** 2, weights=weights) for each in found]
        logs = -np.log(np.maximum(squares, 1e-12 * (1e-300 + max(squares))))
        return logs - logs.mean()

    def predict(self, X: Tensor) -> np.ndarray:
        """Returns the predictions `(n,)`, in float64."""
        inputs = self._read(X)
        return self._target_scaling_.undone(self._predicted(inputs))[:, 0]


def _checked(
    estimator: _GatedEstimator,
    X: Tensor,
    y: Tensor,
    sample_weight: Tensor,
    numbers: bool = False,
) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
    """Returns `X` as it is, which the estimators check; the target and the weights checked."""
    validate_data(estimator, X, skip_check_array=True)
    if y is None:
        raise ValueError(
            f"This {type(estimator).__name__} estimator requires y to be passed, but the target y "
            "is None."
        )
    if numbers:
        y = check_array(y, ensure_2d=False, dtype="numeric", input_name="y")
    y = column_or_1d(y, warn=True)
    weights = check_weights(sample_weight, X)
    return X, y, weights
