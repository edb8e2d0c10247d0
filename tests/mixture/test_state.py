"""Nothing is lost: what an expert brings works inside a mixture as outside it."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops
from tests.recipes import as_numpy, merged, randomize

import plait

layers = keras.layers
D, U = 4, 3
# The caller's experts run one by one, or copies of them that the mixture owns run stacked.
WAYS = {"loop": {"execution": "loop"}, "copies": {"copy_experts": True}}
every_execution = pytest.mark.parametrize("execution", WAYS)


def softmax_gate(count, seed=5):
    kernel = keras.initializers.RandomNormal(seed=seed)
    dense = layers.Dense(count, activation="softmax", kernel_initializer=kernel)
    return keras.Sequential([keras.Input((D,)), dense])


def recipe_model(experts, gate):
    """The functional model of today: every expert called by itself, weights times outputs."""
    x = keras.Input((D,))
    weights = layers.Reshape((len(experts), 1))(gate(x))
    stacked = layers.Concatenate(axis=1)([layers.Reshape((1, U))(expert(x)) for expert in experts])
    return keras.Model(x, ops.sum(weights * stacked, axis=1))


def trained(model, x, y, epochs=2):
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history["loss"]


@keras.saving.register_keras_serializable("test")
class AddsLoss(layers.Layer):
    """Passes its input on and adds its mean square, times a factor, to the loss."""

    def __init__(self, factor=0.1, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        self.add_loss(self.factor * ops.mean(ops.square(x)))
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


l2 = keras.regularizers.L2(0.01)
# what the experts bring, as the layers of each
BRINGS = {
    "weight regularisers": lambda: [
        layers.Dense(5, kernel_regularizer=l2, bias_regularizer="l1"),
        layers.Dense(U, kernel_regularizer=keras.regularizers.OrthogonalRegularizer(0.01)),
    ],
    "activity regulariser": lambda: [layers.Dense(U, activity_regularizer=l2)],
    "add_loss": lambda: [layers.Dense(5), AddsLoss(), layers.Dense(U)],
    "batch norm": lambda: [layers.Dense(5), layers.BatchNormalization(), layers.Dense(U)],
    "constraint": lambda: [layers.Dense(U, kernel_constraint=keras.constraints.UnitNorm())],
    "all of it": lambda: [
        layers.Dense(5, kernel_regularizer=l2),
        layers.BatchNormalization(momentum=0.5),
        AddsLoss(),
        layers.Dense(U, kernel_constraint="non_neg"),
    ],
}


def made(brings, count=3):
    rng = np.random.default_rng(3)
    return [
        randomize(keras.Sequential([keras.Input((D,)), *BRINGS[brings]()]), rng)
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    return rng.normal(size=(16, D)).astype("float32"), rng.normal(size=(16, U)).astype("float32")


@pytest.fixture(scope="module")
def recipes(data):
    """Losses and weights that the recipe has after training, by what the experts bring."""
    known = {}

    def recipe(brings):
        if brings not in known:
            experts, gate = made(brings), softmax_gate(3)
            losses = trained(recipe_model(experts, gate), *data)
            known[brings] = losses, [model.get_weights() for model in [*experts, gate]]
        return known[brings]

    return recipe


@pytest.mark.parametrize("brings", BRINGS)
@every_execution
def test_training_moves_everything_as_the_recipe_does(brings, execution, data, recipes):
    """Losses of each epoch, trained weights and moving statistics are equal."""
    experts, gate = made(brings), softmax_gate(3)
    mixture = plait.Mixture(experts, gate, **WAYS[execution])
    losses = trained(mixture, *data)
    expected_losses, expected = recipes(brings)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    found = [model.get_weights() for model in [*map(mixture.expert, range(3)), gate]]
    for left, right in zip(found, expected, strict=True):
        for value, wanted in zip(left, right, strict=True):
            np.testing.assert_allclose(value, wanted, atol=1e-5)


@pytest.mark.parametrize("brings", ["add_loss", "activity regulariser", "weight regularisers"])
def test_losses_arrive_under_a_sparse_router(brings, data):
    """Those of a call depend on the whole batch, so that all experts run, with a warning."""
    x, y = data
    experts, gate = made(brings), softmax_gate(3)
    router = plait.routers.TopK(1, from_logits=False)
    mixture = plait.Mixture(experts, gate, router=router)
    mixture.compile(keras.optimizers.SGD(0.0), "mse")
    for expert in experts:
        expert(x, training=True)
    expected = sum(float(as_numpy(loss)) for expert in experts for loss in expert.losses)
    assert expected > 0
    warned = (
        contextlib.nullcontext()
        if brings == "weight regularisers"
        else pytest.warns(UserWarning, match="run on every row where")
    )
    squares = np.mean((mixture.predict(x, verbose=0) - y) ** 2)
    with warned:
        loss = mixture.fit(x, y, batch_size=16, verbose=0).history["loss"][0]
    np.testing.assert_allclose(loss, squares + expected, rtol=1e-4)
    evaluated = mixture.evaluate(x, y, batch_size=16, verbose=0)
    np.testing.assert_allclose(evaluated, squares + expected, rtol=1e-4)


def test_batch_norm_moves_under_a_sparse_router_as_in_the_loop(data):
    experts, gate = made("batch norm"), softmax_gate(3)
    mixture = plait.Mixture(experts, gate, router=plait.routers.TopK(1, from_logits=False))
    with pytest.warns(UserWarning, match="batch statistics"):
        trained(mixture, *data, epochs=1)
    alone = made("batch norm")[0]
    before = alone.get_weights()[4:6]
    for old, new in zip(before, experts[0].get_weights()[4:6], strict=True):
        assert (old != new).any()


@every_execution
def test_regularisation_of_frozen_experts_still_counts(execution):
    experts = made("weight regularisers")
    alone = sum(float(as_numpy(loss)) for expert in experts for loss in expert.losses)
    for expert in experts:
        expert.trainable = False
    mixture = plait.Mixture(experts, softmax_gate(3), **WAYS[execution])
    counted = sum(float(as_numpy(loss)) for expert in experts for loss in expert.losses)
    found = sum(float(as_numpy(loss)) for loss in mixture.losses)
    np.testing.assert_allclose(found, counted, rtol=1e-5)
    assert alone > 0


@every_execution
def test_batch_norm_uses_moving_statistics_at_inference_and_leaves_them(execution, data):
    x, _ = data
    experts, gate = made("batch norm"), softmax_gate(3)
    before = [expert.get_weights() for expert in experts]
    expected = as_numpy(merged(gate(x), [expert(x, training=False) for expert in experts]))
    mixture = plait.Mixture(experts, gate, **WAYS[execution])
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
    for i in range(3):
        for old, new in zip(before[i], mixture.expert(i).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


def dropping(seed=None):
    return keras.Sequential([keras.Input((200,)), layers.Dropout(0.5, seed=seed)])


@pytest.mark.parametrize("source", ["list", "template", "template with a seed"])
@pytest.mark.parametrize("router", [None, "top_k"])
@every_execution
def test_dropout_differs_per_expert_per_call_and_stops_at_inference(source, router, execution):
    """Weights per class show each expert's mask: class `c` of 200 is given to expert `c % 2`."""
    x = np.ones((1, 200), "float32")
    template = dropping(3 if source == "template with a seed" else None)
    experts = [dropping(), dropping()] if source == "list" else template
    count = None if source == "list" else 2
    if router:
        router = plait.routers.TopK(2)
    mixture = plait.Mixture(experts, "uniform", num_experts=count, router=router, **WAYS[execution])
    first = as_numpy(mixture(x, training=True))
    # Each expert gives 0 or 2: where they agree always, they draw the same numbers.
    values, counts = np.unique(np.round(first, 3), return_counts=True)
    np.testing.assert_array_equal(values, [0.0, 1.0, 2.0])
    assert (counts > 20).all()
    second = as_numpy(mixture(x, training=True))
    assert (first != second).any()
    np.testing.assert_allclose(as_numpy(mixture(x, training=False)), x, atol=1e-6)


@every_execution
def test_dropout_draws_anew_under_a_sparse_router_where_experts_read_different_inputs(execution):
    x = {part: np.ones((1, 200), "float32") for part in "ab"}
    mixture = plait.Mixture(
        [dropping(1), dropping(2)],
        "uniform",
        router=plait.routers.TopK(2),
        expert_inputs=["a", "b"],
        **WAYS[execution],
    )
    first, second = (as_numpy(mixture(x, training=True)) for _ in range(2))
    assert set(np.unique(first)) == {0.0, 1.0, 2.0}
    assert (first != second).any()
    np.testing.assert_allclose(as_numpy(mixture(x, training=False)), x["a"], atol=1e-6)


@pytest.mark.parametrize("router", ["softmax", plait.routers.TopK(2)], ids=["dense", "sparse"])
def test_dropout_differs_in_each_expert_of_a_template_that_is_a_mixture(router):
    """Two mixtures of two: of 200 numbers, each zero or two, means of four take every value."""
    inner = plait.Mixture([dropping(1), dropping(1001)], "uniform")
    mixture = plait.Mixture(inner, "uniform", num_experts=2, router=router)
    found = as_numpy(mixture(np.ones((1, 200), "float32"), training=True))
    np.testing.assert_allclose(np.unique(np.round(found, 3)), [0.0, 0.5, 1.0, 1.5, 2.0])


@pytest.mark.parametrize("source", ["list", "template"])
def test_a_sparse_mixture_of_mixtures_stays_sparse_where_experts_drop(source, recwarn, data):
    """Their seeds move, also where they are stacked, and depend on no other row."""

    def inner():
        stacks = [[layers.Dense(U), layers.Dropout(0.5)] for _ in "ab"]
        experts = [keras.Sequential([keras.Input((D,)), *stack]) for stack in stacks]
        return plait.Mixture(experts, router=plait.routers.TopK(1, noise=0.1))

    experts, count = ([inner(), inner()], None) if source == "list" else (inner(), 2)
    mixture = plait.Mixture(experts, num_experts=count, router=plait.routers.TopK(1))
    x, _ = data
    first, second = (as_numpy(mixture(x, training=True)) for _ in range(2))
    assert (first != second).any()
    assert not [w for w in recwarn if "every row" in str(w.message)]


@every_execution
def test_dropout_draws_anew_in_each_step_of_fit(execution):
    """With frozen weights, the loss of equal batches differs only by what is dropped."""

    def net():
        dense = layers.Dense(1, kernel_initializer="ones", trainable=False)
        return keras.Sequential([keras.Input((200,)), layers.Dropout(0.5), dense])

    experts = [net(), net()]
    mixture = plait.Mixture(experts, "constant", **WAYS[execution])
    mixture.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.ones((4, 200), "float32"), np.zeros((4, 1), "float32")
    losses = mixture.fit(x, y, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert len(set(np.round(losses, 2))) > 1


IDS = np.array([[1, 2, 3, 0, 0], [4, 1, 0, 0, 0]])


def masked_expert():
    return keras.Sequential(
        [keras.Input((5,), dtype="int32"), layers.Embedding(6, U, mask_zero=True)]
    )


@keras.saving.register_keras_serializable("test")
class MaskSeen(layers.Layer):
    """Gives the mask that arrives, as numbers; -1 everywhere when none does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, x, mask=None):
        return -ops.ones_like(x[..., 0]) if mask is None else ops.cast(mask, "float32")

    def compute_output_shape(self, input_shape):
        return input_shape[:-1]


@every_execution
def test_a_mask_made_inside_the_experts_leaves_the_mixture(execution):
    mixture = plait.Mixture([masked_expert(), masked_expert()], "uniform", **WAYS[execution])
    ids = keras.Input((5,), dtype="int32")
    model = keras.Model(ids, MaskSeen()(mixture(ids)))
    np.testing.assert_array_equal(model.predict(IDS, verbose=0), IDS != 0)


@pytest.mark.parametrize(
    "gate", [pytest.param("uniform", marks=pytest.mark.slow), "constant", None]
)
@pytest.mark.parametrize("router", [None, "top_k"])
@every_execution
def test_a_mask_of_the_input_reaches_the_experts(execution, router, gate, rng):
    """An LSTM that gets the mask stops at the last valid step. No gate of plait minds the mask."""
    embedding = layers.Embedding(6, D, mask_zero=True)
    experts = [layers.LSTM(U, bias_initializer="glorot_uniform") for _ in "abc"]
    if router:
        router = plait.routers.TopK(3)
    mixture = plait.Mixture(experts, gate, router=router, **WAYS[execution])
    ids = keras.Input((5,), dtype="int32")
    model = keras.Model(ids, mixture(embedding(ids)))
    alone = [as_numpy(mixture.expert(i).layers[-1](embedding(IDS))) for i in range(3)]
    weights = mixture.gate_weights(as_numpy(embedding.embeddings.value)[IDS])
    expected = np.einsum("be,ebu->bu", weights, np.stack(alone))
    np.testing.assert_allclose(model.predict(IDS, verbose=0), expected, atol=1e-5)
    unmasked = mixture(as_numpy(embedding.embeddings.value)[IDS])
    assert np.abs(as_numpy(unmasked) - expected).max() > 1e-4


no_float64 = pytest.mark.skipif(
    keras.config.backend() == "jax", reason="JAX has float64 only where jax_enable_x64 is set"
)


@pytest.mark.parametrize(
    "policy",
    ["mixed_float16", "mixed_bfloat16", pytest.param("float64", marks=no_float64)],
)
@pytest.mark.parametrize("router", ["softmax", "top_k"])
@every_execution
def test_the_dtype_policies_of_experts_hold(policy, router, execution, rng):
    """Variables keep their dtype, the output is in the mixture's own policy or finer."""
    tolerance = {"mixed_float16": 2e-2, "mixed_bfloat16": 1e-1, "float64": 1e-5}[policy]

    def net():
        stack = [layers.Dense(8, activation="tanh", dtype=policy), layers.Dense(U, dtype=policy)]
        return randomize(keras.Sequential([keras.Input((D,)), *stack]), rng)

    experts, gate = [net(), net()], softmax_gate(2)
    x = rng.normal(size=(6, D)).astype("float32")
    outputs = [expert(x) for expert in experts]
    weights = as_numpy(gate(x))
    expected = np.einsum(
        "be,ebu->bu", weights, np.stack([as_numpy(ops.cast(o, "float32")) for o in outputs])
    )
    if router == "top_k":
        router = plait.routers.TopK(2, from_logits=False)
    else:
        router = plait.routers.Softmax(from_logits=False)
    mixture = plait.Mixture(experts, gate, router=router, **WAYS[execution])
    found = mixture(x)
    np.testing.assert_allclose(as_numpy(ops.cast(found, "float32")), expected, atol=tolerance)
    wanted = "float64" if policy == "float64" else "float32"
    assert {v.dtype for v in mixture.expert(0).variables} == {wanted}
    mixture.compile("sgd", "mse")
    losses = mixture.fit(x, np.ones((6, U), "float32"), verbose=0).history["loss"]
    assert np.isfinite(losses).all()


def test_a_mixed_policy_of_the_mixture_gives_half_precision(rng):
    x = rng.normal(size=(6, D)).astype("float32")
    experts = [layers.Dense(U, dtype="mixed_bfloat16") for _ in "ab"]
    mixture = plait.Mixture(experts, "uniform", dtype="mixed_bfloat16")
    assert keras.backend.standardize_dtype(mixture(x).dtype) == "bfloat16"
    symbolic = mixture(keras.Input((D,)))
    assert symbolic.dtype == "bfloat16"


@every_execution
def test_noise_is_drawn_anew_in_training_and_not_at_inference(execution, data):
    x, _ = data
    stacks = [[layers.Dense(U), layers.GaussianNoise(0.1)] for _ in "ab"]
    experts = [keras.Sequential([keras.Input((D,)), *stack]) for stack in stacks]
    mixture = plait.Mixture(experts, softmax_gate(2), **WAYS[execution])
    first, second = (as_numpy(mixture(x, training=True)) for _ in range(2))
    assert (first != second).any()
    np.testing.assert_array_equal(as_numpy(mixture(x)), as_numpy(mixture(x)))


@pytest.mark.parametrize("router", ["softmax", plait.routers.TopK(2)], ids=["dense", "sparse"])
@every_execution
def test_masked_steps_are_trained_through_under_every_router(execution, router, rng):
    """The likelihood needs every expert's output, of inputs with masks, in training too."""
    ids = keras.Input((5,), dtype="int32")
    x = layers.Embedding(6, D, mask_zero=True)(ids)
    experts = [layers.LSTM(U, name=name) for name in "ab"]
    mixture = plait.Mixture(experts, router=router, **WAYS[execution])
    mixture(x)
    features = rng.normal(size=(2, 5, D)).astype("float32")
    masked = keras.layers.Masking()(features * np.array([1, 1, 1, 0, 0])[None, :, None])
    mixture.compile(keras.optimizers.SGD(0.1), plait.losses.MixtureNLL("gaussian"))
    out = mixture(masked, training=True)
    loss = mixture.compute_loss(y=np.ones((2, U), "float32"), y_pred=out)
    assert np.isfinite(float(as_numpy(ops.stop_gradient(loss))))


def test_a_mask_that_is_passed_does_not_stay_with_the_callers_tensor():
    mixture = plait.Mixture([layers.LSTM(U) for _ in "ab"], "uniform")
    x = ops.ones((2, 5, D))
    mixture(x, mask=ops.convert_to_tensor([[True] * 3 + [False] * 2] * 2))
    assert getattr(x, "_keras_mask", None) is None
