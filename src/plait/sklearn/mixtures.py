"""Mixtures of small networks, trained jointly, as scikit-learn estimators."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_is_fitted,
    validate_data,
)

from plait import routers
from plait.errors import message
from plait.losses import ExpertMean, MixtureNLL
from plait.mixture import Mixture
from plait.sklearn.base import (
    KerasEstimator,
    Scaling,
    check_choice,
    check_count,
    check_weights,
    shares,
)
from plait.sklearn.randomness import isolated
from plait.sklearn.steps import Rows
from plait.typing import Config, Tensor

_GATES = ("constant", "linear", "mlp", "uniform")
_OBJECTIVES = ("expert_mean", "likelihood", "mixture")


class _MixtureEstimator(KerasEstimator):
    """The parameters and the network of both estimators."""

    _loss = ""
    _family = ""
    _scaling_: Scaling
    n_features_in_: int

    def __init__(
        self,
        n_experts: int = 4,
        hidden_layer_sizes: Sequence[int] = (16,),
        *,
        gate: str = "linear",
        router: routers.Router | str | Config | None = "softmax",
        objective: str = "mixture",
        activation: str = "relu",
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.01,
        max_iter: int = 200,
        tol: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_experts = n_experts
        self.hidden_layer_sizes = hidden_layer_sizes
        self.gate = gate
        self.router = router
        self.objective = objective
        self.activation = activation
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.tol = tol
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state

    def _check_parameters(self) -> None:
        super()._check_parameters()
        check_count("n_experts", self.n_experts)
        for size in np.atleast_1d(self.hidden_layer_sizes):
            check_count("hidden_layer_sizes", size)
        check_choice("gate", self.gate, _GATES)
        check_choice("objective", self.objective, _OBJECTIVES)

    def _continues(self) -> bool:
        return bool(self.warm_start and hasattr(self, "model_"))

    def _new_model(self, units: int, activation: str | None) -> Mixture:
        """Returns a compiled mixture, in which every random number follows from one seed."""
        with isolated(self._start()):
            layers = [keras.Input((self.n_features_in_,))]
            for size in np.atleast_1d(self.hidden_layer_sizes):
                layers.append(keras.layers.Dense(int(size), activation=self.activation))
            layers.append(keras.layers.Dense(units, activation=activation))
            gate: Any = self.gate
            if gate == "mlp":
                gate = keras.Sequential(
                    [
                        keras.Input((self.n_features_in_,)),
                        keras.layers.Dense(16, activation="relu"),
                        keras.layers.Dense(self.n_experts),
                    ]
                )
            router = routers.get(self.router) or routers.Softmax()
            router = type(router).from_config(router.get_config())  # the caller's stays its own
            model = Mixture(
                keras.Sequential(layers), num_experts=int(self.n_experts), gate=gate, router=router
            )
            loss = {
                "mixture": lambda: self._loss,
                "likelihood": lambda: MixtureNLL(self._family),
                "expert_mean": lambda: ExpertMean(self._loss, weighted=True),
            }[self.objective]()
            model.compile(keras.optimizers.Adam(self.learning_rate_init), loss)
            model.build((None, self.n_features_in_))
        return model

    def _rows(self, X: np.ndarray, target: np.ndarray, weights: np.ndarray | None) -> Rows:
        if not self._continues():
            self._scaling_ = Scaling(X, weights)
        return Rows([self._scaling_(X)], target, weights)

    def _read(self, X: Tensor) -> np.ndarray:
        check_is_fitted(self, "model_")
        return self._scaling_(validate_data(self, X, reset=False))

    def gate_weights(self, X: Tensor) -> np.ndarray:
        """Returns the mixing weights of every row.

        Args:
            X: Array or table `(n, d)`.

        Returns:
            Array `(n, n_experts)`.
        """
        x = self._read(X)
        with isolated(0):
            return self.model_.gate_weights(x, batch_size=512)


class MixtureClassifier(ClassifierMixin, _MixtureEstimator):
    """A mixture of networks that classifies: `p(c | x) = Σ_l w_l(x) · p_l(c | x)`.

    The parameters are named as in `sklearn.neural_network.MLPClassifier`. Columns are scaled to a
    mean of zero and a variance of one. Training stops where `n_iter_no_change` epochs in a row
    have not lowered the loss by `tol`.

    `fit` takes rows `(n, d)` and classes `(n,)`; `predict_proba` returns `(n, c)`, and `predict`
    `(n,)`.

    Args:
        n_experts: Number of networks.
        hidden_layer_sizes: Units of each hidden layer of a network.
        gate: What weighs the networks: `"linear"` or `"mlp"` by the row, `"constant"` alike for
            every row, `"uniform"` equally.
        router: What turns the gate's scores into weights, as in `plait.routers.get`.
        objective: `"mixture"`: the loss of the weighted output; `"likelihood"`: the likelihood of
            the mixture of the networks' distributions; `"expert_mean"`: the sum of the networks'
            own losses, weighted by the gate (Jacobs et al. 1991).
        activation: Of the hidden layers.
        batch_size: Rows of one step at most; `"auto"` is 200.
        learning_rate_init: Of Adam.
        max_iter: Epochs at most.
        tol: The least gain of an epoch that counts.
        early_stopping: Whether rows are held out, whose loss decides; the weights that did best on
            them are kept.
        validation_fraction: Share of the held-out rows.
        n_iter_no_change: Epochs without a gain after which training stops.
        warm_start: Whether `fit` goes on from the present weights.
        random_state: Seed of first weights, of the order of the rows and of the held-out part. No
            global random generator is read, or changed.
        class_weight: As in scikit-learn: `None`, `"balanced"` or a dict.

    Attributes:
        model_: The `plait.Mixture`, which reads scaled columns.
        classes_: The classes.
        loss_curve_: The training loss of each epoch; the last is `loss_`.
        validation_losses_: That of the held-out rows, or `None`.
        n_iter_: Number of epochs.

    Example:
    >>> import numpy as np
    >>> from plait.sklearn import MixtureClassifier
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> model = MixtureClassifier(2, (4,), max_iter=60, random_state=0).fit(x, x[:, 0] > 0)
    >>> model.predict([[-0.9], [0.9]]).tolist(), model.gate_weights([[0.0]]).shape
    ([False, True], (1, 2))
    """

    _loss = "sparse_categorical_crossentropy"
    _family = "categorical"
    classes_: np.ndarray

    def __init__(
        self,
        n_experts: int = 4,
        hidden_layer_sizes: Sequence[int] = (16,),
        *,
        gate: str = "linear",
        router: routers.Router | str | Config | None = "softmax",
        objective: str = "mixture",
        activation: str = "relu",
        batch_size: int | str = "auto",
        learning_rate_init: float = 0.01,
        max_iter: int = 200,
        tol: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
    ) -> None:
        super().__init__(
            n_experts,
            hidden_layer_sizes,
            gate=gate,
            router=router,
            objective=objective,
            activation=activation,
            batch_size=batch_size,
            learning_rate_init=learning_rate_init,
            max_iter=max_iter,
            tol=tol,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            warm_start=warm_start,
            random_state=random_state,
        )
        self.class_weight = class_weight

    def fit(self, X: Tensor, y: Tensor, sample_weight: Tensor = None) -> "MixtureClassifier":
        """Trains on rows `(n, d)` and their classes `(n,)`.

        Args:
            X: Array or table of numbers.
            y: Classes, numbers or strings.
            sample_weight: `None` or a weight for each row.

        Raises:
            ValueError: If there are fewer than two classes, a parameter is none of its words, or
                a warm start meets other classes or columns than the first fit.
        """
        going = self._continues()
        X, y = validate_data(self, X, y, reset=not going)
        check_classification_targets(y)
        classes, target = np.unique(y, return_inverse=True)
        if going and not np.array_equal(classes, self.classes_):
            raise ValueError(
                message(
                    "A warm start goes on with the classes of the first fit",
                    f"classes {classes.tolist()} after {self.classes_.tolist()}",
                    "Use warm_start=False to begin anew",
                )
            )
        if len(classes) < 2:
            raise ValueError(
                message(
                    "The target must have at least 2 classes",
                    f"y with one class, {classes.tolist()}",
                    "Check the target's column",
                )
            )
        weights = check_weights(sample_weight, X)
        if self.class_weight is not None:
            by_class = compute_sample_weight(self.class_weight, y)
            weights = by_class if weights is None else weights * by_class
        model = self.model_ if going else self._new_model(len(classes), "softmax")
        rows = self._rows(X, target, weights)
        self._train(model, rows, stratify=target)
        self.classes_, self.model_ = classes, model
        return self

    def predict_proba(self, X: Tensor) -> np.ndarray:
        """Returns the probability of every class, `(n, c)`, in float64; rows sum to one."""
        return shares(self._predicted([self._read(X)]))

    def predict(self, X: Tensor) -> np.ndarray:
        """Returns the most probable class of every row, `(n,)`."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(axis=1)]


class MixtureRegressor(RegressorMixin, _MixtureEstimator):
    """A mixture of networks that predicts numbers: `out = Σ_l w_l(x) · f_l(x)`.

    Columns and targets are scaled to a mean of zero and a variance of one for the training.

    `fit` takes rows `(n, d)` and targets `(n,)` or `(n, u)`; `predict` returns the targets' shape.
    Each network is an expert of a mixture (Jacobs et al. 1991).

    Args:
        n_experts: As in `MixtureClassifier`, as are all parameters but `class_weight`.
        hidden_layer_sizes: See there.
        gate: See there.
        router: See there.
        objective: See there; the loss is the squared error, the likelihood Gaussian.
        activation: See there.
        batch_size: See there.
        learning_rate_init: See there.
        max_iter: See there.
        tol: See there.
        early_stopping: See there.
        validation_fraction: See there.
        n_iter_no_change: See there.
        warm_start: See there.
        random_state: See there.

    Attributes:
        model_: The `plait.Mixture`, which reads scaled columns and returns scaled targets.
        loss_curve_: The training loss of each epoch, of the scaled target.
        n_iter_: Number of epochs.

    Example:
    >>> import numpy as np
    >>> from plait.sklearn import MixtureRegressor
    >>> x = np.linspace(-1, 1, 40)[:, None]
    >>> model = MixtureRegressor(2, (8,), random_state=0).fit(x, 100 * np.abs(x[:, 0]))
    >>> model.predict(x).shape, model.score(x, 100 * np.abs(x[:, 0])) > 0.9
    ((40,), True)
    """

    _loss = "mean_squared_error"
    _family = "gaussian"
    _target_scaling_: Scaling
    _shape_: tuple[int, ...]

    def fit(self, X: Tensor, y: Tensor, sample_weight: Tensor = None) -> "MixtureRegressor":
        """Trains on rows `(n, d)` and their targets `(n,)` or `(n, u)`.

        Args:
            X: Array or table of numbers.
            y: Numbers.
            sample_weight: `None` or a weight for each row.

        Raises:
            ValueError: If a parameter is none of its words, or a warm start meets other columns or
                targets than the first fit.
        """
        going = self._continues()
        X, y = validate_data(self, X, y, reset=not going, y_numeric=True, multi_output=True)
        weights = check_weights(sample_weight, X)
        shape = y.shape[1:]
        if going and shape != self._shape_:
            raise ValueError(
                message(
                    "A warm start goes on with targets of the first fit's shape",
                    f"y of shape {y.shape} after (n, {', '.join(map(str, self._shape_))})",
                    "Use warm_start=False to begin anew",
                )
            )
        y = y.reshape(len(y), -1)
        units = y.shape[1]
        model = self.model_ if going else self._new_model(units, None)
        target = self._target_scaling_ if going else Scaling(y, weights)
        rows = self._rows(X, target(y), weights)
        self._train(model, rows, stratify=None)
        self._shape_, self._target_scaling_, self.model_ = shape, target, model
        return self

    def predict(self, X: Tensor) -> np.ndarray:
        """Returns the predictions, of the shape of the training targets, in float64."""
        x = self._read(X)
        values = self._target_scaling_.undone(self._predicted([x]))
        return values.reshape(len(values), *self._shape_)

    def __sklearn_tags__(self) -> Any:
        """Says that several targets are taken."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
