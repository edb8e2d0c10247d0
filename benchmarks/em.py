"""`fit_em` over an EM written by hand in NumPy: the same starts and as many iterations, in float64.

`KERAS_BACKEND=jax python -m benchmarks.em`

The hand-written EM loops over restarts and experts: weighted least squares for Gaussian experts,
one Newton step per iteration for the others and for a softmax gate, with nothing that holds a step
back. A ratio is the larger one of wall time and CPU time; beside it stands by how much the best
log-likelihoods differ. The CO2 data are those of 28 countries (mixtools); the rest is drawn.
"""

import math
from pathlib import Path

import keras
import numpy as np

import plait
from benchmarks.table import Row, options, show
from benchmarks.timing import clocks, compared

CO2 = Path(__file__).parent.parent / "tests" / "training" / "co2.csv"
ROWS, CLASSES, RESTARTS, ITERATIONS = 300, 3, 10, 30
ACTIVATIONS = {
    "gaussian": None,
    "poisson": "exponential",
    "bernoulli": "sigmoid",
    "categorical": "softmax",
}
GATES = {"uniform": "uniform", "constant": "constant", "linear": None}


def draw(family, num_experts, rows=ROWS):
    """Data of a mixture under a linear gate."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2)).astype("float32")
    chosen = (
        2 * x @ rng.normal(size=(2, num_experts)) + rng.gumbel(size=(rows, num_experts))
    ).argmax(1)
    kernels = 2 * rng.normal(size=(num_experts, 2, CLASSES if family == "categorical" else 1))
    scores = np.einsum("nd,ndu->nu", x, kernels[chosen])
    if family == "categorical":
        return x, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1)
    y = {
        "gaussian": lambda: scores + 0.3 * rng.normal(size=scores.shape),
        "poisson": lambda: rng.poisson(np.exp(0.3 * scores)),
        "bernoulli": lambda: rng.random(scores.shape) < 1 / (1 + np.exp(-0.5 * scores)),
    }[family]()
    return x, y.astype("float32")


def log_softmax(scores):
    """Log of the softmax over the last axis."""
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def solve(matrix, gradient):
    """A Newton step, with a ridge for data that a plane separates."""
    return np.linalg.solve(matrix + 1e-9 * np.eye(len(matrix)), gradient)


def softmax_step(design, counts, totals, kernel):
    """A Newton step of a multinomial regression whose last class has scores of zero."""
    p = np.exp(log_softmax(design @ kernel))
    features, free = len(kernel), kernel.shape[1] - 1
    gradient = design.T @ (counts - totals[:, None] * p)[:, :free]
    matrix = np.empty((free, features, free, features))
    for i in range(free):
        for j in range(i, free):
            share = totals * p[:, i] * ((i == j) - p[:, j])
            matrix[i, :, j] = matrix[j, :, i] = (design.T * share) @ design
    size = free * features
    step = solve(matrix.reshape(size, size), gradient.T.ravel()).reshape(free, features).T
    return kernel + np.hstack([step, np.zeros((features, 1))])


class Gaussian:
    """Linear experts of one family, one expert: its parameters and the M-step."""

    units = 1

    def __init__(self, design, y):
        self.design, self.y = design, y.reshape(len(y), -1).astype("float64")
        self.kernel = np.zeros((design.shape[1], self.units))

    def step(self, weights):
        """Weighted least squares."""
        weighted = self.design.T * weights
        self.kernel = np.linalg.solve(weighted @ self.design, weighted @ self.y)
        self.variance = weights @ ((self.y - self.design @ self.kernel) ** 2)[:, 0] / weights.sum()

    start = step

    def log_density(self):
        """Of each row."""
        squares = ((self.y - self.design @ self.kernel) ** 2)[:, 0]
        return -0.5 * (squares / self.variance + np.log(2 * np.pi * self.variance))


class Newton(Gaussian):
    """A family whose M-step is one Newton step."""

    def start(self, weights):
        """Newton steps until they are small."""
        for _ in range(25):
            before = self.kernel
            self.step(weights)
            if np.abs(self.kernel - before).max() < 1e-8:
                break

    def step(self, weights):
        """Iteratively reweighted least squares."""
        mean, variance = self.moments((self.design @ self.kernel)[:, 0])
        gradient = self.design.T @ (weights * (self.y[:, 0] - mean))
        matrix = (self.design.T * (weights * variance)) @ self.design
        self.kernel = self.kernel + solve(matrix, gradient)[:, None]


class Poisson(Newton):
    """Log-linear rates."""

    def __init__(self, design, y):
        super().__init__(design, y)
        self.constant = np.array([math.lgamma(count + 1) for count in self.y[:, 0]])

    def moments(self, eta):
        """Mean and variance."""
        return np.exp(eta), np.exp(eta)

    def log_density(self):
        """Of each row."""
        eta = (self.design @ self.kernel)[:, 0]
        return self.y[:, 0] * eta - np.exp(eta) - self.constant


class Bernoulli(Newton):
    """Logistic regression."""

    def moments(self, eta):
        """Mean and variance."""
        p = 1 / (1 + np.exp(-eta))
        return p, p * (1 - p)

    def log_density(self):
        """Of each row."""
        eta = (self.design @ self.kernel)[:, 0]
        return self.y[:, 0] * eta - np.logaddexp(0, eta)


class Categorical(Newton):
    """Multinomial logistic regression."""

    units = CLASSES

    def __init__(self, design, y):
        super().__init__(design, y)
        self.y = np.eye(CLASSES)[y]

    def step(self, weights):
        """One Newton step."""
        self.kernel = softmax_step(self.design, weights[:, None] * self.y, weights, self.kernel)

    def log_density(self):
        """Of each row."""
        return (self.y * log_softmax(self.design @ self.kernel)).sum(axis=1)


FAMILIES = {
    "gaussian": Gaussian,
    "poisson": Poisson,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
}


def by_hand(family, gate, num_experts, x, y):
    """Returns the best log-likelihood of all restarts."""
    rng = np.random.default_rng(0)
    design = np.hstack([x.astype("float64"), np.ones((len(x), 1))])
    return max(one_run(family, gate, num_experts, design, y, rng) for _ in range(RESTARTS))


def one_run(family, gate, num_experts, design, y, rng):
    """Returns the log-likelihood after all iterations, from a start that `fit_em` has too."""
    rows, features = design.shape
    size = max(2 * features, rows // (4 * num_experts))
    experts = [FAMILIES[family](design, y) for _ in range(num_experts)]
    for expert in experts:
        drawn = np.floor(rng.random(size) * rows).astype(int)
        expert.start(0.05 + np.bincount(drawn, minlength=rows))
    kernel = np.zeros((features, num_experts))
    log_weights = np.full((rows, num_experts), -np.log(num_experts))
    for _ in range(ITERATIONS):
        shares = expect(log_weights, experts)[1]
        if gate == "linear":
            kernel = softmax_step(design, shares, np.ones(rows), kernel)
            log_weights = log_softmax(design @ kernel)
        elif gate == "constant":
            log_weights = np.log(shares.mean(axis=0))[None]
        for expert, weights in zip(experts, shares.T, strict=True):
            expert.step(weights)
    return expect(log_weights, experts)[0]


def expect(log_weights, experts):
    """The E-step: returns the log-likelihood and the responsibilities."""
    joint = log_weights + np.stack([expert.log_density() for expert in experts], axis=1)
    top = joint.max(axis=1, keepdims=True)
    powers = np.exp(joint - top)
    sums = powers.sum(axis=1, keepdims=True)
    return (top + np.log(sums)).sum(), powers / sums


def mixture(family, gate, num_experts, x):
    """The same model of plait's, built."""
    units = CLASSES if family == "categorical" else 1
    expert = keras.layers.Dense(units, ACTIVATIONS[family])
    mix = plait.Mixture(expert, gate=GATES[gate], num_experts=num_experts)
    mix.build((None, x.shape[1]))
    return mix


def case(family, gate, num_experts, x, y, repeats):
    """Returns the row of one model."""
    mix = mixture(family, gate, num_experts, x)
    reached = {}

    def ours():
        found = mix.fit_em(
            x,
            y,
            family=family,
            restarts=RESTARTS,
            max_iterations=ITERATIONS,
            tol=0.0,
            seed=0,
            verbose=0,
        )
        reached["ours"] = max(found.restarts)

    def theirs():
        reached["theirs"] = by_hand(family, gate, num_experts, x, y)

    ours(), theirs()
    found = compared([(clocks(ours), clocks(theirs)) for _ in range(repeats)])
    what = (
        f"`fit_em` over NumPy by hand: {num_experts} {family} experts, {gate} gate, {len(x)} rows"
    )
    apart = reached["ours"] - reached["theirs"]
    note = f", log-likelihoods differ by {apart:.0e}"
    return Row.of(what, found, 1.5, digits=0, note=note)


def rows(arguments):
    """Yields the table's rows."""
    co2 = np.loadtxt(CO2, delimiter=",", skiprows=1, dtype="float32")
    cases = [("gaussian", gate, 2, co2[:, :1], co2[:, 1]) for gate in GATES]
    for family in FAMILIES:
        for num_experts in (2, 3):
            cases += [(family, gate, num_experts, *draw(family, num_experts)) for gate in GATES]
    for each in cases:
        if arguments.only in f"{each[2]} {each[0]} {each[1]}":
            yield case(*each, arguments.repeats)
    if arguments.only in "categorical":
        x, y = draw("categorical", 3, rows=600)
        mix = mixture("categorical", "linear", 3, x)
        wall, cpu = clocks(lambda: mix.fit_em(x, y, family="categorical", seed=0, verbose=0))
        yield Row(
            "`fit_em` to its end, CPU seconds: 3 categorical experts, linear gate, 600 rows",
            cpu,
            5.0,
            f"wall {wall:.1f} s",
        )


if __name__ == "__main__":
    show(rows(options(__doc__, repeats=7)))
