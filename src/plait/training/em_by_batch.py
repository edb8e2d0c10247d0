"""EM on rows in files: the drivers of `em_experts.py` and `em_gates.py`, fed chunk by chunk.

Memory holds a chunk and sums over chunks. What is known of each row, its counts `s_n r_nl`, lies in
a file beside the rows. There is one run at a time: `r = 1`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from keras import tree

from plait.errors import message
from plait.training import regression, regression_by_batch
from plait.training.em_experts import FIRST_STEPS, ExpertsDriver, KerasExperts, LinearExperts, State
from plait.training.em_gates import ConstantWeights, GateDriver, LinearScores
from plait.training.linear_families import LinearGaussian
from plait.training.on_disk import OnDisk, chunks
from plait.training.regression import Array, times
from plait.training.regression_by_batch import LeastSquares, Sums
from plait.typing import Nested, Tensor

# Input, target and weights `(n,)` of some rows, which are numbered by the slice.
Chunk = tuple[slice, Nested, Array, Array]
# The E-step of some rows: log-likelihood and responsibilities, from log w p and weights.
Explain = Callable[[Array, Array], tuple[Array, Array]]
# Rows of a random start that are drawn at a time.
_DRAWS = 2**20


class Rows(NamedTuple):
    """Rows that count: input, target and weights, which may lie in files."""

    x: Nested
    y: Tensor
    sample_weight: Tensor

    def chunks(self) -> Iterator[Chunk]:
        """Yields all rows, some at a time."""
        for rows in chunks(self[:2]):
            x = tree.map_structure(lambda leaf, rows=rows: np.asarray(leaf[rows]), self.x)
            yield rows, x, np.asarray(self.y[rows]), np.asarray(self.sample_weight[rows])

    def first(self) -> "Rows":
        """Returns the first rows, in memory."""
        return Rows(*next(self.chunks())[1:])

    def total(self) -> float:
        """Returns the sum of the weights."""
        return sum(float(weights.sum()) for *_, weights in self.chunks())

    def variance(self) -> float:
        """Returns the weighted variance of the target, over rows and units."""
        weight = total = squares = 0.0
        for _, _, y, weights in self.chunks():
            flat = y.reshape(len(y), -1).astype("float64")
            weight += float(weights.sum()) * flat.shape[1]
            total += float((weights @ flat).sum())
        for _, _, y, weights in self.chunks():
            flat = y.reshape(len(y), -1).astype("float64")
            squares += float((weights @ (flat - total / weight) ** 2).sum())
        return squares / weight


class Explained:
    """What the E-step found of the one run.

    Attributes:
        counts: `s_n r_nl`, `(n, e)`, in a file.
        mass: Their sums `(e,)`.
        entropy: `−Σ_n s_n Σ_l r_nl log r_nl`.
    """

    def __init__(self, counts: OnDisk) -> None:
        self.counts = counts
        self.mass = np.zeros(counts.shape[1])
        self.entropy = 0.0

    def __getitem__(self, run: int) -> "Explained":
        return self

    def note(self, rows: slice, weights: Array, shares: Array) -> None:
        """Keeps the responsibilities `(e, n)` of some rows."""
        counts = weights * shares
        self.counts[rows] = counts.T
        self.mass = self.mass + counts.sum(axis=1)
        self.entropy -= float((counts * np.log(np.maximum(shares, 1e-300))).sum())

    def per_row(self, folder: str) -> OnDisk:
        """Returns the counts in float32, one a row on average, as gradient steps read them."""
        scaled = OnDisk(folder, "float32", self.counts.shape)
        scale = len(scaled) / self.mass.sum()
        for rows in chunks(self.counts):
            scaled[rows] = self.counts[rows] * scale
        return scaled


class ExpertsByBatch:
    """A driver of experts, fitted to rows in files.

    Args:
        inner: The driver, made for the first rows.
        data: All rows.
        folder: For files of counts.
        generator: Draws the rows that an expert is fitted to at a restart.
    """

    def __init__(
        self, inner: ExpertsDriver, data: Rows, folder: str, generator: np.random.Generator
    ) -> None:
        self.inner = inner
        self.data = data
        self.folder = folder
        self.generator = generator
        self.exact = inner.exact
        gaussian = inner.family if isinstance(inner, LinearExperts) else inner.gaussian
        if isinstance(gaussian, LinearGaussian):
            gaussian.bound_by(data.variance())

    def explain(self, gate: "GateByBatch", explain: Explain) -> tuple[Array, Explained]:
        """The E-step of all rows: returns the log-likelihood `(1,)`, and what explains the rows."""
        shape = (len(self.data.y), self.inner.mixture.num_experts)
        found = Explained(OnDisk(self.folder, "float64", shape))
        total = np.zeros(1)
        for rows, x, y, weights in self.data.chunks():
            part, shares = explain(gate.on(x) + self.on(x, y), weights)
            found.note(rows, weights, shares[0])
            total = total + part
        return total, found

    def fit(self, counts: OnDisk) -> None:
        """Raises the likelihood of each expert; one without any share of the data stays as it is.

        Args:
            counts: Array `(n, e)`.
        """
        if isinstance(self.inner, KerasExperts):
            self._fit_scales(self.inner, counts)
        else:
            self._fit_linear(self.inner, counts, self.inner.family.steps)

    def _fit_linear(
        self, inner: LinearExperts, counts: OnDisk, steps: Callable[[int, int], int]
    ) -> None:
        if isinstance(inner.family, LinearGaussian):
            self._fit_gaussian(inner, inner.family, counts)
            return
        found = [
            regression_by_batch.climb(
                coefficients,
                lambda point, group=group: self._sums(inner, group, point, counts),  # type: ignore[misc]
                inner.family.step,
                steps(coefficients.shape[-1], inner.units),
            )
            for group, coefficients in enumerate(inner.coefficients)
        ]
        inner.set_state([*found, *inner.family.state()])

    def _sums(
        self, inner: LinearExperts, group: int, point: Array, counts: OnDisk
    ) -> Iterator[Sums]:
        for rows, x, y, _ in self.data.chunks():
            experts, design = inner.groups_of(x)[group]
            target = inner.family.target(y, inner.units)
            weights = counts[rows].T[None, experts]
            fitted = inner.family.evaluate(times(point, design.T), target, experts)
            value = (weights * fitted.densities).sum(axis=-1)
            yield value, *inner.family.sums(design, target, weights, fitted.means)

    def _fit_gaussian(self, inner: LinearExperts, family: LinearGaussian, counts: OnDisk) -> None:
        before = [each[0, expert] for each in inner.coefficients for expert in range(each.shape[1])]
        fits = [LeastSquares(kernel.shape[1], inner.units) for kernel in before]
        for rows, x, y, _ in self.data.chunks():
            values, weights = family.target(y, inner.units).values, counts[rows].T
            for experts, design in inner.groups_of(x):
                for expert in range(len(fits))[experts]:
                    fits[expert].add(design, values, weights[expert])
        kernels = [
            fit.coefficients() if fit.weight > 1e-8 else kernel
            for fit, kernel in zip(fits, before, strict=True)
        ]
        found, sizes = iter(kernels), [each.shape[1] for each in inner.coefficients]
        inner.coefficients = [np.stack([next(found) for _ in range(size)])[None] for size in sizes]
        mass = np.array([fit.weight for fit in fits])
        squares = [
            fit.mean_square(kernel) if fit.weight > 1e-8 else 0.0
            for fit, kernel in zip(fits, kernels, strict=True)
        ]
        family.fit_scales(np.array(squares)[None, :, None], mass[None, :, None])

    def _fit_scales(self, inner: KerasExperts, counts: OnDisk) -> None:
        if inner.gaussian is None:
            return
        squares, mass = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
        for rows, x, y, _ in self.data.chunks():
            outputs = inner.outputs_of(x).astype("float64").reshape(len(mass), len(y), -1)
            residuals = y.astype("float64").reshape(len(y), -1) - outputs
            shares = counts[rows]
            squares += np.einsum("ne,en->e", shares, (residuals**2).mean(axis=-1))
            mass += shares.sum(axis=0)
        means = squares / np.maximum(mass, 1e-8)
        inner.gaussian.fit_scales(means[None, :, None], mass[None, :, None])

    def restart(self, runs: int) -> None:
        """Draws the experts anew, as in memory."""
        inner = self.inner
        if isinstance(inner, KerasExperts):
            inner.restart(runs)
            return
        inner.family.restart(runs)
        sizes = [group.design.shape[1] for group in inner.groups]
        experts = len(inner.biases) if len(sizes) == 1 else 1
        zeros = [np.zeros((runs, experts, inner.units, features)) for features in sizes]
        inner.set_state([*zeros, *inner.family.state()])
        self._fit_linear(inner, self._few_rows(sizes[0]), lambda features, units: FIRST_STEPS)

    def _few_rows(self, features: int) -> OnDisk:
        """Returns the counts of `LinearExperts.restart`: the same draws, some at a time."""
        num_experts = self.inner.mixture.num_experts
        ends = OnDisk(self.folder, "float64", (len(self.data.y),))
        counts = OnDisk(self.folder, "float64", (len(ends), num_experts))
        end = 0.0
        for rows, _, _, weights in self.data.chunks():
            sums = np.cumsum(np.concatenate([[end], weights]))[1:]
            ends[rows], end = sums, float(sums[-1])
            counts[rows] = np.repeat(0.05 * weights[:, None], num_experts, axis=1)
        size = max(2 * features, int(end) // (4 * num_experts))
        for expert in range(num_experts):
            for start in range(0, size, _DRAWS):
                draws = np.sort(self.generator.random(min(_DRAWS, size - start)) * end)
                for rows in chunks(ends):
                    till = ends[rows]
                    here, draws = np.split(draws, [np.searchsorted(draws, till[-1])])
                    drawn = np.searchsorted(till, here, side="right")
                    counts[rows, expert] += np.bincount(drawn, minlength=len(till))
        return counts

    def on(self, x: Nested, y: Array) -> Array:
        """Returns `log p_l(y | x)` of some rows, `(1, e, n)`."""
        return self.inner.on(x, y)

    def state(self) -> State:
        """Returns copies of all parameters."""
        return self.inner.state()

    def set_state(self, state: State) -> None:
        """Sets the parameters to what `state` returned."""
        self.inner.set_state(state)

    def write(self) -> None:
        """Sets the parameters of the mixture's experts."""
        self.inner.write()

    def scales(self) -> Array | None:
        """Returns the learned scales, or `None`."""
        return self.inner.scales()

    def smallest_scale(self) -> float:
        """Returns the bound of the learned scales."""
        return self.inner.smallest_scale()

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        return self.inner.num_parameters()


class GateByBatch:
    """A driver of a gate, fitted to rows in files.

    Args:
        inner: The driver, made for the first rows.
        data: All rows.
    """

    def __init__(self, inner: GateDriver, data: Rows) -> None:
        self.inner = inner
        self.data = data
        self.exact = inner.exact

    def on(self, x: Nested) -> Array:
        """Returns log w of some rows, `(1, e, n)`."""
        return self.inner.on(x)

    def fit(self, found: Explained) -> None:
        """The M-step: does not lower `Σ c_nl log w_nl`."""
        inner = self.inner
        if isinstance(inner, ConstantWeights):
            inner.fit(found.mass[None, :, None])
        elif isinstance(inner, LinearScores):
            _, classes, features = inner.coefficients.shape
            reached = regression_by_batch.climb(
                inner.coefficients,
                lambda point: self._sums(inner, point, found.counts),
                regression.softmax_step,
                regression.softmax_steps(features, classes),
            )
            inner.set_state([reached])

    def _sums(self, inner: LinearScores, point: Array, counts: OnDisk) -> Iterator[Sums]:
        for rows, x, _, _ in self.data.chunks():
            design, shares = inner.design_of(x), counts[rows].T[None]
            sums = shares.sum(axis=1)
            logs, p = regression.softmax(times(point, design.T))
            residual = shares - sums[:, None] * p
            value = (shares * logs).sum(axis=(1, 2))
            yield value, *regression.softmax_sums(design, residual, p, sums)

    def restart(self, runs: int) -> None:
        """Draws the gate anew, as in memory."""
        self.inner.restart(runs)

    def state(self) -> State:
        """Returns all parameters."""
        return self.inner.state()

    def set_state(self, state: State) -> None:
        """Sets the parameters to what `state` returned."""
        self.inner.set_state(state)

    def write(self) -> None:
        """Sets the parameters of the mixture's gate."""
        self.inner.write()

    def num_parameters(self) -> int:
        """Returns how many numbers are fitted."""
        return self.inner.num_parameters()


def class_weights(y: Array, class_weight: Mapping[int, float]) -> Array:
    """Returns the weight of each row's class, `(n,)`, 1 where a class has none.

    Args:
        y: Class labels `(n,)` or `(n, 1)`, or one-hot rows.
        class_weight: The weight of each class.

    Raises:
        ValueError: If `y` holds no classes.

    Example:
    >>> import numpy as np
    >>> from plait.training.em_by_batch import class_weights
    >>> class_weights(np.array([0, 1, 2]), {1: 5.0}).tolist()
    [1.0, 5.0, 1.0]
    """
    y = np.asarray(y)
    labels = y.argmax(axis=1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(len(y), -1)
    if labels.reshape(-1).shape != (len(y),) or (labels != np.round(labels)).any():
        raise ValueError(
            message(
                "`class_weight` of fit_em needs a target of class labels, or of one-hot rows",
                f"a target of shape {y.shape} and dtype {y.dtype}",
                "Pass sample_weight",
            )
        )
    classes, places = np.unique(labels.reshape(-1).astype(int), return_inverse=True)
    return np.array([float(class_weight.get(int(each), 1.0)) for each in classes])[places]


__all__ = ["ExpertsByBatch", "Explained", "GateByBatch", "Rows", "class_weights"]
