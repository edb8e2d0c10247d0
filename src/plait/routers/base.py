"""The base of the routers: scores in, weights out, and one hook."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from plait.errors import message
from plait.ops import balance
from plait.ops.combine import at_least_float32
from plait.ops.routing import Routing, log_probabilities, softmax
from plait.routers.tally import Tally
from plait.typing import Count, Dtype, Mask, Shape, Tensor


class Router(keras.layers.Layer):
    """Turns a gate's scores into mixing weights.

    A member of the family implements `select`; everything else is here. Three balance terms, each
    off at 0, are added to the loss in training, times their coefficient. Their raw values, means
    over the steps of an epoch, stand in the logs of `fit` as `<router name>_load_balance` and so
    on, or under another name than the router's (see `report_as`). What balances nothing, such as
    `evaluate` and the validation of `fit`, does not show them.

    Under every router a score of −∞ excludes its expert from the row, also by a probability of zero
    where scores are probabilities, and a score of NaN makes the weights of its row NaN; see
    `plait.ops.routing`.

    Args:
        load_balance: Coefficient of `e · Σ_l f_l P_l`, which is one where the load is even
            (Fedus et al. 2021, eq. 4).
        importance: Coefficient of the squared coefficient of variation of the experts' total
            weights (Shazeer et al. 2017, eq. 6).
        z_loss: Coefficient of the mean of `(log Σ_l exp s_l)²`, which keeps scores small
            (Zoph et al. 2022, eq. 5).
        from_logits: Whether the scores are logits, the default, or probabilities, such as those
            of a gate that ends in a softmax.
        name: As in Keras.
        dtype: As in Keras. Weights are computed in float32 or better whatever it is.
        trainable: As in Keras.

    Call arguments:
        scores: Tensor of shape `(b, …, e)`.
        training: Whether the call is part of training.
        mask: `None` or bool, shaped as the first axes of the scores. A row where it is false
            counts in no balance term and takes none of an expert's capacity.

    Returns:
        Weights of shape `(b, …, e)`, in float32 or better.

    Raises:
        ValueError: If a coefficient is negative or not a number.

    Example:
    >>> import keras, plait
    >>> class Proportional(plait.routers.Router):
    ...     def select(self, logits, training):
    ...         positive = keras.ops.softplus(logits)
    ...         total = keras.ops.sum(positive, axis=-1, keepdims=True)
    ...         return plait.ops.Routing(positive / total)
    >>> weights = Proportional()(keras.ops.zeros((1, 4)))
    >>> [round(float(w), 4) for w in weights[0]]
    [0.25, 0.25, 0.25, 0.25]

    References:
        Fedus, Zoph, Shazeer (2021), Switch Transformers.
        Shazeer et al. (2017), Outrageously large neural networks.
        Zoph et al. (2022), ST-MoE: designing stable and transferable sparse expert models.
    """

    sparse = False
    """Whether weights are exactly zero for some experts, which then need not run."""

    def __init__(
        self,
        *,
        load_balance: float = 0.0,
        importance: float = 0.0,
        z_loss: float = 0.0,
        from_logits: bool = True,
        name: str | None = None,
        dtype: Dtype | None = None,
        trainable: bool = True,
    ) -> None:
        # Scores are not cast down to the compute dtype of a mixed policy.
        super().__init__(autocast=False, name=name, dtype=dtype, trainable=trainable)
        self.load_balance = check_not_negative(self, "load_balance", load_balance)
        self.importance = check_not_negative(self, "importance", importance)
        self.z_loss = check_not_negative(self, "z_loss", z_loss)
        self.from_logits = from_logits
        self.supports_masking = True
        self.seed_generator: keras.random.SeedGenerator | None = None
        self._tallies: dict[str, Tally] = {}
        self._reported_as = self.name

    def select(self, logits: Tensor, training: bool) -> Routing:
        """The hook: returns the `Routing` for logits of shape `(b, …, e)`, float32 or better."""
        raise NotImplementedError(f"{type(self).__name__} must implement `select`.")

    def limit(self, routing: Routing, training: bool, mask: Mask) -> Routing:
        """Returns what is left of a routing within the router's capacity; here, all of it."""
        del training, mask
        return routing

    def capacity(self, num_rows: Count, num_experts: int) -> Count | None:
        """Returns how many rows one expert takes at most, or `None` for any number.

        Args:
            num_rows: `n`, the product of the routed axes: an integer, or an integer tensor where
                the batch size is only known at run time.
            num_experts: `e`.
        """
        del num_rows, num_experts
        return None

    def build(self, input_shape: Shape) -> None:
        """Creates the state, and checks the router's arguments against the number of experts."""
        if input_shape[-1] is None:
            raise ValueError(
                message(
                    f"The last axis of the scores given to {type(self).__name__} must be known: "
                    "it counts the experts",
                    f"scores of shape {tuple(input_shape)}",
                    "End the gate in a layer of fixed width, such as Dense(num_experts)",
                )
            )
        self.num_experts = int(input_shape[-1])
        for name in ("load_balance", "importance", "z_loss"):
            if getattr(self, name):
                self.track(name)

    def track(self, name: str) -> None:
        """Adds a metric `<router name>_<name>`, to be fed by `record`; called in `build`."""
        totals = self.add_state(f"{name}_tally", (2,))
        # Keras finds the metrics of a layer among its attributes.
        self._tallies[name] = Tally(totals, name=f"{self._reported_as}_{name}")

    def record(self, name: str, value: Tensor, count: Tensor = 1.0) -> None:
        """Adds a value, with the weight `count`, to the mean that a metric shows."""
        self._tallies[name].add(value, count)

    def recorded(self, name: str) -> Tensor:
        """Returns the mean of what was recorded since the last reset of the metric `name`.

        Example:
        >>> import numpy as np
        >>> import plait
        >>> router = plait.routers.Softmax(load_balance=0.01)
        >>> weights = router(np.array([[1.0, 1.0]]), training=True)
        >>> round(float(router.recorded("load_balance")), 4)
        1.0
        """
        return self._tallies[name].mean()

    def report_as(self, name: str) -> None:
        """Names the metrics `<name>_load_balance` and so on: after what the router is a part of.

        Two models in one have two sets of metrics in its logs, where their names differ.

        Args:
            name: Such as the name of the mixture. The router's own name stays.

        Example:
        >>> import plait
        >>> router = plait.routers.Softmax(load_balance=0.01)
        >>> router.build((None, 4))
        >>> router.report_as("moe")
        >>> [metric.name for metric in router.metrics]
        ['moe_load_balance']
        """
        self._reported_as = name
        for term, tally in self._tallies.items():
            tally.name = f"{name}_{term}"

    def add_state(self, name: str, shape: Shape, start: float = 0.0) -> keras.Variable:
        """Returns a new float32 variable that is saved with the router and not trained."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=keras.initializers.Constant(start),
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def save_own_variables(self, store: Any) -> None:
        """Saves the seed's state too, which Keras does not, so that training resumes exactly."""
        super().save_own_variables(store)
        if self.seed_generator is not None:
            store["seed"] = keras.ops.convert_to_numpy(self.seed_generator.state.value)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved."""
        saved = {key: store[key] for key in store.keys()}  # noqa: SIM118 (no plain dict)
        seed = saved.pop("seed", None)
        super().load_own_variables(saved)
        if self.seed_generator is not None and seed is not None:
            self.seed_generator.state.assign(np.array(seed))

    def route(self, scores: Tensor, training: bool | None = None, mask: Mask = None) -> Routing:
        """Returns the weights and, where only some experts count, which ones.

        Args:
            scores: Tensor of shape `(b, …, e)`.
            training: Whether the call is part of training.
            mask: See `Router`; one with more axes than the routed ones is ignored.
        """
        if not self.built:
            self.build(tuple(scores.shape))
        training = bool(training)
        logits = at_least_float32(scores) if self.from_logits else log_probabilities(scores)
        mask = _over_rows(mask, logits)
        routing = self.select(logits, training)
        if training:
            self.balance(logits, routing, mask)
        return self.limit(routing, training, mask)

    def balance(self, logits: Tensor, routing: Routing, mask: Mask) -> None:
        """Adds the balance terms of a training step to the loss and to the metrics."""
        terms: dict[str, Callable[[], Tensor]] = {
            "load_balance": lambda: balance.load_balance(
                softmax(logits), balance.expert_load(routing, mask), mask
            ),
            "importance": lambda: balance.importance(routing.weights, mask),
            "z_loss": lambda: balance.z_loss(logits, mask),
        }
        for name, term in terms.items():
            coefficient = getattr(self, name)
            if coefficient:
                value = term()
                self.add_loss(coefficient * value)
                self.record(name, value)

    def call(self, scores: Tensor, training: bool | None = None, mask: Mask = None) -> Tensor:
        """Returns the weights alone; see `route`."""
        return self.route(scores, training=training, mask=mask).weights

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Weights are shaped as the scores are."""
        return tuple(input_shape)

    def compute_output_spec(self, scores: Tensor, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        """Weights are in float32, or float64 where the scores are."""
        del args, kwargs
        double = keras.backend.standardize_dtype(scores.dtype) == "float64"
        return keras.KerasTensor(scores.shape, dtype="float64" if double else "float32")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            **super().get_config(),
            "load_balance": self.load_balance,
            "importance": self.importance,
            "z_loss": self.z_loss,
            "from_logits": self.from_logits,
        }


def _over_rows(mask: Mask, logits: Tensor) -> Mask:
    """Returns the mask with all routed axes, or `None` where it does not speak of them."""
    routed = len(logits.shape) - 1
    if mask is None or len(mask.shape) > routed:
        return None
    mask = ops.cast(mask, "bool")
    mask = ops.reshape(mask, (*ops.shape(mask), *(1,) * (routed - len(mask.shape))))
    return ops.broadcast_to(mask, ops.shape(logits)[:-1])


def row_count(weights: Tensor) -> Count:
    """Returns the product of the routed axes, a tensor where it is only known at run time."""
    return math.prod(ops.shape(weights)[:-1])


def check_positive(owner: object, name: str, value: float) -> float:
    """Returns `value` when it is a positive number, and raises `ValueError` otherwise."""
    if not _is_number(value) or not 0 < value < float("inf"):
        raise ValueError(
            message(
                f"`{name}` of {type(owner).__name__} must be a positive number",
                f"{name}={value!r}",
                f"Use {name}=1.0 for the plain rule",
            )
        )
    return float(value)


def check_not_negative(owner: object, name: str, value: float) -> float:
    """Returns `value` when it is a number ≥ 0, and raises `ValueError` otherwise."""
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(
            message(
                f"`{name}` of {type(owner).__name__} must be a number of at least 0",
                f"{name}={value!r}",
                f"Use {name}=0.0 to switch it off",
            )
        )
    return float(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
