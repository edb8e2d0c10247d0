"""Families of linear experts in NumPy float64: log-densities, and M-steps to convergence."""

import math
from collections.abc import Callable

import keras
import numpy as np

from plait.losses import families
from plait.training import regression
from plait.training.regression import Array
from plait.typing import Tensor


class LinearFamily:
    """A family of experts that are linear up to the family's canonical link function.

    Args:
        family: The `plait.losses.families.Family` of the experts.
        num_experts: `e`.
    """

    activations: tuple[Callable[..., Tensor], ...] = ()
    """The activations of a Dense layer that make it this family's expert."""

    def __init__(self, family: families.Family, num_experts: int) -> None:
        self.family = family
        self.num_experts = num_experts

    def target(self, y: Array, units: int) -> Array:
        """Returns the target as `(n, u)` in float64."""
        y = np.asarray(y, "float64")
        return y.reshape(len(y), units)

    def bound(self, target: Array, sample_weight: Array) -> None:
        """Bounds parameters that have no maximum on this training data; here, none."""

    def log_density(self, eta: Array, target: Array, expert: int) -> Array:
        """Returns `log p_l(y | x)`, `(n,)`, from the linear predictor `(n, u)`."""
        raise NotImplementedError

    def fit(self, design: Array, target: Array, weights: Array, start: Array, expert: int) -> Array:
        """Returns the coefficients `(d, u)` that maximise the weighted log-density."""
        raise NotImplementedError

    def state(self) -> Array | None:
        """Returns a copy of the family's own parameters, or `None` where it has none."""
        return None

    def set_state(self, state: Array | None) -> None:
        """Sets the family's own parameters to what `state` returned."""

    def num_parameters(self) -> int:
        """Returns how many parameters the family adds to the coefficients."""
        return 0


class LinearGaussian(LinearFamily):
    """Weighted least squares, and a standard deviation per expert."""

    activations = (keras.activations.linear,)

    def __init__(self, family: families.Gaussian, num_experts: int) -> None:
        super().__init__(family, num_experts)
        self.learned = family.scale == "learned"
        given = family.initial_scale if self.learned else family.scale
        self.scales = np.broadcast_to(np.asarray(given, "float64"), (num_experts,)).copy()
        self.smallest = 0.0

    def bound(self, target: Array, sample_weight: Array) -> None:
        """Bounds the scales from below, which else may vanish, by the spread of the target."""
        weights = np.broadcast_to(sample_weight[:, None], target.shape)
        mean = np.average(target, weights=weights)
        variance = float(np.average((target - mean) ** 2, weights=weights))
        self.smallest = max(1e-3 * math.sqrt(variance), 1e-6)

    def log_density(self, eta: Array, target: Array, expert: int) -> Array:
        """Returns the Gaussian log-density, summed over the units."""
        scale = self.scales[expert]
        z = (target - eta) / scale
        return (-0.5 * z * z - math.log(scale) - 0.5 * math.log(2 * math.pi)).sum(axis=1)

    def fit(self, design: Array, target: Array, weights: Array, start: Array, expert: int) -> Array:
        """Fits coefficients, then the scale."""
        del start
        coefficients = regression.least_squares(design, target, weights)
        self.fit_scale(design @ coefficients, target, weights, expert)
        return coefficients

    def fit_scale(self, eta: Array, target: Array, weights: Array, expert: int) -> None:
        """Sets the scale to the weighted root mean square of the residuals, if it is learned."""
        if self.learned:
            squares = ((target - eta) ** 2).mean(axis=1)
            self.scales[expert] = max(
                math.sqrt(float(weights @ squares / weights.sum())), self.smallest
            )

    def state(self) -> Array:
        """Returns the scales."""
        return self.scales.copy()

    def set_state(self, state: Array | None) -> None:
        """Sets the scales."""
        assert state is not None  # `state` returned the scales
        self.scales = state.copy()

    def num_parameters(self) -> int:
        """One per expert where scales are learned."""
        return self.num_experts if self.learned else 0


class LinearPoisson(LinearFamily):
    """Log-linear rates, by Newton's method."""

    activations = (keras.activations.exponential,)

    def __init__(self, family: families.Poisson, num_experts: int) -> None:
        super().__init__(family, num_experts)
        if family.log_rates:
            self.activations = (keras.activations.linear,)

    def log_density(self, eta: Array, target: Array, expert: int) -> Array:
        """Returns the Poisson log-probability, summed over the units."""
        eta = np.clip(eta, -700.0, 700.0)
        return (target * eta - np.exp(eta) - _log_factorial(target)).sum(axis=1)

    def fit(self, design: Array, target: Array, weights: Array, start: Array, expert: int) -> Array:
        """Takes Newton steps from the present coefficients."""
        return regression.poisson(design, target, weights, start)


class LinearBernoulli(LinearFamily):
    """Logistic regression, by Newton's method."""

    activations = (keras.activations.sigmoid,)

    def __init__(self, family: families.Bernoulli, num_experts: int) -> None:
        super().__init__(family, num_experts)
        if family.from_logits:
            self.activations = (keras.activations.linear,)

    def log_density(self, eta: Array, target: Array, expert: int) -> Array:
        """Returns the Bernoulli log-probability, summed over the units."""
        return (target * eta - np.logaddexp(0.0, eta)).sum(axis=1)

    def fit(self, design: Array, target: Array, weights: Array, start: Array, expert: int) -> Array:
        """Takes Newton steps from the present coefficients."""
        return regression.logistic(design, target, weights, start)


class LinearCategorical(LinearFamily):
    """Multinomial logistic regression, by Newton's method."""

    activations = (keras.activations.softmax,)

    def __init__(self, family: families.Categorical, num_experts: int) -> None:
        super().__init__(family, num_experts)
        if family.from_logits:
            self.activations = (keras.activations.linear,)

    def target(self, y: Array, units: int) -> Array:
        """Returns the target as one-hot."""
        y = np.asarray(y)
        if y.shape == (len(y), units) and units > 1:
            return y.astype("float64")
        return np.eye(units)[y.reshape(-1).astype(int)]

    def log_density(self, eta: Array, target: Array, expert: int) -> Array:
        """Returns the log-probability of the class."""
        return (target * regression.log_softmax(eta)).sum(axis=1)

    def fit(self, design: Array, target: Array, weights: Array, start: Array, expert: int) -> Array:
        """Takes Newton steps from the present coefficients."""
        return regression.softmax(design, target, weights, start)


_LINEAR: dict[type[families.Family], Callable[..., LinearFamily]] = {
    families.Bernoulli: LinearBernoulli,
    families.Categorical: LinearCategorical,
    families.Gaussian: LinearGaussian,
    families.Poisson: LinearPoisson,
}


def linear_family(family: families.Family, num_experts: int) -> LinearFamily | None:
    """Returns the closed form of a family, or `None` where there is none."""
    if isinstance(family, families.Gaussian) and family.scale == "predicted":
        return None
    made = _LINEAR.get(type(family))
    return None if made is None else made(family, num_experts)


def _log_factorial(counts: Array) -> Array:
    values, inverse = np.unique(counts, return_inverse=True)
    return np.array([math.lgamma(value + 1.0) for value in values])[inverse].reshape(counts.shape)
