"""EM: published likelihoods, a likelihood that never falls, and what it leaves behind."""

from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from keras import ops

import plait
from plait.experts.variables import StackedExperts
from plait.training import (
    EMResult,
    choose_num_experts,
    em,
    em_experts,
    em_gates,
    em_gradient,
    em_runs,
    fit_em,
)
from plait.training.regression import with_intercept

# GNP per head (thousand US dollars) and CO2 emissions per head (tonnes) of 28 countries in 1996:
# the data set CO2data of the R package mixtools, after Hurn, Justel and Robert (2003).
CO2 = np.loadtxt(Path(__file__).parent / "co2.csv", delimiter=",", skiprows=1, dtype="float32")

ACTIVATIONS = {
    "gaussian": None,
    "poisson": "exponential",
    "bernoulli": "sigmoid",
    "categorical": "softmax",
}


def draw(family, rng, rows=60, units=1):
    """Data of no mixture in particular: EM must climb on any."""
    x = rng.normal(size=(rows, 2)).astype("float32")
    scores = x @ rng.normal(size=(2, units)) + rng.normal(size=(rows, units))
    y = {
        "gaussian": lambda: scores,
        "poisson": lambda: rng.poisson(np.exp(0.5 * scores)),
        "bernoulli": lambda: (scores > 0).astype(int),
        "categorical": lambda: np.digitize(scores[:, 0], [-0.5, 0.5]),
    }[family]()
    return x, np.asarray(y, "float32")


def mixture(family, num_experts, gate=None, units=1):
    units = 3 if family == "categorical" else units
    expert = keras.layers.Dense(units, activation=ACTIVATIONS[family])
    return plait.Mixture(expert, num_experts=num_experts, gate=gate)


@pytest.fixture
def totals(monkeypatch):
    """Notes the log-likelihood at every E-step, also where fit_em would take the step back."""
    noted, expect = [], em_runs.Drivers.expect

    def noting(parts):
        noted.append(expect(parts))
        return noted[-1]

    monkeypatch.setattr(em_runs.Drivers, "expect", noting)
    return lambda: np.array([total.item() for total, _ in noted])  # of one run


@pytest.mark.filterwarnings("ignore:Experts .* explain next to nothing")  # random data, few rows
@pytest.mark.parametrize("problem", range(18))
@pytest.mark.parametrize("family", ACTIVATIONS)
def test_the_likelihood_never_falls_on_random_problems(family, problem, rng, totals):
    """72 problems: families, gates, with and without sample weights, one target and two.

    No step has to be taken back: it falls by no more than sums are rounded.
    """
    rng = np.random.default_rng([rng.integers(2**31), problem])
    gate = (None, "constant", "uniform")[problem % 3]
    weighted = problem // 3 % 2 == 1
    units = 2 if problem >= 12 and family != "categorical" else 1
    mix = mixture(family, 2 + problem % 2, gate, units)
    x, y = draw(family, rng, units=units)
    weights = rng.gamma(1, size=len(x)) * (rng.random(len(x)) < 0.8) if weighted else None
    found = fit_em(
        mix, x, y, family=family, restarts=1, max_iterations=25, sample_weight=weights, verbose=0
    )
    reached = totals()
    assert len(reached) > 1
    assert (np.diff(reached) >= -1e-10 * np.abs(reached[1:])).all()
    history = found.history["log_likelihood"]
    assert (np.diff(history) >= 0).all()
    assert history == list(reached[: len(history)])


def everything(found, mix):
    """What a fit leaves behind, flat; of the scores, their differences: a softmax sees no more."""
    kernels = [weight for i in range(mix.num_experts) for weight in mix.expert(i).get_weights()]
    scores = [weight - weight.mean(axis=-1, keepdims=True) for weight in mix.gate.get_weights()]
    scales = [] if found.scales is None else [found.scales]
    parts = [*kernels, *scores, *scales, found.restarts, [found.bic, found.icl]]
    return np.concatenate([np.ravel(part) for part in parts])


@pytest.mark.parametrize("gate", ["constant", None])
@pytest.mark.parametrize("family", ["gaussian", "poisson"])
def test_a_row_that_weighs_k_is_as_good_as_k_rows(family, gate, rng):
    """Log-likelihoods of all restarts, parameters, BIC and ICL; a row of weight 0 is no row."""
    x, y = draw(family, rng)
    weights = rng.integers(0, 4, len(x))
    x[weights == 0] = np.nan
    known = {"family": family, "restarts": 3, "max_iterations": 20, "seed": 0, "verbose": 0}
    first, second = mixture(family, 2, gate), mixture(family, 2, gate)
    weighted = fit_em(first, x, y, sample_weight=weights, validation_data=(x, y, weights), **known)
    repeated = fit_em(second, x.repeat(weights, axis=0), y.repeat(weights, axis=0), **known)
    np.testing.assert_allclose(
        everything(weighted, first), everything(repeated, second), rtol=1e-5, atol=1e-6
    )
    for name in ("val_log_likelihood", "log_likelihood"):  # as near as Newton steps stop
        np.testing.assert_allclose(
            weighted.history[name], repeated.history["log_likelihood"], rtol=1e-8
        )
    assert weighted.dead == repeated.dead


def test_weights_of_one_are_no_weights(rng):
    x, y = draw("gaussian", rng)
    found = []
    for weights in (None, np.ones(len(x))):
        mix = mixture("gaussian", 2)
        fitted = fit_em(mix, x, y, sample_weight=weights, restarts=2, seed=0, verbose=0)
        found.append(everything(fitted, mix))
    np.testing.assert_array_equal(*found)


def test_the_published_likelihood_of_the_co2_data_is_reached():
    """mixtools: two linear Gaussian experts, constant weights, log-likelihood −66.93977."""
    x, y = CO2[:, :1], CO2[:, 1]
    mix = mixture("gaussian", 2, "constant")
    found = fit_em(mix, x, y, restarts=20, tol=1e-8, seed=0, verbose=0)
    assert found.log_likelihood == pytest.approx(-66.93977, abs=1e-3)
    there = np.isclose(found.restarts, -66.93977, atol=1e-3)
    assert there.sum() >= 5  # 12 of 20 with this seed
    assert found.converged
    assert not found.dead
    assert sorted(found.scales) == pytest.approx([0.8094, 2.0493], abs=1e-3)
    assert found.num_parameters == 7
    assert found.bic == pytest.approx(-2 * found.log_likelihood + 7 * np.log(28))
    assert found.icl > found.bic


def test_afterwards_the_mixture_is_what_was_fitted(rng):
    x, y = CO2[:, :1], CO2[:, 1]
    experts = [keras.layers.Dense(1), keras.layers.Dense(1)]
    mix = plait.Mixture(experts, gate="constant")
    found = mix.fit_em(x, y, restarts=5, tol=1e-8, seed=0, verbose=0)
    assert isinstance(found, EMResult)
    assert mix.evaluate(x, y, verbose=0) == pytest.approx(-found.log_likelihood / 28, rel=1e-5)
    weights = np.asarray(mix.gate_weights(x))
    density = scipy.stats.norm.pdf(
        y[:, None], np.asarray(mix.expert_outputs(x))[..., 0], found.scales
    )
    joint = weights * density
    assert np.log(joint.sum(axis=1)).sum() == pytest.approx(found.log_likelihood, abs=1e-3)
    np.testing.assert_allclose(
        mix.responsibilities(x, y), joint / joint.sum(axis=1, keepdims=True), atol=1e-4
    )
    blend = (weights[..., None] * np.asarray(mix.expert_outputs(x))).sum(axis=1)
    np.testing.assert_allclose(mix.predict(x, verbose=0), blend, rtol=1e-4)
    for i, expert in enumerate(experts):
        outputs = ops.convert_to_numpy(expert(x))
        np.testing.assert_allclose(outputs, np.asarray(mix.expert_outputs(x))[:, i], rtol=1e-4)


def test_poisson_experts_under_a_softmax_gate_reach_a_maximum(rng):
    """No direction climbs from where EM ends: SciPy, started there, gains nothing."""
    x = rng.normal(size=(300, 1)).astype("float32")
    left = rng.random(300) < 1 / (1 + np.exp(-3 * x[:, 0]))
    y = rng.poisson(np.exp(np.where(left, 0.5 + 0.8 * x[:, 0], 2.0 - 0.5 * x[:, 0])))
    mix = mixture("poisson", 2)
    found = fit_em(
        mix, x, y, family="poisson", restarts=3, tol=1e-9, max_iterations=3000, seed=0, verbose=0
    )
    design = with_intercept(x)

    def negative(parameters):
        experts, gate = parameters[:4].reshape(2, 2), parameters[4:].reshape(2, 2)
        densities = scipy.stats.poisson.logpmf(y[:, None], np.exp(design @ experts))
        return -np.logaddexp.reduce(
            scipy.special.log_softmax(design @ gate, axis=1) + densities, axis=1
        ).sum()

    kernels = [np.concatenate([np.ravel(v) for v in mix.expert(i).get_weights()]) for i in (0, 1)]
    start = np.concatenate(
        [np.stack(kernels, axis=1).ravel(), np.vstack(mix.gate.get_weights()).ravel()]
    )
    assert negative(start) == pytest.approx(-found.log_likelihood, abs=1e-3)
    start = start.astype("float64")  # SciPy's differences vanish in float32
    assert scipy.optimize.minimize(negative, start).fun == pytest.approx(
        -found.log_likelihood, abs=1e-3
    )
    assert found.num_parameters == 6


def test_scales_that_are_given_are_kept():
    x, y = CO2[:, :1], CO2[:, 1]
    mix = mixture("gaussian", 2, "constant")
    family = plait.losses.families.Gaussian(scale=[2.0, 0.8])
    found = fit_em(mix, x, y, family=family, restarts=30, seed=0, verbose=0)
    assert found.scales is None
    assert found.num_parameters == 5
    assert -67.1 < found.log_likelihood < -66.9398


def test_experts_that_read_different_inputs(rng):
    inputs = {"a": rng.normal(size=(80, 1)), "b": rng.normal(size=(80, 2))}
    y = np.where(rng.random(80) < 0.5, 2 * inputs["a"][:, 0], inputs["b"].sum(axis=1))
    y = y + 0.1 * rng.normal(size=80)
    mix = plait.Mixture(
        [keras.layers.Dense(1), keras.layers.Dense(1, use_bias=True)],
        gate="uniform",
        expert_inputs=["a", "b"],
    )
    inputs = {key: value.astype("float32") for key, value in inputs.items()}
    found = fit_em(mix, inputs, y, restarts=5, seed=0, verbose=0)
    assert found.scales == pytest.approx([0.1, 0.1], abs=0.05)
    assert found.num_parameters == 2 + 3 + 2


def test_experts_of_one_input_with_a_bias_and_without(rng):
    x = rng.uniform(1, 2, size=(80, 1)).astype("float32")
    y = np.where(rng.random((80, 1)) < 0.5, 2 * x, 5 - x) + 0.05 * rng.normal(size=x.shape)
    experts = [keras.layers.Dense(1, use_bias=False), keras.layers.Dense(1)]
    found = fit_em(plait.Mixture(experts, gate="constant"), x, y, restarts=5, seed=0, verbose=0)
    assert found.num_parameters == 1 + 2 + 2 + 1
    assert experts[0].get_weights()[0].item() == pytest.approx(2, abs=0.1)
    assert experts[1].get_weights()[0].item() == pytest.approx(-1, abs=0.2)


@pytest.mark.filterwarnings("ignore:Experts .* explain next to nothing")  # random data, few rows
@pytest.mark.parametrize("gate", ["uniform", "constant", None])
@pytest.mark.parametrize("family", ACTIVATIONS)
def test_runs_that_go_together_are_the_runs_that_go_alone(family, gate, rng, monkeypatch):
    """Whichever ends first: one after another, or in groups of three."""
    x, y = draw(family, rng)
    found = []
    for at_once in (1, 3 * len(x) * 2, 2**15):
        monkeypatch.setattr(em, "_AT_ONCE", at_once)
        mix = mixture(family, 2, gate)
        fitted = fit_em(
            mix,
            x,
            y,
            family=family,
            restarts=5,
            tol=0.01,
            max_iterations=12,
            validation_data=(x, y),
            seed=0,
            verbose=0,
        )
        history = fitted.history
        np.testing.assert_allclose(history["val_log_likelihood"], history["log_likelihood"])
        found.append((everything(fitted, mix), history["log_likelihood"], fitted.converged))
    for other in found[1:]:
        np.testing.assert_allclose(other[0], found[0][0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other[1], found[0][1], rtol=1e-8)
        assert other[2] == found[0][2]


def small_network(l2=0.0):
    hidden = keras.layers.Dense(6, activation="tanh", kernel_regularizer=keras.regularizers.L2(l2))
    return keras.Sequential([keras.Input((1,)), hidden, keras.layers.Dense(1)])


def deep_gate():
    return keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(2, "softmax")]
    )


@pytest.mark.parametrize("gate", [None, "deep"])
def test_deep_experts_climb_by_gradients_and_never_fall(gate, rng):
    keras.utils.set_random_seed(0)
    x = rng.uniform(-1, 1, size=(96, 1)).astype("float32")
    y = np.where(x > 0, np.sin(4 * x), x**2).astype("float32")
    gate = deep_gate() if gate == "deep" else None
    mix = plait.Mixture([small_network(), small_network()], gate=gate)
    found = fit_em(
        mix, x, y, max_iterations=6, epochs=4, learning_rate=0.02, validation_data=(x, y), verbose=0
    )
    climb = found.history["log_likelihood"]
    assert (np.diff(climb) >= 0).all()
    assert climb[-1] > climb[0] + 10
    np.testing.assert_allclose(found.history["val_log_likelihood"], climb, rtol=1e-4)
    assert mix.evaluate(x, y, verbose=0) == pytest.approx(-found.log_likelihood / 96, rel=1e-3)


def test_weights_count_in_gradient_steps_as_repeated_rows_do(rng):
    """Deep experts with a regulariser under a deep gate, the whole data in one batch."""
    x = rng.uniform(-1, 1, size=(24, 1)).astype("float32")
    y = np.where(x > 0, np.sin(4 * x), x**2).astype("float32")
    weights = rng.integers(0, 5, 24)
    found = []
    for counted in (False, True):
        keras.utils.set_random_seed(0)
        mix = plait.Mixture([small_network(0.01), small_network(0.01)], gate=deep_gate())
        given = (x, y, weights) if counted else (x.repeat(weights, 0), y.repeat(weights, 0), None)
        fitted = mix.fit_em(
            *given[:2],
            sample_weight=given[2],
            batch_size=1000,
            max_iterations=3,
            epochs=3,
            verbose=0,
        )
        history = fitted.history["log_likelihood"]
        assert history[-1] > history[0]
        found.append(np.concatenate([history, fitted.scales, [fitted.bic]]))
    np.testing.assert_allclose(*found, rtol=1e-4)
    loss = mix.evaluate(x, y, sample_weight=weights, batch_size=1000, verbose=0)
    extra = sum(float(ops.convert_to_numpy(ops.stop_gradient(each))) for each in mix.losses)
    assert (loss - extra) * 24 == pytest.approx(-fitted.log_likelihood, rel=1e-4)


def test_linear_experts_under_a_deep_gate_climb(rng):
    keras.utils.set_random_seed(0)
    x = rng.uniform(-1, 1, size=(96, 1)).astype("float32")
    y = np.where(np.abs(x) > 0.5, 2 * x, -x) + 0.05 * rng.normal(size=x.shape)
    gate = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(2, "softmax")]
    )
    mix = plait.Mixture([keras.layers.Dense(1), keras.layers.Dense(1)], gate=gate)
    found = fit_em(mix, x, y, restarts=1, max_iterations=6, epochs=4, seed=0, verbose=0)
    steps = np.diff(found.history["log_likelihood"])
    assert len(steps) > 1
    assert (steps >= 0).all()
    assert mix.evaluate(x, y, verbose=0) == pytest.approx(-found.log_likelihood / 96, rel=1e-3)


def test_an_expert_that_explains_nothing_is_reported(rng):
    """Three experts for eight rows on one line: some scale shrinks, some expert is left idle."""
    x = np.linspace(-1, 1, 8, dtype="float32")[:, None]
    mix = mixture("gaussian", 3, "constant")
    with pytest.warns(UserWarning, match=r"Experts \[.*\] of 'mixture.*' explain next to nothing"):
        found = fit_em(mix, x, 2 * x, restarts=2, seed=0, verbose=0)
    assert found.dead


def test_an_expert_is_dead_by_the_weight_of_its_rows(rng):
    """Eighty rows that weigh 0.01 each are less than one row: both experts are dead."""
    x, y = draw("gaussian", rng, rows=80)
    fit = {"restarts": 2, "seed": 0, "verbose": 0}
    with pytest.warns(UserWarning, match=r"Experts \[0, 1\] of"):
        found = fit_em(mixture("gaussian", 2), x, y, sample_weight=np.full(80, 0.01), **fit)
    assert found.dead == [0, 1]
    assert not fit_em(mixture("gaussian", 2), x, y, sample_weight=np.full(80, 1.5), **fit).dead


def two_lines(rng):
    x = rng.uniform(-1, 1, size=(120, 1)).astype("float32")
    side = np.where(rng.random((120, 1)) < 0.5, 1.0, -1.0)
    return x, side * (1 + x) + 0.1 * rng.normal(size=(120, 1))


@pytest.mark.parametrize("criterion", ["bic", "icl"])
@pytest.mark.filterwarnings("ignore:Experts .* explain next to nothing")  # three where two do
def test_the_number_of_experts_is_found(criterion, rng):
    x, y = two_lines(rng)
    found = choose_num_experts(
        lambda e: mixture("gaussian", e, "constant"),
        x,
        y,
        (1, 2, 3),
        criterion=criterion,
        restarts=5,
        seed=0,
        verbose=0,
    )
    assert found.num_experts == 2
    assert found.mixture.num_experts == 2
    assert sorted(found.results) == [1, 2, 3]


def test_weights_count_where_the_number_of_experts_is_chosen(rng):
    """Rows of the second line weigh nothing: one expert is enough."""
    x, y = two_lines(rng)
    found = choose_num_experts(
        lambda e: mixture("gaussian", e, "constant"),
        x,
        y,
        (1, 2),
        sample_weight=y[:, 0] > 0,
        restarts=5,
        seed=0,
        verbose=0,
    )
    assert found.num_experts == 1
    bic = -2 * found.results[1].log_likelihood + 3 * np.log((y > 0).sum())
    assert found.results[1].bic == pytest.approx(bic)


def test_progress_is_shown(rng, capsys):
    x, y = two_lines(rng)
    fit_em(mixture("gaussian", 2), x, y, restarts=2, max_iterations=2, seed=0)
    assert "log_likelihood" in capsys.readouterr().out


def restarted(global_seed, seed, weights=None, gate=None, initial_seed=7):
    """All likelihoods and weights of three runs that take gradient steps in batches."""
    keras.utils.set_random_seed(global_seed)
    drawn = keras.initializers.GlorotUniform(seed=initial_seed)
    expert = [
        keras.Sequential(
            [
                keras.Input((1,)),
                keras.layers.Dense(4, "tanh", kernel_initializer=drawn),
                Unseeded(),
                keras.layers.Dense(1),
            ]
        )
        for _ in range(2)
    ]
    gate = deep_gate() if gate is None else gate
    mix = plait.Mixture(expert, gate)
    mix(np.ones((2, 1), "float32"))
    if weights is not None:
        mix.set_weights(weights)
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, (40, 1)).astype("float32")
    y = np.where(x > 0, np.sin(4 * x), x**2)
    first = mix.get_weights()
    known = {"restarts": 3, "max_iterations": 2, "epochs": 1, "batch_size": 8, "verbose": 0}
    found = mix.fit_em(x, y, seed=seed, **known)
    return first, found.restarts, np.concatenate([np.ravel(w) for w in mix.get_weights()])


@keras.saving.register_keras_serializable("plait_tests")
class Unseeded(keras.layers.Layer):
    """A layer whose initialiser no config tells."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1], 1))

    def call(self, x):
        return x * self.scale[:, 0]


def test_the_seed_alone_decides_all_runs():
    """Whatever Keras' global seed is; order of rows, experts and gate follow from `seed`."""
    first, expected, weights = restarted(1, seed=0)
    _, same, equal = restarted(2, seed=0, weights=first)
    np.testing.assert_allclose(same, expected, rtol=1e-5)
    np.testing.assert_allclose(equal, weights, rtol=1e-3, atol=1e-4)
    _, other, _ = restarted(1, seed=1, weights=first)
    assert np.abs(np.subtract(other, expected))[1:].min() > 1e-3
    assert abs(expected[1] - expected[2]) > 1e-3


def driver_of(mix, which, generator):
    x = np.ones((4, 1), "float32")
    if which == "gate":
        return em_gates.KerasGate(mix, x, None, generator)
    family = plait.losses.families.get("poisson")
    ones = np.ones(4)
    return em_experts.KerasExperts(mix, family, x, x, ones, None, generator)


def seeded_network(units, activation=None):
    """A network whose initialisers have integer seeds, of which a restart must take no notice."""
    drawn = keras.initializers.RandomNormal(seed=3)
    layers = [
        keras.layers.Dense(4, "tanh", kernel_initializer=drawn),
        keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.HeNormal(5)),
    ]
    return keras.Sequential([keras.Input((1,)), *layers])


EXPERTS = {
    "list": lambda: {"experts": [seeded_network(1) for _ in range(3)]},
    "template": lambda: {"experts": seeded_network(1), "num_experts": 3},
    "copies": lambda: {"experts": [seeded_network(1) for _ in range(3)], "copy_experts": True},
}


@pytest.mark.parametrize("which", ["experts", "gate"])
@pytest.mark.parametrize("experts", EXPERTS)
def test_a_restart_depends_on_the_generator_alone(experts, which):
    """Equal generators give equal weights, others other weights, and no expert those of another."""
    found = []
    for number, seed in enumerate([4, 4, 5]):
        keras.utils.set_random_seed(number)
        mix = plait.Mixture(**EXPERTS[experts](), gate=seeded_network(3, "softmax"))
        mix(np.ones((2, 1), "float32"))
        outputs = mix.expert_outputs if which == "experts" else mix.gate_weights
        x = np.linspace(-1, 1, 5, dtype="float32")[:, None]
        before = outputs(x)
        driver = driver_of(mix, which, np.random.default_rng(seed))
        driver.restart()
        assert np.abs(outputs(x) - before).max() > 1e-3
        found.append(np.array(outputs(x)))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
    assert np.abs(found[2] - found[0]).max() > 1e-3
    differences = found[0][:, :, None] - found[0][:, None]
    assert np.abs(differences).max(axis=0)[~np.eye(3, dtype=bool)].min() > 1e-3


def test_a_restart_keeps_frozen_layers_and_statistics_of_data():
    adapted = keras.layers.Normalization()
    adapted.adapt(np.array([[1.0], [5.0]]))
    frozen = keras.layers.Dense(3, trainable=False)
    expert = keras.Sequential([keras.Input((1,)), adapted, frozen, keras.layers.Dense(1)])
    mix = plait.Mixture([expert], gate="uniform")
    mix(np.ones((2, 1), "float32"))
    before = [np.array(ops.convert_to_numpy(v.value)) for v in expert.variables]
    driver_of(mix, "experts", np.random.default_rng(0)).restart()
    changed = [
        np.abs(old - ops.convert_to_numpy(v.value)).max() > 0
        for old, v in zip(before, expert.variables, strict=True)
    ]
    # Mean, variance and count; the frozen kernel and bias; a new kernel and a bias of zero.
    assert changed == [False] * 5 + [True, False]


@pytest.mark.parametrize("which", ["experts", "gate"])
def test_a_step_that_is_taken_back_leaves_no_trace(which):
    """On PyTorch an array may share a variable's memory."""
    mix = plait.Mixture([small_network(), small_network()], deep_gate())
    mix(np.ones((2, 1), "float32"))
    driver = driver_of(mix, which, np.random.default_rng(0))
    before, weights = driver.state(), [w.copy() for w in mix.get_weights()]
    driver.restart()
    driver.set_state(before)
    for old, new in zip(weights, mix.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_stack_is_written_as_a_whole(monkeypatch, rng):
    """Written expert by expert it would take time quadratic in their number."""
    written = []
    monkeypatch.setattr(StackedExperts, "write_one", lambda *args: written.append(args))
    mix = mixture("gaussian", 3)
    x, y = draw("gaussian", rng)
    fit_em(mix, x, y, restarts=1, max_iterations=2, seed=0, verbose=0)
    plait.training.prune(mix, [1])
    driver_of(mix, "experts", np.random.default_rng(0)).restart()
    assert not written
    assert any(isinstance(layer, StackedExperts) for layer in mix.layers)


def test_gradient_steps_read_the_present_scales():
    """Once compiled, the loss follows scales that are set between M-steps."""
    mix = plait.Mixture([small_network(), small_network()], "uniform")
    x = np.linspace(-1, 1, 8, dtype="float32")[:, None]
    family = plait.losses.families.Gaussian()
    mix(x)
    family.build((None, 2))
    steps = em_gradient.GradientSteps(
        mix,
        family,
        x,
        x,
        np.random.default_rng(0),
        experts=True,
        gate=True,
        epochs=1,
        batch_size=8,
        learning_rate=0.0,
    )
    counts = np.full((8, 2), 0.5)
    outputs = np.asarray(mix.expert_outputs(x), "float64")[..., 0]
    for scale in (1.0, 3.0):
        family.log_scale.assign(np.log([scale, scale]))
        steps.fit(counts)
        density = scipy.stats.norm.logpdf(x, outputs, scale)
        expected = -(counts * (density + np.log(0.5))).sum(axis=1).mean()
        assert mix.history.history["loss"][0] == pytest.approx(expected, rel=1e-4)


def test_a_layer_that_cannot_be_made_anew_is_named():
    class Closed(keras.layers.Layer):
        def __init__(self, dense):
            super().__init__(name="closed")
            self.dense = dense

        def call(self, x):
            return self.dense(x)

    mix = plait.Mixture([Closed(keras.layers.Dense(1))], "uniform")
    x = np.linspace(-1, 1, 8, dtype="float32")[:, None]
    with pytest.raises(ValueError, match=r"Received: Closed 'closed', whose copy failed"):
        mix.fit_em(x, x, restarts=2, max_iterations=1, epochs=1, verbose=0)


def weighted(x, y, weights):
    return fit_em(mixture("gaussian", 2), x, y, sample_weight=weights)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x, y: fit_em(mixture("gaussian", 2), x, y, restarts=0), "restarts=0"),
        (lambda x, y: fit_em(mixture("gaussian", 2), x, y, max_iterations=0), "max_iterations=0"),
        (
            lambda x, y: fit_em(
                plait.Mixture([keras.layers.Dense(1)] * 2, keras.layers.Dense(2, "softmax")),
                x[None],
                y[None],
            ),
            r"weights of shape \((None|1), 120, 2\)",
        ),
        (lambda x, y: weighted(x, y, np.ones((120, 1))), r"sample_weight of shape \(120, 1\)"),
        (lambda x, y: weighted(x, np.where(y == y[3], np.nan, y), None), "targets.*nan in row 3"),
        (lambda x, y: weighted(np.where(x == x[5], np.inf, x), y, None), "inputs.*inf in row 5"),
        (lambda x, y: weighted(x, y, np.ones(7)), r"each of the 120 rows.*of shape \(7,\)"),
        (lambda x, y: weighted(x, y, np.arange(120) - 3.0), r"Received: -3.0 for row 0"),
        (lambda x, y: weighted(x, y, np.where(np.arange(120) == 8, np.inf, 1)), "inf for row 8"),
        (lambda x, y: weighted(x, y, np.zeros(120)), "not all zero. Received: zeros alone"),
        (
            lambda x, y: fit_em(mixture("gaussian", 2), x, y, validation_data=(x, y, y)),
            r"sample_weight of shape \(120, 1\)",
        ),
        (lambda x, y: choose_num_experts(None, x, y, ()), r"candidates=\[\]"),
        (lambda x, y: choose_num_experts(None, x, y, criterion="aic"), "Received: 'aic'"),
    ],
)
def test_a_wrong_argument_is_named(make, match, rng):
    with pytest.raises(ValueError, match=match):
        make(*two_lines(rng))
