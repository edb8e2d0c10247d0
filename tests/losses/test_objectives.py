"""Objectives against NumPy and SciPy: values, gradients, shapes, training, persistence."""

import contextlib

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from tests.gradients import value_and_gradients
from tests.precision import double

from plait import losses
from plait.losses import families
from plait.losses.state import ObjectiveState

E, U = 3, 2


def softplus(x):
    return np.log1p(np.exp(x))


def one_hot(rng, shape):
    return np.eye(shape[-1])[rng.integers(0, shape[-1], shape[:-1])]


def by_unit(density):
    """Sums an element-wise density `(e, b, …, u)` over what the weights do not route."""
    return lambda y, out: density(y[None], out)


# family, arguments, log-density of NumPy arrays, target and outputs for a shape
TABLE = [
    (
        families.Gaussian,
        {"scale": 2.0},
        by_unit(lambda y, out: scipy.stats.norm.logpdf(y, out, 2.0)),
        lambda rng, shape: (rng.normal(size=shape), rng.normal(size=(E, *shape))),
    ),
    (
        families.Gaussian,
        {"scale": [0.5, 1.0, 2.0]},
        by_unit(
            lambda y, out: np.stack(
                [scipy.stats.norm.logpdf(y[0], out[i], s) for i, s in enumerate((0.5, 1, 2))]
            )
        ),
        lambda rng, shape: (rng.normal(size=shape), rng.normal(size=(E, *shape))),
    ),
    (
        families.Gaussian,
        {"initial_scale": 0.7},
        by_unit(lambda y, out: scipy.stats.norm.logpdf(y, out, 0.7)),
        lambda rng, shape: (rng.normal(size=shape), rng.normal(size=(E, *shape))),
    ),
    (
        families.Gaussian,
        {"scale": "predicted"},
        by_unit(
            lambda y, out: scipy.stats.norm.logpdf(
                y, out[..., : out.shape[-1] // 2], softplus(out[..., out.shape[-1] // 2 :]) + 1e-6
            )
        ),
        lambda rng, shape: (
            rng.normal(size=shape),
            rng.normal(size=(E, *shape[:-1], 2 * shape[-1])),
        ),
    ),
    (
        families.Poisson,
        {},
        by_unit(scipy.stats.poisson.logpmf),
        lambda rng, shape: (rng.poisson(2, shape), rng.gamma(2, size=(E, *shape))),
    ),
    (
        families.Poisson,
        {"log_rates": True},
        by_unit(lambda y, out: scipy.stats.poisson.logpmf(y, np.exp(out))),
        lambda rng, shape: (rng.poisson(2, shape), rng.normal(size=(E, *shape))),
    ),
    (
        families.Bernoulli,
        {},
        by_unit(scipy.stats.bernoulli.logpmf),
        lambda rng, shape: (rng.integers(0, 2, shape), rng.uniform(0.05, 0.95, (E, *shape))),
    ),
    (
        families.Bernoulli,
        {"from_logits": True},
        by_unit(lambda y, out: scipy.stats.bernoulli.logpmf(y, scipy.special.expit(out))),
        lambda rng, shape: (rng.integers(0, 2, shape), rng.normal(size=(E, *shape))),
    ),
    (
        families.Categorical,
        {},
        lambda y, out: np.log((y[None] * out).sum(axis=-1)),
        lambda rng, shape: (
            one_hot(rng, shape),
            rng.dirichlet(np.ones(shape[-1]), (E, *shape[:-1])),
        ),
    ),
    (
        families.Categorical,
        {"from_logits": True},
        lambda y, out: (y[None] * scipy.special.log_softmax(out, axis=-1)).sum(axis=-1),
        lambda rng, shape: (one_hot(rng, shape), rng.normal(size=(E, *shape))),
    ),
]
IDS = [f"{family.__name__}-{'-'.join(map(str, args.values()))}" for family, args, *_ in TABLE]
every_family = pytest.mark.parametrize(("family", "arguments", "oracle", "draw"), TABLE, ids=IDS)


def numpy_densities(oracle, y, outputs, routed):
    densities = oracle(np.asarray(y, "float64"), np.asarray(outputs, "float64"))
    return densities.reshape(*densities.shape[: routed + 1], -1).sum(axis=-1)


def case(draw, rng, shape, routed, dtype="float32"):
    y, outputs = (np.asarray(array, dtype) for array in draw(rng, shape))
    weights = rng.dirichlet(np.ones(E), shape[:routed]).astype(dtype)
    return y, weights, outputs


SHAPES = [
    ((5, U), 1),
    pytest.param((4, 3, U), 1, marks=pytest.mark.slow),
    ((4, 3, U), 2),
    pytest.param((2, 3, 2, U), 3, marks=pytest.mark.slow),
]


@every_family
@pytest.mark.parametrize(("shape", "routed"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_likelihood_equals_scipys_at_every_rank(
    family, arguments, oracle, draw, shape, routed, dtype, rng
):
    """To 1e-6 in float64; in float32, whose own rounding is relative, of the larger of it and 1."""
    y, weights, outputs = case(draw, rng, shape, routed, dtype)
    objective = losses.MixtureNLL(family(**arguments))
    joint = np.moveaxis(weights, -1, 0) * np.exp(numpy_densities(oracle, y, outputs, routed))
    with double() if dtype == "float64" else contextlib.nullcontext():
        found = ops.convert_to_numpy(objective.per_example(y, weights, outputs))
        shares = ops.convert_to_numpy(objective.responsibilities(y, weights, outputs))
    assert found.dtype == shares.dtype == dtype
    expected = -np.log(joint.sum(axis=0))
    bound = 1e-6 if dtype == "float64" else 1e-6 * np.maximum(1, np.abs(expected))
    assert (np.abs(found - expected) <= bound).all()
    np.testing.assert_allclose(
        shares, np.moveaxis(joint / joint.sum(axis=0), 0, -1), rtol=0, atol=1e-6
    )


@every_family
def test_targets_and_weights_in_float64_go_with_outputs_in_float32(
    family, arguments, oracle, draw, rng
):
    """NumPy makes targets of float64; experts rarely answer in it."""
    y, weights, outputs = case(draw, rng, (5, U), 1, "float64")
    outputs = outputs.astype("float32")
    objective = losses.MixtureNLL(family(**arguments))
    joint = np.moveaxis(weights, -1, 0) * np.exp(numpy_densities(oracle, y, outputs, 1))
    found = ops.convert_to_numpy(objective.per_example(y, weights, outputs))
    np.testing.assert_allclose(found, -np.log(joint.sum(axis=0)), rtol=1e-6, atol=2e-6)
    shares = ops.convert_to_numpy(objective.responsibilities(y, weights, outputs))
    np.testing.assert_allclose(shares, np.moveaxis(joint / joint.sum(axis=0), 0, -1), atol=2e-6)


@every_family
def test_gradients_equal_finite_differences_of_scipys(family, arguments, oracle, draw, rng):
    y, weights, outputs = case(draw, rng, (4, U), 1)
    objective = losses.MixtureNLL(family(**arguments))
    objective.build(weights.shape)
    _, gradients = value_and_gradients(
        lambda w, out: ops.sum(objective.per_example(y, w, out)), [weights, outputs]
    )

    def value(w, out):
        joint = np.moveaxis(w, -1, 0) * np.exp(numpy_densities(oracle, y, out, 1))
        return -np.log(joint.sum(axis=0)).sum()

    point, step = [weights.astype("float64"), outputs.astype("float64")], 1e-6
    for which, gradient in enumerate(gradients):
        for place in np.ndindex(gradient.shape):
            ends = []
            for sign in (1, -1):
                moved = [array.copy() for array in point]
                moved[which][place] += sign * step
                ends.append(value(*moved))
            difference = (ends[0] - ends[1]) / (2 * step)
            assert gradient[place] == pytest.approx(difference, rel=1e-3, abs=1e-3)


@every_family
def test_an_objective_survives_its_config(family, arguments, oracle, draw):
    objective = losses.MixtureNLL(family(**arguments), reduction="sum", name="fit")
    again = keras.losses.deserialize(keras.losses.serialize(objective))
    assert again.get_config() == objective.get_config()
    assert again.family.get_config().items() >= arguments.items()


@every_family
def test_half_precision_outputs_give_the_loss_in_float32(family, arguments, oracle, draw, rng):
    y, weights, outputs = case(draw, rng, (5, U), 1)
    half = outputs.astype("float16")
    objective = losses.MixtureNLL(family(**arguments))
    found = objective.per_example(y, weights.astype("float16"), half)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    w16 = np.moveaxis(weights.astype("float16").astype("float64"), -1, 0)
    joint = w16 * np.exp(numpy_densities(oracle, y, half, 1))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), -np.log(joint.sum(axis=0)), rtol=1e-4, atol=1e-4
    )


EXTREME = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1.0, 1e4, -1e4, 3e38, 1e-45]),
)


@every_family
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_no_extreme_gives_a_nan(family, arguments, oracle, draw, data):
    units = 2 * U if arguments.get("scale") == "predicted" else U
    drawn = data.draw(st.lists(EXTREME, min_size=E * units, max_size=E * units))
    outputs = np.array(drawn, "float32").reshape(E, 1, units)
    weights = np.array([data.draw(st.sampled_from([[0, 1, 0], [1e-45, 1, 0], [0, 0, 0]]))])
    y = {"Gaussian": [1e4, -1e4], "Poisson": [0, 10_000]}.get(family.__name__, [0, 1])
    objective = losses.MixtureNLL(family(**arguments))
    objective.build((1, E))
    value, gradients = value_and_gradients(
        lambda w, out: ops.sum(objective.per_example(np.array([y], "float32"), w, out)),
        [weights.astype("float32"), outputs],
    )
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_blend_is_that_of_means():
    outputs = np.array([[[1.0, 5.0]], [[2.0, 6.0]]], "float32")
    cases = [
        (families.Gaussian(scale="predicted"), outputs[..., :1]),
        (families.Gaussian(), outputs),
        (families.Poisson(log_rates=True), np.exp(outputs)),
        (families.Bernoulli(from_logits=True), scipy.special.expit(outputs)),
        (families.Categorical(from_logits=True), scipy.special.softmax(outputs, axis=-1)),
        (families.Categorical(), outputs),
    ]
    for family, expected in cases:
        found = ops.convert_to_numpy(losses.MixtureNLL(family).mean(outputs))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_class_numbers_count_as_one_hot(rng):
    objective = losses.MixtureNLL("categorical")
    labels = rng.integers(0, 4, 6)
    outputs = rng.dirichlet(np.ones(4), (E, 6)).astype("float32")
    weights = rng.dirichlet(np.ones(E), 6).astype("float32")
    one_hot = np.eye(4, dtype="float32")[labels]
    expected = ops.convert_to_numpy(objective.per_example(one_hot, weights, outputs))
    for y in (labels, labels[:, None], labels.astype("float32")):
        found = ops.convert_to_numpy(objective.per_example(y, weights, outputs))
        np.testing.assert_allclose(found, expected)


def test_a_flat_target_fits_experts_of_one_unit(rng):
    objective = losses.MixtureNLL("gaussian")
    weights = rng.dirichlet(np.ones(E), 6).astype("float32")
    outputs, y = rng.normal(size=(E, 6, 1)).astype("float32"), rng.normal(size=6)
    flat = ops.convert_to_numpy(objective.per_example(y.astype("float32"), weights, outputs))
    column = objective.per_example(y[:, None].astype("float32"), weights, outputs)
    np.testing.assert_array_equal(flat, ops.convert_to_numpy(column))
    assert flat.shape == (6,)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("loss", "oracle"),
    [
        ("mse", lambda y, out: ((y - out) ** 2).mean(axis=-1)),
        (keras.losses.MeanAbsoluteError(), lambda y, out: np.abs(y - out).mean(axis=-1)),
    ],
)
@pytest.mark.parametrize(("shape", "routed"), [((5, U), 1), ((4, 3, U), 1), ((4, 3, U), 2)])
def test_expert_mean_equals_numpy(loss, oracle, weighted, shape, routed, rng):
    y, outputs = rng.normal(size=shape), rng.normal(size=(E, *shape))
    weights = rng.dirichlet(np.ones(E), shape[:routed])
    objective = losses.ExpertMean(loss, weighted=weighted)
    found = objective.per_example(*(a.astype("float32") for a in (y, weights, outputs)))
    values = oracle(y, outputs)
    values = values.reshape(*values.shape[: routed + 1], -1).mean(axis=-1)
    shares = np.moveaxis(weights, -1, 0) if weighted else 1 / E
    expected = (shares * values).sum(axis=0)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(objective))
    found = again.per_example(*(a.astype("float32") for a in (y, weights, outputs)))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)


def test_expert_mean_takes_class_numbers(rng):
    y = rng.integers(0, 4, 6)
    outputs = rng.dirichlet(np.ones(4), (E, 6)).astype("float32")
    weights = rng.dirichlet(np.ones(E), 6).astype("float32")
    objective = losses.ExpertMean("sparse_categorical_crossentropy")
    found = ops.convert_to_numpy(objective.per_example(y, weights, outputs))
    expected = -np.log(outputs[:, np.arange(6), y]).mean(axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert objective.responsibilities(y, weights, outputs) is weights
    assert objective.mean(outputs) is outputs


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum_over_batch_size", (1 * 2 + 3 * 4) / 2),
        ("sum", 14),
        ("mean_with_sample_weight", 14 / 6),
        (None, [2, 12]),
    ],
)
def test_sample_weights_enter_as_in_keras(reduction, expected):
    objective = losses.ExpertMean("mse", reduction=reduction)
    outputs = np.sqrt(np.array([[[1.0], [3.0]]], "float32"))
    found = objective.mixture_loss(
        np.zeros((2, 1), "float32"), np.ones((2, 1), "float32"), outputs, np.array([2.0, 4.0])
    )
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-5)
    keras_loss = keras.losses.MeanSquaredError(reduction=reduction)
    keras_value = keras_loss(np.zeros((2, 1)), outputs[0], sample_weight=np.array([2.0, 4.0]))
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), ops.convert_to_numpy(keras_value), rtol=1e-5
    )


def test_masked_steps_do_not_count(rng):
    objective = losses.MixtureNLL(families.Gaussian(1.0))
    y, outputs = rng.normal(size=(2, 3, 1)), rng.normal(size=(E, 2, 3, 1))
    weights = rng.dirichlet(np.ones(E), (2, 3))
    y, outputs, weights = (a.astype("float32") for a in (y, outputs, weights))
    mask = np.array([[True, True, False], [True, False, False]])
    found = objective.mixture_loss(y, weights, outputs, mask=mask)
    values = ops.convert_to_numpy(objective.per_example(y, weights, outputs))
    assert float(found) == pytest.approx(values[mask].mean(), rel=1e-5)
    weighted = objective.mixture_loss(y, weights, outputs, np.array([1.0, 3.0]))
    expected = (values * [[1.0], [3.0]]).mean()
    assert float(weighted) == pytest.approx(expected, rel=1e-5)


class TwoLines(keras.Model):
    """A mixture in a few lines: what a model does with an objective and its state."""

    def __init__(self):
        super().__init__()
        self.experts = keras.layers.Dense(2)
        self.gate = keras.layers.Dense(2, activation="softmax")
        self.objective_state = ObjectiveState()

    def build(self, input_shape):
        self.experts.build(input_shape)
        self.gate.build(input_shape)

    def call(self, x):
        self.parts = self.gate(x), ops.transpose(self.experts(x))[..., None]
        return ops.sum(self.parts[0] * ops.transpose(self.parts[1][..., 0]), axis=-1, keepdims=True)

    def compile(self, optimizer, loss):
        self.objective_state.hold(loss, (None, 2))
        super().compile(optimizer, loss)
        self.objective = loss

    def compute_loss(self, x, y, y_pred, sample_weight=None, training=True):
        weights, outputs = self.parts
        return self.objective.mixture_loss(y, weights, outputs, sample_weight)


def test_learned_scales_are_trained_saved_and_loaded_with_the_model(rng, tmp_path):
    x = rng.normal(size=(64, 1)).astype("float32")
    y = (3 * x + 0.1 * rng.normal(size=x.shape)).astype("float32")
    model = TwoLines()
    model.build((None, 1))
    model.compile(keras.optimizers.Adam(0.3), losses.MixtureNLL("gaussian"))
    before = len(model.trainable_variables)
    history = model.fit(x, y, epochs=40, batch_size=64, verbose=0).history["loss"]
    scales = ops.convert_to_numpy(model.objective.family.log_scale)
    assert before == 5
    assert history[-1] < history[0]
    assert scales.shape == (2,)
    assert scales.min() < -0.3
    model.save_weights(tmp_path / "model.weights.h5")
    again = TwoLines()
    again.build((None, 1))
    again.compile(keras.optimizers.Adam(0.3), losses.MixtureNLL("gaussian"))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(ops.convert_to_numpy(again.objective.family.log_scale), scales)


def test_compiling_again_lets_go_of_the_last_scales(rng):
    model = TwoLines()
    model.build((None, 1))
    model.compile("adam", losses.MixtureNLL("gaussian"))
    model.compile("adam", losses.MixtureNLL("gaussian"))
    assert len(model.trainable_variables) == 5
    model.compile("adam", losses.ExpertMean("mse"))
    assert len(model.trainable_variables) == 4


def test_get_passes_families_through():
    family = families.Poisson()
    assert families.get(family) is family
    assert isinstance(families.get(keras.saving.serialize_keras_object(family)), families.Poisson)


def nll(family, y, weights, outputs):
    objective = losses.MixtureNLL(family)
    shapes = (np.zeros(shape, "float32") for shape in (y, weights, outputs))
    return lambda: objective.per_example(*shapes)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: losses.MixtureNLL("gausian"), ValueError, "'gausian'. Use 'gaussian'"),
        (lambda: losses.MixtureNLL(3), TypeError, "Received: 3 of type int"),
        (lambda: families.Gaussian("wide"), ValueError, "Received: 'wide'"),
        (lambda: families.Gaussian(0.0), ValueError, "must be positive. Received: 0.0"),
        (lambda: families.Gaussian(initial_scale=-1), ValueError, "Received: -1"),
        (lambda: families.Gaussian([1, 2]).build((None, 3)), ValueError, "number or 3, one per"),
        (nll("gaussian", (4,), (4, 2), (2, 4, 3)), ValueError, r"y of shape \(4,\), outputs"),
        (nll("gaussian", (4, 1), (4, 2), (2, 4, 3)), ValueError, r"y of shape \(4, 1\)"),
        (nll("poisson", (5, 1), (4, 2), (2, 4, 1)), ValueError, r"y of shape \(5, 1\)"),
        (nll("categorical", (4, 2), (4, 2), (2, 4, 3)), ValueError, r"Use a target of .*\(4,\)"),
        (nll("categorical", (4, 3), (4, 3, 2), (2, 4, 3)), ValueError, "one density per event"),
        (
            nll(families.Gaussian("predicted"), (4, 1), (4, 2), (2, 4, 3)),
            ValueError,
            "outputs with 3 units",
        ),
        (
            lambda: losses.ExpertMean("mse").per_example(
                np.zeros((5, 3)), np.zeros((4, 2)), np.zeros((2, 4, 3))
            ),
            ValueError,
            r"y of shape \(5, 3\), outputs of shape \(4, 3\)",
        ),
        (
            lambda: losses.ExpertMean("mse").per_example(
                np.zeros((4, 3)), np.zeros((4, 3, 2)), np.zeros((2, 4, 3))
            ),
            ValueError,
            "all axes that the weights route",
        ),
        (
            lambda: losses.ExpertMean("mse").mixture_loss(
                np.zeros((4, 3)), np.zeros((4, 2)), np.zeros((2, 4, 3)), np.zeros(3)
            ),
            ValueError,
            r"sample_weight of shape \(3,\)",
        ),
        (
            lambda: losses.MixtureNLL()(np.zeros((4, 1)), np.zeros((4, 1))),
            TypeError,
            "Received: a blended prediction",
        ),
        (
            lambda: families.Family().log_density(None, None),
            NotImplementedError,
            "Family must implement `log_density`",
        ),
        (
            lambda: losses.MixtureObjective().per_example(None, None, None),
            NotImplementedError,
            "must implement `per_example`",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
