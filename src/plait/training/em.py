"""Expectation-maximisation for mixtures of experts (Jordan and Jacobs 1994)."""

import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from plait.errors import message
from plait.losses import MixtureNLL, families
from plait.training.em_experts import LinearExperts, experts_of
from plait.training.em_gates import gate_of
from plait.training.em_gradient import GradientSteps
from plait.training.regression import Array

if TYPE_CHECKING:
    from plait.mixture import Mixture

# A gradient M-step that lowers the likelihood is taken back, this many times in a row at most.
_PATIENCE = 6


class EMResult(NamedTuple):
    """What `fit_em` found.

    Attributes:
        log_likelihood: `Σ_n log Σ_l w_l p_l` of the training data, at the end of the best run.
        history: Dict with the `"log_likelihood"` before and after each iteration of the best run,
            and `"val_log_likelihood"` where validation data were given.
        restarts: The final log-likelihood of each run.
        converged: Whether the best run stopped before `max_iterations`.
        dead: Experts left with less than one example's worth of responsibility, or whose scale
            shrank to its bound: they explain next to nothing.
        num_parameters: Number of free parameters.
        bic: `−2 · log_likelihood + num_parameters · log n`, lower is better (Schwarz 1978).
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
    x: Any,
    y: Any,
    *,
    family: Any = "gaussian",
    restarts: int | None = None,
    tol: float = 1e-6,
    max_iterations: int = 500,
    epochs: int = 5,
    batch_size: int | None = None,
    learning_rate: float = 0.01,
    validation_data: Any = None,
    seed: int | None = None,
    verbose: int | str = "auto",
) -> EMResult:
    """Fits a mixture to its likelihood `Σ_n log Σ_l w_l(x_n) p_l(y_n | x_n)` by EM.

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
            experts are linear, else one from the present weights.
        tol: A run stops where an iteration gains less than this log-likelihood.
        max_iterations: A run stops after as many iterations.
        epochs: Epochs of one M-step where it goes by gradients.
        batch_size: As in `fit`, where a step goes by gradients.
        learning_rate: Of Adam, where a step goes by gradients.
        validation_data: `None` or a pair `(x, y)`, whose log-likelihood is noted.
        seed: Seed of the random starts.
        verbose: 0 for silence, 1 for a progress bar, `"auto"` for 1.

    Returns:
        `EMResult`.

    Raises:
        ValueError: If weights have more axes than `(b, e)`, or a number is out of range.

    References:
        Jordan, Jacobs (1994), Hierarchical mixtures of experts and the EM algorithm.
        Dempster, Laird, Rubin (1977), Maximum likelihood from incomplete data.
    """
    _check(mixture, x, restarts, max_iterations)
    family = families.get(family)
    if not family.built:
        family.build((None, mixture.num_experts))
    y = np.asarray(y)
    experts = experts_of(mixture, family, x, y, batch_size)
    gate = gate_of(mixture, x, batch_size)
    gradient = None
    if not (experts.exact and gate.exact):
        gradient = GradientSteps(
            mixture,
            family,
            x,
            y,
            experts=not experts.exact,
            gate=not gate.exact,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
    runs = restarts or (10 if experts.exact else 1)
    generator = np.random.default_rng(seed)
    bar = keras.utils.Progbar(
        runs, verbose=0 if verbose == 0 else 1, stateful_metrics=["log_likelihood"], unit_name="run"
    )
    parts = _Parts(experts, gate, gradient)
    best: _Run | None = None
    finals: list[float] = []
    for number in range(runs):
        if experts.exact or number > 0:
            parts.start(generator)
        run = parts.run(tol, max_iterations, validation_data)
        finals.append(run.history["log_likelihood"][-1])
        if best is None or run.rank > best.rank:
            best = run
        bar.update(number + 1, [("log_likelihood", best.history["log_likelihood"][-1])])
    assert best is not None  # there is at least one run
    experts.set_state(best.state[0])
    gate.set_state(best.state[1])
    experts.write()
    gate.write()
    _compile(mixture, family, experts.scales())
    return _result(mixture, best, finals, experts, gate)


class _Run(NamedTuple):
    """One run: where it ended and how it got there."""

    rank: tuple[bool, float]
    state: tuple[Any, Any]
    responsibilities: Array
    history: dict[str, list[float]]
    converged: bool
    dead: list[int]


class _Parts(NamedTuple):
    """The drivers of one mixture."""

    experts: Any
    gate: Any
    gradient: GradientSteps | None

    def start(self, generator: np.random.Generator) -> None:
        """Starts at random: each linear expert from a few rows of its own."""
        self.gate.restart()
        self.experts.restart(generator)
        if isinstance(self.experts, LinearExperts):
            self.experts.fit(_few_rows(self.experts, generator))
        if self.gradient is not None:
            self.gradient.restart()

    def expect(self) -> tuple[float, Array]:
        """The E-step: returns the log-likelihood and the responsibilities `(n, e)`."""
        return _explain(self.gate.log_weights() + self.experts.log_densities())

    def maximize(self, responsibilities: Array) -> None:
        """The M-step."""
        if self.gradient is not None:
            self.gradient.fit(responsibilities)
        self.gate.fit(responsibilities)
        self.experts.fit(responsibilities)

    def run(self, tol: float, max_iterations: int, validation_data: Any) -> _Run:
        """Repeats E- and M-step until nothing is gained any more."""
        total, responsibilities = self.expect()
        history = {"log_likelihood": [total]}
        if validation_data is not None:
            history["val_log_likelihood"] = [self.validate(validation_data)]
        converged, misses = False, 0
        for _ in range(max_iterations):
            before = self.experts.state(), self.gate.state()
            self.maximize(responsibilities)
            reached, explained = self.expect()
            if not reached >= total:
                self.experts.set_state(before[0])
                self.gate.set_state(before[1])
                misses += 1
                if self.gradient is None or misses >= _PATIENCE:
                    converged = True
                    break
                self.gradient.slow_down()
                continue
            misses = 0
            gain, total, responsibilities = reached - total, reached, explained
            history["log_likelihood"].append(total)
            if validation_data is not None:
                history["val_log_likelihood"].append(self.validate(validation_data))
            if gain < tol:
                converged = True
                break
        dead = self.dead(responsibilities)
        state = self.experts.state(), self.gate.state()
        return _Run((not dead, total), state, responsibilities, history, converged, dead)

    def validate(self, data: Any) -> float:
        """Returns the log-likelihood of other data."""
        x, y = data
        return _explain(self.gate.on(x) + self.experts.on(x, np.asarray(y)))[0]

    def dead(self, responsibilities: Array) -> list[int]:
        """Returns the experts that explain next to nothing."""
        idle = responsibilities.sum(axis=0) < 1.0
        scales = self.experts.scales()
        if scales is not None:
            idle = idle | (scales <= self.experts.smallest_scale() * (1 + 1e-9))
        return [int(expert) for expert in np.flatnonzero(idle)]


def _explain(joint: Array) -> tuple[float, Array]:
    """Returns `Σ_n log Σ_l exp(joint_nl)` and its gradient, the responsibilities."""
    top = joint.max(axis=1, keepdims=True)
    powers = np.exp(joint - top)
    sums = powers.sum(axis=1, keepdims=True)
    return float((top + np.log(sums)).sum()), powers / sums


def _few_rows(experts: LinearExperts, generator: np.random.Generator) -> Array:
    """Returns weights `(n, e)` that give each expert its own few rows, and a little of the rest."""
    rows, num_experts = len(experts.target), len(experts.designs)
    features = experts.designs[0].shape[1]
    size = min(rows, max(2 * features, rows // (4 * num_experts)))
    weights = np.full((rows, num_experts), 0.05)
    for expert in range(num_experts):
        weights[generator.choice(rows, size, replace=False), expert] = 1.0
    return weights


def _compile(mixture: "Mixture", family: families.Family, scales: Array | None) -> None:
    """Leaves the mixture with the objective that it was fitted to."""
    mixture.compile("adam", loss=MixtureNLL(family))
    if scales is not None:
        family.log_scale.assign(np.log(scales))  # type: ignore[attr-defined]


def _result(
    mixture: "Mixture", best: _Run, finals: list[float], experts: Any, gate: Any
) -> EMResult:
    total, shares = best.history["log_likelihood"][-1], best.responsibilities
    count = experts.num_parameters() + gate.num_parameters()
    bic = -2.0 * total + count * float(np.log(len(shares)))
    entropy = -float((shares * np.log(np.maximum(shares, 1e-300))).sum())
    if best.dead:
        warnings.warn(
            f"Experts {best.dead} of {mixture.name!r} explain next to nothing after EM. Use fewer "
            "experts (see plait.training.choose_num_experts) or more restarts.",
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
        icl=bic + 2.0 * entropy,
        scales=experts.scales(),
    )


def _check(mixture: "Mixture", x: Any, restarts: int | None, max_iterations: int) -> None:
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
