"""The layer: `out = Σ_l w_l · f_l` at every rank, dtype, mask, and in log space."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy

from plait.layers import WeightedMerge

# name, shape of the weights, shape of each output, the formula on outputs stacked along e
RANKS = [
    ("example", (3, 4), (3, 5), "be,ebu->bu"),
    ("step", (2, 5, 4), (2, 5, 3), "bte,ebtu->btu"),
    ("image", (2, 4), (2, 3, 5, 2), "be,ebhwu->bhwu"),
    ("class", (3, 6, 4), (3, 6), "bue,ebu->bu"),
    ("class of a step", (2, 5, 3, 4), (2, 5, 3), "btue,ebtu->btu"),
    ("number", (3, 4), (3,), "be,eb->b"),
    ("one expert", (3, 1), (3, 5), "be,ebu->bu"),
]
every_rank = pytest.mark.parametrize(
    ("weights_shape", "shape", "formula"), [row[1:] for row in RANKS], ids=[row[0] for row in RANKS]
)


def drawn(rng, weights_shape, shape):
    """Weights, which do not sum to one, and outputs stacked along e."""
    weights = rng.normal(size=weights_shape).astype("float32")
    return weights, rng.normal(size=(weights_shape[-1], *shape)).astype("float32")


@every_rank
def test_equals_the_formula_in_float64(weights_shape, shape, formula, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    expected = np.einsum(formula, weights.astype("float64"), outputs.astype("float64"))
    found = as_numpy(WeightedMerge()([weights, *outputs]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == "float32"


@every_rank
def test_gradients_equal_those_worked_by_hand(weights_shape, shape, formula, rng):
    weights, outputs = drawn(rng, weights_shape, shape)
    upstream = rng.normal(size=shape).astype("float32")

    def loss(weights, *outputs):
        return ops.sum(ops.multiply(WeightedMerge()([weights, *outputs]), upstream))

    _, (to_weights, *to_outputs) = value_and_gradients(loss, [weights, *outputs])
    operands, result = formula.split("->")
    left, right = operands.split(",")
    np.testing.assert_allclose(
        to_weights, np.einsum(f"{result},{right}->{left}", upstream, outputs), atol=1e-5
    )
    np.testing.assert_allclose(
        np.stack(to_outputs), np.einsum(f"{result},{left}->{right}", upstream, weights), atol=1e-5
    )


@every_rank
def test_log_space_is_the_logarithm_of_the_formula(weights_shape, shape, formula, rng):
    weights, outputs = map(np.abs, drawn(rng, weights_shape, shape))
    expected = np.log(np.einsum(formula, weights.astype("float64"), outputs.astype("float64")))
    found = WeightedMerge(log_space=True)([np.log(weights), *np.log(outputs)])
    np.testing.assert_allclose(as_numpy(found), expected, atol=1e-5)


@every_rank
@pytest.mark.parametrize("log_space", [False, True])
def test_the_symbolic_output_has_every_size_that_is_known(weights_shape, shape, formula, log_space):
    weights = keras.Input(weights_shape[1:])
    outputs = [keras.Input(shape[1:]) for _ in range(weights_shape[-1])]
    merged = WeightedMerge(log_space=log_space)([weights, *outputs])
    assert tuple(merged.shape) == (None, *shape[1:])
    layer = WeightedMerge(log_space=log_space)
    shapes = [(None, *weights_shape[1:]), *[(None, *shape[1:])] * weights_shape[-1]]
    assert tuple(layer.compute_output_shape(shapes)) == (None, *shape[1:])


def test_a_size_is_known_when_any_input_knows_it():
    weights = keras.Input((None, 2))
    outputs = [keras.Input((None, 4)), keras.Input((7, None))]
    assert tuple(WeightedMerge()([weights, *outputs]).shape) == (None, 7, 4)
    outputs = [keras.Input((None, 4)), keras.Input((None, 4))]
    assert tuple(WeightedMerge()([weights, *outputs]).shape) == (None, None, 4)
    weights = keras.Input((7, 2))
    assert tuple(WeightedMerge()([weights, *outputs]).shape) == (None, 7, 4)


def test_a_model_with_the_layer_runs_at_any_batch_and_step_count(rng):
    weights, first, second = keras.Input((None, 2)), keras.Input((None, 3)), keras.Input((None, 3))
    model = keras.Model([weights, first, second], WeightedMerge()([weights, first, second]))
    for batch, steps in [(1, 1), (4, 6)]:
        w, outputs = drawn(rng, (batch, steps, 2), (batch, steps, 3))
        np.testing.assert_allclose(
            model.predict([w, *outputs], verbose=0),
            np.einsum("bte,ebtu->btu", w, outputs),
            atol=1e-5,
        )


@keras.saving.register_keras_serializable("test")
class MaskSeen(keras.layers.Layer):
    """Gives the mask that arrives, as numbers; -1 everywhere when none does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return -ops.ones_like(x[..., 0]) if mask is None else ops.cast(mask, "float32")


IDS_A = np.array([[1, 2, 0, 0], [3, 1, 2, 0]])
IDS_B = np.array([[1, 0, 2, 0], [3, 0, 2, 1]])


@pytest.mark.parametrize("log_space", [False, True])
@pytest.mark.parametrize(
    ("masked", "expected"),
    [
        ((), None),
        (("first",), IDS_A != 0),
        (("second",), IDS_B != 0),
        (("first", "second"), (IDS_A != 0) & (IDS_B != 0)),
        (("weights",), IDS_A != 0),
        (("weights", "second"), (IDS_A != 0) & (IDS_B != 0)),
    ],
    ids=str,
)
def test_a_step_is_valid_where_every_masked_input_says_so(masked, expected, log_space):
    a, b = keras.Input((4,), dtype="int32"), keras.Input((4,), dtype="int32")

    def embed(ids, width, name):
        return keras.layers.Embedding(5, width, mask_zero=name in masked)(ids)

    inputs = [embed(a, 2, "weights"), embed(a, 3, "first"), embed(b, 3, "second")]
    model = keras.Model([a, b], MaskSeen()(WeightedMerge(log_space=log_space)(inputs)))
    found = model.predict([IDS_A, IDS_B], verbose=0)
    np.testing.assert_array_equal(found, -np.ones((2, 4)) if expected is None else expected)


def test_the_mask_reaches_pooling_behind_weights_per_example(rng):
    ids, gate = keras.Input((4,), dtype="int32"), keras.Input((2,))
    embedded = [keras.layers.Embedding(5, 3, mask_zero=True) for _ in "ab"]
    merged = WeightedMerge()([gate, *[layer(ids) for layer in embedded]])
    model = keras.Model([ids, gate], keras.layers.GlobalAveragePooling1D()(merged))
    w = rng.normal(size=(2, 2)).astype("float32")
    tables = [as_numpy(layer.embeddings.value) for layer in embedded]
    steps = np.einsum("be,ebtu->btu", w, np.stack([table[IDS_A] for table in tables]))
    valid = (IDS_A != 0)[..., None]
    expected = (steps * valid).sum(1) / valid.sum(1)
    np.testing.assert_allclose(model.predict([IDS_A, w], verbose=0), expected, atol=1e-5)


# policy, a term that is lost when added to 1 in that dtype, while four of them are not
HALVES = [("mixed_float16", "float16", 2.0**-12), ("mixed_bfloat16", "bfloat16", 2.0**-9)]


@pytest.mark.parametrize(("policy", "dtype", "small"), HALVES)
def test_half_precision_is_summed_in_float32(policy, dtype, small):
    outputs = [ops.cast([[value]], dtype) for value in (1.0, small, small, small, small)]
    weights = ops.cast([[1.0] * 5], dtype)
    out = WeightedMerge(dtype=policy)([weights, *outputs])
    assert keras.backend.standardize_dtype(out.dtype) == dtype
    assert float(ops.cast(out, "float32")[0, 0]) == 1.0 + 4 * small


@pytest.mark.parametrize(("policy", "dtype", "small"), HALVES)
def test_half_precision_output_dtype_is_known_when_the_model_is_built(policy, dtype, small):
    inputs = [keras.Input((2,), dtype=dtype), *[keras.Input((3,), dtype=dtype) for _ in "ab"]]
    out = WeightedMerge(dtype=policy)(inputs)
    assert out.dtype == dtype
    out = WeightedMerge(dtype=policy, log_space=True)(inputs)
    assert out.dtype == dtype


@pytest.mark.parametrize(("policy", "dtype", "small"), HALVES)
def test_float32_weights_under_a_mixed_policy_are_not_rounded(policy, dtype, small):
    """A weight of 1 + 2^-13 over an output of 2^13 − … keeps what half precision would drop."""
    weights = np.array([[1.0 + 2.0**-13, -1.0]], "float32")
    big = ops.cast([[2048.0]], dtype)
    out = WeightedMerge(dtype=policy)([weights, big, big])
    assert float(ops.cast(out, "float32")[0, 0]) == 0.25


INF = float("inf")
# log-weights, log-probabilities of one class for two experts, log-mixture worked by hand
UNDERFLOWS = [
    ("a weight of zero", [-INF, 0.0], [-1.0, -2.0], -2.0),
    ("a probability of zero", [np.log(0.5), np.log(0.5)], [-INF, -2.0], -2.0 + np.log(0.5)),
    ("weights that underflow", [-1000.0, -1001.0], [0.0, 0.0], -1000.0 + np.log1p(np.exp(-1))),
    ("both underflow", [-500.0, -500.0], [-600.0, -600.0], -1100.0 + np.log(2.0)),
    ("zero times zero", [-INF, 0.0], [-INF, -3.0], -3.0),
    ("all zero", [-INF, -INF], [-1.0, -INF], -INF),
    ("above one", [500.0, 500.0], [3.0, 3.0], 503.0 + np.log(2.0)),
]


@pytest.mark.parametrize(
    ("log_weights", "log_outputs", "expected"),
    [row[1:] for row in UNDERFLOWS],
    ids=[row[0] for row in UNDERFLOWS],
)
def test_log_space_is_stable_in_value_and_gradient(log_weights, log_outputs, expected):
    arrays = [np.array([log_weights], "float32")]
    arrays += [np.array([[value]], "float32") for value in log_outputs]
    value, gradients = value_and_gradients(
        lambda w, *outputs: ops.sum(WeightedMerge(log_space=True)([w, *outputs])), arrays
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    # Where there is a mixture at all, what moves it together are the experts' posteriors.
    np.testing.assert_allclose(gradients[0].sum(), 0.0 if expected == -INF else 1.0, rtol=1e-5)


def test_log_space_keeps_a_likelihood_that_half_precision_loses():
    inputs = [ops.cast([[-0.5, -1.0]], "float16"), *[ops.cast([[-20.0]], "float16")] * 2]
    out = ops.cast(WeightedMerge(log_space=True, dtype="mixed_float16")(inputs), "float32")
    expected = -20.0 + np.log(np.exp(-0.5) + np.exp(-1.0))
    np.testing.assert_allclose(as_numpy(out), [[expected]], rtol=1e-3)


@pytest.mark.parametrize("log_space", [False, True])
def test_config_makes_the_layer_anew(log_space):
    layer = WeightedMerge(log_space=log_space, name="mine", dtype="mixed_float16")
    before = layer.get_config()
    layer([np.ones((2, 2), "float32"), *[np.ones((2, 3), "float32")] * 2])
    assert layer.get_config() == before
    again = WeightedMerge.from_config(before)
    assert again.get_config() == before
    assert again.log_space is log_space
    assert layer.weights == []


def test_a_functional_model_with_the_layer_is_saved_and_loaded_safely(tmp_path, rng):
    x = keras.Input((4,))
    gate = keras.layers.Dense(2, activation="softmax")(x)
    experts = [keras.layers.Dense(3)(x) for _ in "ab"]
    model = keras.Model(x, WeightedMerge()([gate, *experts]))
    data = rng.normal(size=(5, 4)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(
        loaded.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-6
    )


# inputs as shapes, the error, what it says
MISFITS = [
    (
        [(2, 2), (2, 3), (2, 4)],
        ValueError,
        r"Output 1 has shape \(2, 4\), but output 0 has \(2, 3\)",
    ),
    ([(2, 3), (2, 3), (2, 3)], ValueError, r"weights of shape \(2, 3\) and 2 outputs"),
    ([(2, 5, 2), (2, 3), (2, 3)], ValueError, r"\(2, 5, 2\) over outputs of shape \(2, 3\)"),
    ([(4, 2), (2, 3), (2, 3)], ValueError, r"\(4, 2\) over outputs of shape \(2, 3\)"),
    ([(2, 3, 4, 2), (2, 3), (2, 3)], ValueError, r"\(2, 3, 4, 2\) over outputs of shape"),
    ([(2, 2), (2, 3), (2, 3, 1)], ValueError, r"Output 1 has shape \(2, 3, 1\)"),
    ([(2, 2)], ValueError, "first the weights, then at least one output"),
]


@pytest.mark.parametrize(("shapes", "error", "match"), MISFITS, ids=[str(m[0]) for m in MISFITS])
@pytest.mark.parametrize("symbolic", [True, False])
def test_what_does_not_fit_is_said_at_build_time(shapes, error, match, symbolic):
    tensors = [
        keras.KerasTensor(shape) if symbolic else np.ones(shape, "float32") for shape in shapes
    ]
    with pytest.raises(error, match=match):
        WeightedMerge()(tensors)


@pytest.mark.parametrize(("position", "name"), [(0, "The weights"), (2, "Output 1")])
def test_integers_are_not_merged(position, name):
    tensors = [ops.ones((2, 2)), ops.ones((2, 3)), ops.ones((2, 3))]
    tensors[position] = ops.cast(tensors[position], "int32")
    with pytest.raises(TypeError, match=f"{name} must be floating-point.*int32"):
        WeightedMerge()(tensors)


@pytest.mark.parametrize("inputs", [np.ones((2, 3), "float32"), {"w": np.ones((2, 1), "float32")}])
def test_one_tensor_or_a_dict_is_no_list_of_weights_and_outputs(inputs):
    with pytest.raises(ValueError, match="WeightedMerge takes a list"):
        WeightedMerge()(inputs)
