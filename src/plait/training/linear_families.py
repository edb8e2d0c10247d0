"""Families of linear experts in NumPy float64: log-densities, and M-steps, of many runs at once.

Arrays are `(r, e, …, n)`: runs, experts, and rows last; coefficients are `(r, e, u, d)`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from plait.losses import families
from plait.training import regression
from plait.training.regression import Array, times
from plait.typing import Tensor


class Target(NamedTuple):
    """A target.

    Attributes:
        values: Array `(u, n)`, float64; one-hot where it is a class.
        constant: The part `(n,)` of the log-density that no parameter changes.
    """

    values: Array
    constant: Array


class Fitted(NamedTuple):
    """What experts say of the training data.

    Attributes:
        densities: `log p_l(y | x)`, `(r, e, n)`.
        means: `E_l(y | x)`, `(r, e, u, n)`.
    """

    densities: Array
    means: Array


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

    def target(self, y: Array, units: int) -> Target:
        """Returns the target of `units` units."""
        y = regression.finite(y, "targets").reshape(len(y), units)
        return Target(np.ascontiguousarray(y.T), np.zeros(len(y)))

    def bound(self, target: Array, sample_weight: Array) -> None:
        """Bounds parameters that have no maximum on this target `(u, n)`; here, none."""

    def restart(self, runs: int) -> None:
        """Sets the family's own parameters to their first values."""

    def evaluate(self, eta: Array, target: Target, experts: slice) -> Fitted:
        """Returns what experts of linear predictors `(r, e, u, n)` say; `experts` numbers them."""
        raise NotImplementedError

    def direction(self, design: Array, target: Target, weights: Array, means: Array) -> Array:
        """Returns a Newton step of the coefficients, `(r, e, u, d)`, under weights `(r, e, n)`."""
        return self.step(*self.sums(design, target, weights, means))

    def sums(
        self, design: Array, target: Target, weights: Array, means: Array
    ) -> tuple[Array, Array]:
        """Returns the sums over rows that `step` reads: gradient and matrix."""
        residual = weights[..., None, :] * (target.values - means)
        return regression.newton_sums(
            design, residual, weights[..., None, :] * self.variance(means)
        )

    def step(self, gradient: Array, matrix: Array) -> Array:
        """Returns the Newton step that follows from the sums."""
        return regression.newton_step(gradient, matrix)

    def variance(self, means: Array) -> Array:
        """Returns the variances `(r, e, u, n)` that belong to the means."""
        raise NotImplementedError

    def steps(self, features: int, units: int) -> int:
        """Returns how many steps make an M-step: one Newton step raises the likelihood."""
        del features, units
        return 1

    def fit(
        self,
        design: Array,
        target: Target,
        weights: Array,
        coefficients: Array,
        fitted: Fitted,
        experts: slice,
        steps: int,
    ) -> tuple[Array, Fitted]:
        """Takes Newton steps, none of which lowers the weighted log-density.

        Args:
            design: Array `(n, d)`.
            target: The target.
            weights: Array `(r, e, n)`; an expert whose weights are zero stays as it is.
            coefficients: Array `(r, e, u, d)`.
            fitted: What `evaluate` says of them.
            experts: Which experts these are.
            steps: How many steps at most.

        Returns:
            The coefficients, and what `evaluate` says of them.
        """
        return regression.climb(
            coefficients,
            fitted,
            evaluate=lambda point: self.evaluate(times(point, design.T), target, experts),
            value=lambda fitted: (weights * fitted.densities).sum(axis=-1),
            direction=lambda fitted: self.direction(design, target, weights, fitted.means),
            steps=steps,
        )

    def state(self) -> list[Array]:
        """Returns the family's own parameters, runs first."""
        return []

    def set_state(self, state: list[Array]) -> None:
        """Sets the family's own parameters to what `state` returned."""

    def num_parameters(self) -> int:
        """Returns how many parameters the family adds to the coefficients of a run."""
        return 0


class LinearGaussian(LinearFamily):
    """Weighted least squares, and a standard deviation per expert."""

    activations = (keras.activations.linear,)

    def __init__(self, family: families.Gaussian, num_experts: int) -> None:
        super().__init__(family, num_experts)
        self.learned = family.scale == "learned"
        given = family.initial_scale if self.learned else family.scale
        self.first = np.broadcast_to(np.asarray(given, "float64"), (1, num_experts))
        self.scales = self.first
        self.smallest = 0.0

    def target(self, y: Array, units: int) -> Target:
        """Returns the target of `units` units."""
        target = super().target(y, units)
        return target._replace(constant=target.constant - 0.5 * units * math.log(2 * math.pi))

    def bound(self, target: Array, sample_weight: Array) -> None:
        """Bounds the scales from below, which else may vanish, by the spread of the target."""
        weights = np.broadcast_to(sample_weight, target.shape)
        mean = np.average(target, weights=weights)
        self.bound_by(float(np.average((target - mean) ** 2, weights=weights)))

    def bound_by(self, variance: float) -> None:
        """Bounds the scales by the variance of the target."""
        self.smallest = max(1e-3 * math.sqrt(variance), 1e-6)

    def restart(self, runs: int) -> None:
        """Sets the scales to their first values."""
        self.scales = self.first.repeat(runs, axis=0)

    def evaluate(self, eta: Array, target: Target, experts: slice) -> Fitted:
        """Returns the Gaussian log-densities, summed over the units, and the means."""
        squares = ((target.values - eta) ** 2).sum(axis=-2)
        return Fitted(self._densities(squares, target, experts), eta)

    def _densities(self, squares: Array, target: Target, experts: slice) -> Array:
        scales = self.scales[:, experts, None]
        constant = target.constant - len(target.values) * np.log(scales)
        return constant - squares * (0.5 / scales**2)

    def fit(
        self,
        design: Array,
        target: Target,
        weights: Array,
        coefficients: Array,
        fitted: Fitted,
        experts: slice,
        steps: int,
    ) -> tuple[Array, Fitted]:
        """Fits coefficients, then scales."""
        del fitted, steps
        found = regression.least_squares(design, target.values, weights)
        idle = weights.sum(axis=-1) <= 1e-8
        if idle.any():
            found = np.where(idle[..., None, None], coefficients, found)
        eta = times(found, design.T)
        squares = ((target.values - eta) ** 2).sum(axis=-2)
        self.fit_scales(squares / len(target.values), weights, experts)
        return found, Fitted(self._densities(squares, target, experts), eta)

    def fit_scales(self, squares: Array, weights: Array, experts: slice = slice(None)) -> None:
        """Sets learned scales to the weighted root mean square of the residuals.

        Args:
            squares: Squared residuals `(r, e, n)`, averaged over the units.
            weights: Array `(r, e, n)`; an expert of next to no weight keeps its scale.
            experts: Which experts these are.
        """
        if not self.learned:
            return
        totals = weights.sum(axis=-1)
        variances = (weights * squares).sum(axis=-1) / np.maximum(totals, 1e-8)
        found = np.maximum(np.sqrt(variances), self.smallest)
        scales = self.scales.copy()
        scales[:, experts] = np.where(totals > 1e-8, found, scales[:, experts])
        self.scales = scales

    def state(self) -> list[Array]:
        """Returns the scales `(r, e)`."""
        return [self.scales]

    def set_state(self, state: list[Array]) -> None:
        """Sets the scales."""
        (self.scales,) = state

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

    def target(self, y: Array, units: int) -> Target:
        """Returns the counts."""
        values = super().target(y, units).values
        counts, inverse = np.unique(values, return_inverse=True)
        factorials = np.array([math.lgamma(count + 1.0) for count in counts])[inverse]
        return Target(values, -factorials.reshape(values.shape).sum(axis=0))

    def evaluate(self, eta: Array, target: Target, experts: slice) -> Fitted:
        """Returns the Poisson log-probabilities, summed over the units, and the rates."""
        eta = np.clip(eta, -500.0, 500.0)
        rates = np.exp(eta)
        return Fitted((target.values * eta - rates).sum(axis=-2) + target.constant, rates)

    def variance(self, means: Array) -> Array:
        """Returns the rates."""
        return means


class LinearBernoulli(LinearFamily):
    """Logistic regression, by Newton's method."""

    activations = (keras.activations.sigmoid,)

    def __init__(self, family: families.Bernoulli, num_experts: int) -> None:
        super().__init__(family, num_experts)
        if family.from_logits:
            self.activations = (keras.activations.linear,)

    def evaluate(self, eta: Array, target: Target, experts: slice) -> Fitted:
        """Returns the Bernoulli log-probabilities, summed over the units, and the means."""
        powers = np.exp(-np.abs(eta))
        terms = target.values * eta - np.maximum(eta, 0.0) - np.log1p(powers)
        return Fitted(terms.sum(axis=-2), np.where(eta >= 0, 1.0, powers) / (1.0 + powers))

    def variance(self, means: Array) -> Array:
        """Returns `p (1 − p)`."""
        return means * (1.0 - means)


class LinearCategorical(LinearFamily):
    """Multinomial logistic regression, by Newton's method."""

    activations = (keras.activations.softmax,)

    def __init__(self, family: families.Categorical, num_experts: int) -> None:
        super().__init__(family, num_experts)
        if family.from_logits:
            self.activations = (keras.activations.linear,)

    def target(self, y: Array, units: int) -> Target:
        """Returns the target as one-hot."""
        y = regression.finite(y, "targets")
        if not (y.shape == (len(y), units) and units > 1):
            y = np.eye(units)[y.reshape(-1).astype(int)]
        return super().target(y, units)

    def evaluate(self, eta: Array, target: Target, experts: slice) -> Fitted:
        """Returns the log-probabilities of the classes, and all probabilities."""
        logs, means = regression.softmax(eta)
        return Fitted((target.values * logs).sum(axis=-2), means)

    def sums(
        self, design: Array, target: Target, weights: Array, means: Array
    ) -> tuple[Array, Array]:
        """Returns the sums over rows of multinomial logistic regressions."""
        residual = weights[..., None, :] * (target.values - means)
        return regression.softmax_sums(design, residual, means, weights)

    def step(self, gradient: Array, matrix: Array) -> Array:
        """Returns a step of multinomial logistic regressions."""
        return regression.softmax_step(gradient, matrix)

    def steps(self, features: int, units: int) -> int:
        """Returns how many steps make an M-step."""
        return regression.softmax_steps(features, units)


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
