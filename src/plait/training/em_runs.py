"""The runs of EM from several starts: two steps in turns until the likelihood stands still."""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from plait.training.em_by_batch import Explained, Rows
from plait.training.em_experts import State
from plait.training.em_gradient import GradientSteps
from plait.training.regression import Array

__all__ = ["Drivers", "DriversByBatch", "Parameters", "Run"]

# A gradient M-step that lowers the likelihood is taken back, this many times in a row at most.
_PATIENCE = 6


class Parameters(NamedTuple):
    """Parameters of experts and gate; where both are exact, each array has a row for each run."""

    experts: State
    gate: State

    def take(self, runs: Array) -> "Parameters":
        """Returns the parameters of some runs."""
        return self if runs.all() else Parameters(*([each[runs] for each in part] for part in self))

    def where(self, runs: Array, other: "Parameters") -> "Parameters":
        """Returns the parameters of some runs, and of the others those of another state."""
        if not runs.any():
            return other

        def either(first: Array, second: Array) -> Array:
            return np.where(runs.reshape(-1, *(1 for _ in first.shape[1:])), first, second)

        return Parameters(*(list(map(either, *parts)) for parts in zip(self, other, strict=True)))


class Run(NamedTuple):
    """One run: where it ended and how it got there."""

    number: int
    state: Parameters
    responsibilities: Any
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


class Drivers(NamedTuple):
    """The drivers of one mixture, and how many rows each row counts as, `(n,)`."""

    experts: Any
    gate: Any
    gradient: GradientSteps | None
    sample_weight: Any

    def start(self, runs: int) -> None:
        """Draws experts and gate anew, for several runs where no part takes gradient steps."""
        self.gate.restart(runs)
        self.experts.restart(runs)
        if self.gradient is not None:
            self.gradient.restart()

    def state(self) -> Parameters:
        """Returns the present parameters."""
        return Parameters(self.experts.state(), self.gate.state())

    def set_state(self, state: Parameters) -> None:
        """Sets the parameters to what `state` returned, or to some of its runs."""
        self.experts.set_state(state.experts)
        self.gate.set_state(state.gate)

    def expect(self) -> tuple[Array, Any]:
        """The E-step: returns log-likelihoods `(r,)` and responsibilities `(r, e, n)`."""
        joint = self.gate.log_weights() + self.experts.log_densities()
        return explain_jointly(joint, self.sample_weight)

    def maximize(self, responsibilities: Any) -> None:
        """The M-step: every driver reads the counts `s_n r_nl`."""
        counts = self.sample_weight * responsibilities
        if self.gradient is not None:
            self.gradient.fit(counts[0].T)
        self.gate.fit(counts)
        self.experts.fit(counts)

    def run(
        self, numbers: Array, tol: float, max_iterations: int, validation_data: Rows | None
    ) -> Iterator[Run]:
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
                explained = self.either(rose, explained, responsibilities)
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
                yield Run(
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
        validation_data: Rows | None,
    ) -> None:
        """Adds the present log-likelihoods `(r,)` to the histories of the runs that rose."""
        noted = {"log_likelihood": totals}
        if validation_data is not None:
            noted["val_log_likelihood"] = self.validate(validation_data)
        for name, values in noted.items():
            for run in np.flatnonzero(rose):
                histories[run].setdefault(name, []).append(float(values[run]))

    def either(self, rose: Array, explained: Any, before: Any) -> Any:
        """Returns the responsibilities of runs that rose, and those before of the others."""
        return np.where(rose[:, None, None], explained, before)

    def validate(self, data: Rows) -> Array:
        """Returns the log-likelihoods `(r,)` of other data."""
        parts = (
            explain_jointly(self.gate.on(x) + self.experts.on(x, y), weights)[0]
            for _, x, y, weights in data.chunks()
        )
        return sum(parts, np.zeros(1))

    def scales(self) -> Array | None:
        """Returns the learned scales `(e,)` of the first run, or `None`."""
        scales = self.experts.scales()
        return None if scales is None else scales[0]

    def mass(self, responsibilities: Any) -> Array:
        """Returns the share of each expert in all rows, `(r, e)`."""
        return responsibilities @ self.sample_weight

    def entropy(self, shares: Any) -> float:
        """Returns the entropy of the responsibilities `(e, n)` of one run."""
        entropies = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=0)
        return float(self.sample_weight @ entropies)

    def weight(self) -> float:
        """Returns how many rows all rows count as."""
        return float(self.sample_weight.sum())

    def dead(self, responsibilities: Any) -> list[list[int]]:
        """Returns for each run the experts that explain next to nothing."""
        idle = self.mass(responsibilities) < 1.0
        scales = self.experts.scales()
        if scales is not None:
            idle = idle | (scales <= self.experts.smallest_scale() * (1 + 1e-9))
        return [np.flatnonzero(each).tolist() for each in idle]


class DriversByBatch(Drivers):
    """As `Drivers`, of one run on rows in files."""

    def expect(self) -> tuple[Array, Explained]:
        """The E-step: returns the log-likelihood `(1,)`, and what explains the rows."""
        return self.experts.explain(self.gate, explain_jointly)

    def maximize(self, responsibilities: Explained) -> None:
        """The M-step."""
        if self.gradient is not None:
            self.gradient.train(responsibilities.per_row(self.experts.folder))
        self.gate.fit(responsibilities)
        self.experts.fit(responsibilities.counts)

    def either(self, rose: Array, explained: Explained, before: Explained) -> Explained:
        """Returns what explains the rows at present."""
        return explained if rose.all() else before

    def mass(self, responsibilities: Explained) -> Array:
        """Returns the share of each expert in all rows, `(1, e)`."""
        return responsibilities.mass[None]

    def entropy(self, shares: Explained) -> float:
        """Returns the entropy of the responsibilities."""
        return shares.entropy

    def weight(self) -> float:
        """Returns how many rows all rows count as."""
        return self.experts.data.total()


def explain_jointly(joint: Array, sample_weight: Array) -> tuple[Array, Array]:
    """Returns `Σ_n s_n log Σ_l exp(joint_nl)`, `(r,)`, and the responsibilities `(r, e, n)`."""
    top = joint.max(axis=1, keepdims=True)
    powers = np.exp(joint - top)
    sums = powers.sum(axis=1, keepdims=True)
    return (top + np.log(sums))[:, 0] @ sample_weight, powers / sums
