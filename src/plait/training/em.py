"""Expectation-maximisation for mixtures of experts (Jordan and Jacobs 1994)."""

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
from keras import ops
from numpy.typing import ArrayLike

from plait.errors import message
from plait.losses import MixtureNLL, families
from plait.training.em_experts import ExpertsDriver, State, experts_of
from plait.training.em_gates import GateDriver, gate_of
from plait.training.em_gradient import GradientSteps
from plait.training.regression import Array
from plait.typing import Nested, Tensor

if TYPE_CHECKING:
    from plait.mixture import Mixture

# Input, target and weights `(n,)` of the rows that count.
Counted = tuple[Nested, Array, Array]
# A gradient M-step that lowers the likelihood is taken back, this many times in a row at most.
_PATIENCE = 6
# Runs go together, in the same NumPy calls, as long as `r · n · e` is no larger.
_AT_ONCE = 2**15


class EMResult(NamedTuple):
    """What `fit_em` found.

    Attributes:
        log_likelihood: `Σ_n s_n log Σ_l w_l p_l` of the training data, with sample weights `s`, at
            the end of the best run.
        history: Dict with the `"log_likelihood"` before and after each iteration of the best run,
            and `"val_log_likelihood"` where validation data were given.
        restarts: The final log-likelihood of each run.
        converged: Whether the best run stopped before `max_iterations`.
        dead: Experts left with less than one row's worth of responsibility, weighted, or whose
            scale shrank to its bound: they explain next to nothing. `plait.training.prune` gives a
            mixture without them.
        num_parameters: Number of free parameters.
        bic: `−2 · log_likelihood + num_parameters · log n`, lower is better (Schwarz 1978); `n` is
            the sum of the sample weights, the number of rows where there are none.
        icl: `bic` plus twice the entropy of the responsibilities (Biernacki et al. 2000).
        scales: The learned standard deviations `(e,)` of Gaussian experts, else `None`.
    """

    log_likelihood: float
    history: dict[str, list[float]]
    restarts: list[float]
    converged: bool
    dead: list[int]
    num_parameters: int
    bic: float
    icl: float
    scales: Array | None


def fit_em(
    mixture: "Mixture",
    x: Nested,
    y: Nested,
    *,
    family: str | families.Family = "gaussian",
    restarts: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 500,
    epochs: int = 5,
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    validation_data: Sequence[Tensor] | None = None,
    sample_weight: ArrayLike | None = None,
    seed: int | None = None,
    verbose: int | str = "auto",
) -> EMResult:
    """Fits a mixture to its likelihood `Σ_n s_n log Σ_l w_l(x_n) p_l(y_n | x_n)` by EM.

    The E-step computes responsibilities. The M-step fits the experts and the gate to them: to
    convergence, in float64, where an expert is one Dense layer with its family's canonical
    activation and the gate is constant or one Dense layer under a softmax; by gradient steps
    elsewhere. The log-likelihood never falls: a step that would lower it is taken back.

    Afterwards the mixture is compiled with `MixtureNLL(family)` and Adam, its learned scales set,
    so that `responsibilities` and `evaluate` follow the family.

    Args:
        mixture: The mixture; its weights are `(b, e)`.
        x: Input, as for `fit`, as arrays.
        y: Target array.
        family: `"gaussian"`, `"poisson"`, `"bernoulli"`, `"categorical"` or a
            `plait.losses.families.Family`.
        restarts: How many runs; the best is kept. By default 10 from random starts where the
            experts are linear, else one from the present weights. Further runs draw the weights of
            experts and gate anew; frozen layers keep theirs.
        tol: A run stops where an iteration gains less than this log-likelihood.
        max_iterations: A run stops after as many iterations.
        epochs: Epochs of one M-step where it goes by gradients.
        batch_size: As in `fit`, where a step goes by gradients.
        learning_rate: Of Adam, where a step goes by gradients.
        validation_data: `None`, `(x, y)` or `(x, y, sample_weight)`, whose log-likelihood is noted.
        sample_weight: `None` or an array `(n,)`, not negative: how many rows each row counts as,
            `s_n`. A row of weight 2 is as good as two rows, in `bic` too; one of weight 0 is left
            out.
        seed: Seed of the random starts and of the order of rows in gradient steps. It alone decides
            them: Keras' global seed and the seeds of initialisers have no effect.
        verbose: 0 for silence, 1 for a progress bar, `"auto"` for 1.

    Returns:
        `EMResult`.

    Raises:
        ValueError: If weights have more axes than `(b, e)`, a number is out of range, sample
            weights are not one number for each row, not negative and not all zero, or a layer to
            restart has no config that makes it anew.

    Example:
    >>> import keras, numpy as np, plait
    >>> x = np.linspace(-1, 1, 40, dtype="float32")[:, None]
    >>> y = np.where(np.arange(40) % 2, 3 * x[:, 0], -3 * x[:, 0]) + 0.1 * np.sin(97 * x[:, 0])
    >>> mix = plait.Mixture(keras.layers.Dense(1), gate="constant", num_experts=2)
    >>> found = mix.fit_em(x, y, sample_weight=np.full(40, 2), seed=0, verbose=0)
    >>> found.num_parameters, found.dead
    (7, [])

    References:
        Jordan, Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm.
        Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data.
    """
    _check(mixture, x, restarts, max_iterations)
    family = families.get(family)
    if not family.built:
        family.build((None, mixture.num_experts))
    x, y, counted = _counted(x, y, sample_weight)
    held_out = None if validation_data is None else _counted(*validation_data)
    generator = np.random.default_rng(seed)
    experts = experts_of(mixture, family, x, y, counted, batch_size, generator)
    gate = gate_of(mixture, x, batch_size, generator)
    gradient = None
    if not (experts.exact and gate.exact):
        gradient = GradientSteps(
            mixture,
            family,
            x,
            y,
            generator,
            experts=not experts.exact,
            gate=not gate.exact,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    runs = restarts or (10 if experts.exact else 1)
    bar = keras.utils.Progbar(
        runs, verbose=0 if verbose == 0 else 1, stateful_metrics=["log_likelihood"], unit_name="run"
    )
    parts = _Parts(experts, gate, gradient, counted)
    at_once = 1 if gradient is not None else max(1, _AT_ONCE // (len(y) * mixture.num_experts))
    best: _Run | None = None
    finals = np.empty(runs)
    for first in range(0, runs, at_once):
        numbers = np.arange(first, min(first + at_once, runs))
        if experts.exact or first > 0:
            parts.start(len(numbers))
        for done, run in enumerate(parts.run(numbers, tol, max_iterations, held_out), first + 1):
            finals[run.number] = run.total
            if best is None or run.rank > best.rank:
                best = run
            bar.update(done, [("log_likelihood", best.total)])
    assert best is not None  # there is at least one run
    parts.set_state(best.state)
    experts.write()
    gate.write()
    _compile(mixture, family, parts.scales())
    return _result(mixture, best, finals.tolist(), parts)


class _State(NamedTuple):
    """Parameters of experts and gate; where both are exact, each array has a row for each run."""

    experts: State
    gate: State

    def take(self, runs: Array) -> "_State":
        """Returns the parameters of some runs."""
        return self if runs.all() else _State(*([each[runs] for each in part] for part in self))

    def where(self, runs: Array, other: "_State") -> "_State":
        """Returns the parameters of some runs, and of the others those of another state."""
        if not runs.any():
            return other

        def either(first: Array, second: Array) -> Array:
            return np.where(runs.reshape(-1, *(1 for _ in first.shape[1:])), first, second)

        return _State(*(list(map(either, *parts)) for parts in zip(self, other, strict=True)))


class _Run(NamedTuple):
    """One run: where it ended and how it got there."""

    number: int
    state: _State
    responsibilities: Array
    history: dict[str, list[float]]
    converged: bool
    dead: list[int]

    @property
    def total(self) -> float:
        """The log-likelihood at the end."""
        return self.history["log_likelihood"][-1]

    @property
    def rank(self) -> tuple[bool, float, int]:
        """The best run has the highest: all experts live, likely, early."""
        return not self.dead, self.total, -self.number


class _Parts(NamedTuple):
    """The drivers of one mixture, and how many rows each row counts as, `(n,)`."""

    experts: ExpertsDriver
    gate: GateDriver
    gradient: GradientSteps | None
    sample_weight: Array

    def start(self, runs: int) -> None:
        """Draws experts and gate anew, for several runs where no part takes gradient steps."""
        self.gate.restart(runs)
        self.experts.restart(runs)
        if self.gradient is not None:
            self.gradient.restart()

    def state(self) -> _State:
        """Returns the present parameters."""
        return _State(self.experts.state(), self.gate.state())

    def set_state(self, state: _State) -> None:
        """Sets the parameters to what `state` returned, or to some of its runs."""
        self.experts.set_state(state.experts)
        self.gate.set_state(state.gate)

    def expect(self) -> tuple[Array, Array]:
        """The E-step: returns log-likelihoods `(r,)` and responsibilities `(r, e, n)`."""
        joint = self.gate.log_weights() + self.experts.log_densities()
        return _explain(joint, self.sample_weight)

    def maximize(self, responsibilities: Array) -> None:
        """The M-step: every driver reads the counts `s_n r_nl`."""
        counts = self.sample_weight * responsibilities
        if self.gradient is not None:
            self.gradient.fit(counts[0].T)
        self.gate.fit(counts)
        self.experts.fit(counts)

    def run(
        self, numbers: Array, tol: float, max_iterations: int, validation_data: Counted | None
    ) -> Iterator[_Run]:
        """Repeats E- and M-step in all runs; yields a run once an iteration gains less than `tol`.

        Args:
            numbers: What each run is called, `(r,)`.
            tol: As in `fit_em`.
            max_iterations: As in `fit_em`.
            validation_data: Whose log-likelihood is noted.
        """
        totals, responsibilities = self.expect()
        histories: list[dict[str, list[float]]] = [{} for _ in numbers]
        self.note(histories, np.ones(len(numbers), bool), totals, validation_data)
        misses = 0
        for left in reversed(range(max_iterations)):
            before = self.state()
            self.maximize(responsibilities)
            reached, explained = self.expect()
            rose = reached >= totals
            misses = 0 if rose.all() else misses + 1
            if misses:
                self.set_state(self.state().where(rose, before))
                reached = np.where(rose, reached, totals)
                explained = np.where(rose[:, None, None], explained, responsibilities)
            if self.gradient is not None and 0 < misses < _PATIENCE:
                self.gradient.slow_down()
                converged = np.zeros(1, bool)
            else:
                converged = ~rose | (reached - totals < tol)
            totals, responsibilities = reached, explained
            self.note(histories, rose, totals, validation_data)
            ended = converged | (left == 0)
            if not ended.any():
                continue
            state = self.state()
            for run in np.flatnonzero(ended):
                alone = np.arange(len(numbers)) == run
                yield _Run(
                    int(numbers[run]),
                    state.take(alone),
                    responsibilities[run],
                    histories[run],
                    bool(converged[run]),
                    self.dead(responsibilities)[run],
                )
            if ended.all():
                return
            self.set_state(state.take(~ended))
            numbers, totals, responsibilities = (
                each[~ended] for each in (numbers, totals, responsibilities)
            )
            histories = list(itertools.compress(histories, ~ended))

    def note(
        self,
        histories: list[dict[str, list[float]]],
        rose: Array,
        totals: Array,
        validation_data: Counted | None,
    ) -> None:
        """Adds the present log-likelihoods `(r,)` to the histories of the runs that rose."""
        noted = {"log_likelihood": totals}
        if validation_data is not None:
            noted["val_log_likelihood"] = self.validate(validation_data)
        for name, values in noted.items():
            for run in np.flatnonzero(rose):
                histories[run].setdefault(name, []).append(float(values[run]))

    def validate(self, data: Counted) -> Array:
        """Returns the log-likelihoods `(r,)` of other data."""
        x, y, sample_weight = data
        return _explain(self.gate.on(x) + self.experts.on(x, y), sample_weight)[0]

    def scales(self) -> Array | None:
        """Returns the learned scales `(e,)` of the first run, or `None`."""
        scales = self.experts.scales()
        return None if scales is None else scales[0]

    def dead(self, responsibilities: Array) -> list[list[int]]:
        """Returns for each run the experts that explain next to nothing."""
        idle = responsibilities @ self.sample_weight < 1.0
        scales = self.experts.scales()
        if scales is not None:
            idle = idle | (scales <= self.experts.smallest_scale() * (1 + 1e-9))
        return [np.flatnonzero(each).tolist() for each in idle]


def _explain(joint: Array, sample_weight: Array) -> tuple[Array, Array]:
    """Returns `Σ_n s_n log Σ_l exp(joint_nl)`, `(r,)`, and the responsibilities `(r, e, n)`."""
    top = joint.max(axis=1, keepdims=True)
    powers = np.exp(joint - top)
    sums = powers.sum(axis=1, keepdims=True)
    return (top + np.log(sums))[:, 0] @ sample_weight, powers / sums


def _compile(mixture: "Mixture", family: families.Family, scales: Array | None) -> None:
    """Compiles the mixture with the objective that it was fitted to."""
    mixture.compile("adam", loss=MixtureNLL(family))
    if scales is not None:
        family.log_scale.assign(np.log(scales))  # type: ignore[attr-defined]


def _result(mixture: "Mixture", best: _Run, finals: list[float], parts: _Parts) -> EMResult:
    total, shares = best.history["log_likelihood"][-1], best.responsibilities
    count = parts.experts.num_parameters() + parts.gate.num_parameters()
    bic = -2.0 * total + count * float(np.log(parts.sample_weight.sum()))
    entropies = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=0)
    if best.dead:
        warnings.warn(
            f"Experts {best.dead} of {mixture.name!r} explain next to nothing after EM. Leave them "
            "out with plait.training.prune, or use fewer experts (see "
            "plait.training.choose_num_experts) or more restarts.",
            stacklevel=3,
        )
    return EMResult(
        log_likelihood=total,
        history=best.history,
        restarts=finals,
        converged=best.converged,
        dead=best.dead,
        num_parameters=count,
        bic=bic,
        icl=bic + 2.0 * float(parts.sample_weight @ entropies),
        scales=parts.scales(),
    )


def _counted(x: Nested, y: Nested, sample_weight: ArrayLike | None = None) -> Counted:
    """Returns the rows that count: inputs, target and weights `(n,)`, positive.

    Raises:
        ValueError: If the weights are not one number for each row, not negative and not all zero.
    """
    y = np.asarray(y)
    if sample_weight is None:
        return x, y, np.ones(len(y))
    weights = np.asarray(sample_weight, "float64")
    if weights.shape != (len(y),):
        raise ValueError(
            message(
                f"`sample_weight` of fit_em must be one number for each of the {len(y)} rows",
                f"sample_weight of shape {weights.shape}",
                f"Use a sample_weight of shape {(len(y),)}",
            )
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any() or not weights.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            message(
                "`sample_weight` of fit_em must be finite, not negative and not all zero",
                f"{weights[row]} for row {row}" if wrong.any() else "zeros alone",
                "Use the number of rows that each row counts as, 0 to leave it out",
            )
        )
    if weights.all():
        return x, y, weights
    kept = weights > 0
    x = keras.tree.map_structure(lambda leaf: ops.convert_to_numpy(leaf)[kept], x)
    return x, y[kept], weights[kept]


def _check(mixture: "Mixture", x: Nested, restarts: int | None, max_iterations: int) -> None:
    for name, value in (("restarts", restarts), ("max_iterations", max_iterations)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(
                message(
                    f"`{name}` of fit_em must be an integer of at least 1",
                    f"{name}={value!r}",
                    f"Use {name}=1 or more",
                )
            )
    if not mixture.built:
        mixture(keras.tree.map_structure(lambda leaf: leaf[:1], x))
    if len(mixture.weights_shape() or ()) != 2:
        raise ValueError(
            message(
                "fit_em fits mixtures whose weights are (b, e)",
                f"weights of shape {mixture.weights_shape()}",
                "Fold the other axes into the batch, or train on plait.losses.MixtureNLL with fit",
            )
        )
