"""Every router, held to one table: weights, gradients, ranks, masks, persistence, balance."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.ops.test_routing import numpy_softmax, numpy_threshold, numpy_top_k

import plait
from plait import routers


def numpy_expert_choice(s, factor):
    flat = numpy_softmax(s).reshape(-1, s.shape[-1])
    capacity = int(np.ceil(factor * len(flat) / s.shape[-1]))
    out = np.zeros_like(flat)
    for expert in range(s.shape[-1]):
        rows = np.argsort(-flat[:, expert], kind="stable")[:capacity]
        out[rows, expert] = flat[rows, expert]
    return out.reshape(s.shape)


def numpy_capacity(s, k, factor):
    """Top-k with each expert's smallest weights dropped."""
    weights = numpy_top_k(s, k).reshape(-1, s.shape[-1])
    capacity = int(np.ceil(factor * len(weights) * k / s.shape[-1]))
    for expert in range(s.shape[-1]):
        weights[np.argsort(-weights[:, expert], kind="stable")[capacity:], expert] = 0
    return weights.reshape(s.shape)


# name, arguments, weights at inference, whether experts may be left out by `indices`
TABLE = [
    (routers.Softmax, {}, numpy_softmax, False),
    (routers.Softmax, {"temperature": 0.5}, lambda s: numpy_softmax(2 * s), False),
    (routers.TopK, {"k": 2}, lambda s: numpy_top_k(s, 2), True),
    (routers.TopK, {"k": 2, "noise": 1.0, "seed": 3}, lambda s: numpy_top_k(s, 2), True),
    (routers.TopK, {"k": 2, "bias_update_rate": 0.1}, lambda s: numpy_top_k(s, 2), True),
    (
        routers.TopK,
        {"k": 2, "capacity_factor": 0.75},
        lambda s: numpy_capacity(s, 2, 0.75),
        True,
    ),
    (
        routers.TopK,
        {"k": 1, "renormalize": False},
        lambda s: numpy_softmax(s) * (numpy_top_k(s, 1) > 0),
        True,
    ),
    (routers.Sparsemax, {}, lambda s: numpy_threshold(s, 1), False),
    (routers.Entmax15, {}, lambda s: numpy_threshold(s / 2, 2), False),
    (
        routers.ExpertChoice,
        {"capacity_factor": 1.5},
        lambda s: numpy_expert_choice(s, 1.5),
        True,
    ),
    (routers.Gumbel, {"temperature": 0.7, "seed": 3}, lambda s: numpy_top_k(s, 1), True),
]
IDS = [f"{router.__name__}-{'-'.join(arguments) or 'plain'}" for router, arguments, *_ in TABLE]
every_router = pytest.mark.parametrize(("router", "arguments", "oracle", "sparse"), TABLE, ids=IDS)


@every_router
@pytest.mark.parametrize("shape", [(7, 4), (3, 5, 4), (2, 3, 2, 4)])
def test_weights_equal_the_oracle_at_every_rank(router, arguments, oracle, sparse, shape, rng):
    scores = 2 * rng.normal(size=shape)
    found = router(**arguments).route(ops.convert_to_tensor(scores.astype("float32")))
    weights = ops.convert_to_numpy(found.weights)
    np.testing.assert_allclose(weights, oracle(scores), atol=2e-6)
    assert (found.indices is not None) == sparse
    assert router.sparse == (router is not routers.Softmax)
    if sparse:
        indices = ops.convert_to_numpy(found.indices)
        named = (indices[..., None] == np.arange(4)).any(axis=-2)
        np.testing.assert_array_equal(named, weights > 0)
        assert indices.dtype == "int32"


@every_router
def test_the_layer_call_gives_the_weights_of_route(router, arguments, oracle, sparse, rng):
    layer = router(**arguments)
    scores = rng.normal(size=(6, 4)).astype("float32")
    np.testing.assert_allclose(ops.convert_to_numpy(layer(scores)), oracle(scores), atol=2e-6)
    assert layer.compute_output_shape((None, 4)) == (None, 4)


# All but Gumbel, whose value is a step function: see its straight-through gradient below.
@pytest.mark.parametrize(
    ("router", "arguments", "oracle"), [row[:3] for row in TABLE[:-1]], ids=IDS[:-1]
)
def test_gradients_equal_finite_differences(router, arguments, oracle, rng):
    layer = router(**arguments)
    scores, cotangent = 2 * rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    layer.build(scores.shape)
    _, (gradient,) = value_and_gradients(
        lambda s: ops.sum(ops.multiply(layer(s), cotangent.astype("float32"))),
        [scores.astype("float32")],
    )
    step = 1e-6
    for place in np.ndindex(scores.shape):
        moved = np.zeros_like(scores)
        moved[place] = step
        difference = ((oracle(scores + moved) - oracle(scores - moved)) * cotangent).sum()
        assert gradient[place] == pytest.approx(difference / (2 * step), abs=3e-4)


@every_router
def test_probabilities_route_as_their_logits(router, arguments, oracle, sparse, rng):
    scores = rng.normal(size=(6, 4))
    layer = router(from_logits=False, **arguments)
    weights = layer(numpy_softmax(scores).astype("float32"))
    if router in (routers.Softmax, routers.TopK, routers.ExpertChoice, routers.Gumbel):
        np.testing.assert_allclose(ops.convert_to_numpy(weights), oracle(scores), atol=1e-5)
    else:
        expected = oracle(np.log(numpy_softmax(scores)))
        np.testing.assert_allclose(ops.convert_to_numpy(weights), expected, atol=1e-5)


@every_router
def test_config_is_the_same_before_and_after_build_and_rebuilds_the_router(
    router, arguments, oracle, sparse, rng
):
    layer = router(name="rule", **arguments)
    before = layer.get_config()
    layer(rng.normal(size=(6, 4)).astype("float32"))
    assert layer.get_config() == before
    assert before.items() >= arguments.items()
    again = routers.get(keras.saving.serialize_keras_object(layer))
    assert type(again) is router
    assert again.get_config() == before


@every_router
def test_mixed_precision_computes_in_float32(router, arguments, oracle, sparse, rng):
    layer = router(dtype="mixed_float16", **arguments)
    scores = rng.normal(size=(6, 4)).astype("float32")
    weights = layer(ops.convert_to_tensor(scores))
    assert keras.backend.standardize_dtype(weights.dtype) == "float32"
    np.testing.assert_allclose(ops.convert_to_numpy(weights), oracle(scores), atol=2e-6)
    assert keras.Sequential([keras.Input((4,)), layer]).outputs[0].dtype == "float32"


def fitted(router, x, y, epochs=2):
    """A router between a gate and a sum, compiled and fitted: the model and its history."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Dense(4), router])
    model.compile(keras.optimizers.SGD(0.05), "mse")
    history = model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, shuffle=False)
    return model, history.history


@pytest.fixture
def data(rng):
    x = rng.normal(size=(16, 3)).astype("float32")
    return x, rng.random(size=(16, 4)).astype("float32")


@every_router
def test_a_saved_model_gives_the_same_weights_and_goes_on_training_the_same(
    router, arguments, oracle, sparse, data, tmp_path
):
    x, y = data
    model, _ = fitted(router(**arguments), x, y)
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.saving.load_model(path)
    np.testing.assert_allclose(again.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    for each in (model, again):
        each.fit(x, y, epochs=1, batch_size=8, verbose=0, shuffle=False)
    for left, right in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


TERMS = ["load_balance", "importance", "z_loss"]


@every_router
def test_balance_terms_enter_the_loss_once_in_training_only(router, arguments, oracle, sparse, rng):
    layer = router(load_balance=0.5, importance=0.25, z_loss=0.125, **arguments)
    scores = rng.normal(size=(8, 4)).astype("float32")
    layer(scores)
    assert not layer.losses
    layer(scores, training=True)
    for metric in layer.metrics:
        metric.reset_state()
    layer(scores, training=True)
    raw = [float(layer.recorded(term)) for term in TERMS]
    assert len(layer.losses) == 3
    if not getattr(layer, "noise", 0) and router is not routers.Gumbel:
        expected = np.multiply(raw, [0.5, 0.25, 0.125])
        np.testing.assert_allclose([float(v) for v in layer.losses], expected, rtol=1e-5)
    assert raw[2] == pytest.approx(
        (np.log(np.exp(scores.astype("float64")).sum(axis=-1)) ** 2).mean(), rel=1e-5
    )


def test_fit_adds_each_term_once_and_logs_it_raw(data):
    """With a learning rate of 0 the loss is the plain loss plus coefficient · raw value."""
    x, y = data
    router = routers.TopK(2, load_balance=0.5, z_loss=0.25, capacity_factor=0.5, name="rule")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), router])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, y, epochs=2, batch_size=8, verbose=0, validation_data=(x, y)).history
    plain = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)["loss"]
    assert {"rule_load_balance", "rule_z_loss", "rule_dropped"} <= set(logs)
    # One batch of 16 rows or two of 8 may drop other rows, hence the same batches here.
    for epoch in range(2):
        added = 0.5 * logs["rule_load_balance"][epoch] + 0.25 * logs["rule_z_loss"][epoch]
        assert added > 0.5
        # Batches of an epoch are shuffled, and capacity makes rows depend on their batch.
        assert logs["loss"][epoch] == pytest.approx(plain + added, abs=0.05)
    scores = x @ ops.convert_to_numpy(model.layers[0].kernel)
    sizes = np.log(np.exp(scores.astype("float64")).sum(axis=-1)) ** 2
    assert logs["rule_z_loss"] == pytest.approx([sizes.mean()] * 2, rel=1e-4)


TERM_KEYS = {"moe_load_balance", "moe_importance", "moe_z_loss", "moe_dropped"}


@keras.saving.register_keras_serializable("tests")
class Part(keras.layers.Layer):
    """A layer with a router of its own, as a mixture is one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.router = routers.TopK(
            2, 1.0, load_balance=0.01, importance=0.01, z_loss=0.01, name="rule"
        )

    def build(self, shape):
        self.router.build(shape)
        self.router.report_as(self.name)

    def call(self, scores, training=None):
        return self.router.route(scores, training=training).weights


def balancing_models():
    """A router that was told its name before it was built; a layer; a model; and both nested."""
    router = routers.TopK(2, 1.0, load_balance=0.01, importance=0.01, z_loss=0.01)
    router.report_as("moe")
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), Part(name="moe")])
    outer = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(4)])
    return {
        "router": keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), router]),
        "layer": inner,
        "nested": keras.Sequential([keras.Input((3,)), outer]),
    }


@pytest.mark.parametrize(
    ("kind", "steps"),
    [("router", "compiled"), ("layer", "compiled"), ("layer", "eager"), ("nested", "compiled")],
)
def test_what_balances_is_in_the_logs_of_training_and_of_nothing_else(kind, steps, data):
    x, y = data
    model = balancing_models()[kind]
    model.compile("sgd", "mse", metrics=["mae"], run_eagerly=steps == "eager")
    compiled = {"loss", "mae"}
    batches = []
    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: batches.append(logs))
    for _ in range(2):  # the second time, every step is compiled already
        logs = model.fit(
            x, y, epochs=3, batch_size=8, verbose=0, validation_data=(x, y), callbacks=[watch]
        ).history
        assert set(logs) == compiled | TERM_KEYS | {"val_loss", "val_mae"}
        assert all(value > 0 for value in logs["moe_load_balance"])
        assert set(batches[-1]) == compiled | TERM_KEYS
        assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == compiled
        assert len(model.evaluate(x, y, verbose=0)) == 2
        assert set(model.get_metrics_result()) == compiled
    assert set(model.train_on_batch(x, y, return_dict=True)) == compiled | TERM_KEYS
    model.reset_metrics()  # Keras 3.12 adds up the metrics of successive calls
    assert set(model.test_on_batch(x, y, return_dict=True)) == compiled


def test_several_routers_of_one_name_report_under_several(data):
    x, y = data
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(4), Part(name="a"), Part(name="b")]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, y, batch_size=16, verbose=0).history
    for part in ("a", "b"):
        layer = model.get_layer(part)
        assert layer.router.name == "rule"
        assert logs[f"{part}_z_loss"] == pytest.approx([float(layer.router.recorded("z_loss"))])
    assert logs["a_z_loss"] != logs["b_z_loss"]
    assert np.ndim(model.evaluate(x, y, verbose=0)) == 0  # the loss alone


NAN_CASES = [row[:2] for row in TABLE]
in_nan_cases = pytest.mark.parametrize(("router", "arguments"), NAN_CASES, ids=IDS)


@in_nan_cases
@pytest.mark.parametrize("training", [False, True])
def test_a_nan_score_makes_the_weights_of_its_row_nan_and_of_no_other(
    router, arguments, training, rng
):
    scores = rng.normal(size=(6, 4)).astype("float32")
    scores[1, 2] = scores[4, 0] = np.nan
    bad = np.isnan(scores).any(axis=-1)
    found = router(**arguments).route(scores, training=training)
    weights = ops.convert_to_numpy(found.weights)
    assert np.isnan(weights[bad]).all()
    assert np.isfinite(weights[~bad]).all()
    if router is routers.ExpertChoice:  # with the same room for fewer rows
        again = router(arguments["capacity_factor"] * 6 / 4).route(scores[~bad])
        np.testing.assert_allclose(weights[~bad], ops.convert_to_numpy(again.weights), atol=1e-6)
    elif "capacity_factor" not in arguments and not (training and "seed" in arguments):
        again = router(**arguments).route(scores[~bad])
        np.testing.assert_allclose(weights[~bad], ops.convert_to_numpy(again.weights), atol=1e-6)
    if found.indices is not None:
        indices = ops.convert_to_numpy(found.indices)
        assert ((indices >= 0) & (indices <= 4)).all()


@in_nan_cases
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("from_logits", [True, False])
def test_excluded_experts_are_never_chosen(router, arguments, training, from_logits, rng):
    """By a score of −∞ or a probability of zero: row 0 keeps one expert, row 1 none, row 2 all."""
    scores = rng.normal(size=(3, 4)).astype("float32")
    scores[0, [0, 1, 3]] = scores[1] = -np.inf
    out = np.isinf(scores)
    if not from_logits:
        scores = np.exp(scores)
    terms = {"load_balance": 1.0, "importance": 1.0, "z_loss": 1.0}
    layer = router(
        from_logits=from_logits,
        **terms,
        **{**arguments, **({"capacity_factor": 4.0} if "capacity_factor" in arguments else {})},
    )
    found = layer.route(scores, training=training)
    weights = ops.convert_to_numpy(found.weights)
    assert (weights[out] == 0).all()
    assert (weights[~out].max(axis=-1) > 0).all()
    assert weights[0, 2] == pytest.approx(1)
    if found.indices is not None:
        named = (ops.convert_to_numpy(found.indices)[..., None] == np.arange(4)).any(axis=-2)
        assert not named[out].any()
        assert named[0, 2]
        assert (ops.convert_to_numpy(found.indices)[1] == 4).all()
    if training:
        assert all(np.isfinite(float(layer.recorded(term))) for term in TERMS)


@pytest.mark.parametrize(
    ("router", "arguments"),
    [(router, arguments) for router, arguments in NAN_CASES if "seed" not in arguments],
)
def test_excluded_experts_have_a_gradient_of_zero(router, arguments, rng):
    scores, cotangent = rng.normal(size=(2, 3, 4)).astype("float32")
    scores[0, 1:] = scores[1] = -np.inf
    layer = router(**arguments)
    layer.build(scores.shape)
    _, (gradient,) = value_and_gradients(
        lambda s: ops.sum(ops.multiply(layer(s), cotangent)), [scores]
    )
    assert np.isfinite(gradient).all()
    assert (gradient[np.isinf(scores)] == 0).all()


def gate_moves(router, data):
    """How far one step of SGD moves the gate in front of a router."""
    x, y = data
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), router])
    before = model.layers[0].get_weights()[0]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, y, batch_size=16, verbose=0)
    return np.abs(model.layers[0].get_weights()[0] - before).max()


@pytest.mark.parametrize("arguments", [{}, {"k": 1}, {"k": 1, "renormalize": False}, {"k": 2}])
def test_a_gate_learns_under_top_k_as_it_comes(arguments, data):
    assert gate_moves(routers.TopK(**arguments), data) > 1e-4


def test_the_default_of_renormalize_depends_on_k(rng):
    scores = rng.normal(size=(5, 4)).astype("float32")
    for k, same in ((1, False), (2, True), (4, True)):
        assert routers.TopK(k).get_config()["renormalize"] is None
        weights, expected = routers.TopK(k)(scores), routers.TopK(k, renormalize=same)(scores)
        np.testing.assert_array_equal(ops.convert_to_numpy(weights), ops.convert_to_numpy(expected))


@pytest.mark.parametrize("terms", [{}, {"importance": 1.0}])
def test_a_gate_that_gets_no_gradient_is_warned_of(terms, data):
    with pytest.warns(UserWarning, match="renormalize=True.*Leave `renormalize` at None"):
        router = routers.TopK(1, renormalize=True, **terms)
    assert gate_moves(router, data) == 0


@pytest.mark.parametrize("terms", [{"load_balance": 0.1}, {"z_loss": 0.1}])
def test_a_gate_may_learn_from_balance_terms_alone(terms, data):
    assert gate_moves(routers.TopK(1, renormalize=True, **terms), data) > 1e-5


@pytest.mark.parametrize("router", dict.fromkeys(row[0] for row in TABLE), ids=lambda r: r.__name__)
def test_a_signature_names_every_argument(router):
    """Editors show it: no argument hides behind `*args` or `**kwargs`."""
    parameters = inspect.signature(router).parameters
    config = router().get_config()
    assert set(parameters) == set(config)
    for name, parameter in parameters.items():
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        assert parameter.annotation is not parameter.empty
        if name not in ("name", "dtype"):
            assert parameter.default == config[name]


def test_what_a_capacity_drops_is_counted_in_the_logs(data):
    """All rows want expert 0; a capacity of half the rows drops the other half."""
    x, y = data
    router = routers.TopK(1, capacity_factor=2.0, name="rule")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(
                4, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.0)
            ),
            router,
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, y, batch_size=8, verbose=0).history
    assert logs["rule_dropped"] == [0.5]


def test_balance_terms_of_a_router_called_through_another_layer_arrive(data):
    """As in a mixture, which calls `route` itself and is one layer of a larger model."""
    x, y = data

    @keras.saving.register_keras_serializable("tests")
    class Outer(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.router = routers.TopK(2, z_loss=0.5, name="rule")

        def build(self, shape):
            self.router.build(shape)

        def call(self, scores, training=None):
            return self.router.route(scores, training=training).weights

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), Outer()])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    logs = model.fit(x, y, epochs=1, batch_size=16, verbose=0).history
    plain = model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)["loss"]
    assert logs["loss"][0] == pytest.approx(plain + 0.5 * logs["rule_z_loss"][0], rel=1e-4)


def test_masked_steps_count_in_no_term_and_take_no_capacity(rng):
    scores = rng.normal(size=(2, 4, 3)).astype("float32")
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    kept = scores[mask]
    terms = {"load_balance": 1.0, "importance": 1.0, "z_loss": 1.0}
    whole = routers.TopK(1, capacity_factor=0.5, **terms)
    alone = routers.TopK(1, capacity_factor=1.0, **terms)  # ⌈0.5 · 8 / 3⌉ = ⌈1 · 4 / 3⌉ = 2
    found = whole.route(scores, training=True, mask=mask)
    expected = alone.route(kept, training=True)
    np.testing.assert_allclose(
        ops.convert_to_numpy(found.weights)[mask], ops.convert_to_numpy(expected.weights)
    )
    assert (ops.convert_to_numpy(found.indices)[~mask] == 3).all()
    for term in (*TERMS, "dropped"):
        left, right = (each.recorded(term) for each in (whole, alone))
        assert float(left) == pytest.approx(float(right), abs=1e-6)


def test_the_mask_of_an_embedding_reaches_the_router(rng):
    router = routers.Softmax(z_loss=1.0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(5, 3, mask_zero=True),
            router,
        ]
    )
    ids = np.array([[1, 2, 0, 0]])
    model(ids, training=True)
    table = ops.convert_to_numpy(model.layers[0].embeddings)
    sizes = np.log(np.exp(table[[1, 2]]).sum(axis=-1)) ** 2
    assert float(router.recorded("z_loss")) == pytest.approx(sizes.mean(), rel=1e-4)


def test_a_mask_with_more_axes_than_the_routed_ones_is_ignored(rng):
    scores = rng.normal(size=(2, 3)).astype("float32")
    router = routers.Softmax(z_loss=1.0)
    router.route(scores, training=True, mask=np.zeros((2, 4), bool))
    assert float(router.recorded("z_loss")) > 0


def test_the_selection_bias_evens_the_load(rng):
    router = routers.TopK(1, bias_update_rate=0.05)
    scores = rng.normal([2, 0, 0, -2], size=(256, 4)).astype("float32")

    def load():
        indices = ops.convert_to_numpy(router.route(scores).indices)
        return np.bincount(indices.ravel(), minlength=4) / 256

    before = load()
    for _ in range(60):
        router(scores, training=True)
    np.testing.assert_allclose(load(), 0.25, atol=0.06)
    assert before.max() > 0.6
    bias = ops.convert_to_numpy(router.bias)
    router(scores)
    np.testing.assert_array_equal(ops.convert_to_numpy(router.bias), bias)


def test_the_selection_bias_moves_in_fit(data):
    x, y = data
    router = routers.TopK(1, bias_update_rate=0.05)
    fitted(router, x, y)
    assert np.abs(ops.convert_to_numpy(router.bias)).max() > 0


def test_noise_acts_in_training_only_and_differs_from_call_to_call(rng):
    router = routers.TopK(2, noise=1.0, seed=0)
    scores = rng.normal(size=(20, 4)).astype("float32")
    noisy = [ops.convert_to_numpy(router(scores, training=True)) for _ in range(2)]
    plain = [ops.convert_to_numpy(router(scores)) for _ in range(2)]
    assert np.abs(noisy[0] - noisy[1]).max() > 0.1
    np.testing.assert_array_equal(plain[0], plain[1])


def test_gumbel_draws_experts_with_the_softmax_probabilities():
    router = routers.Gumbel(seed=0)
    scores = np.tile(np.log(np.array([0.1, 0.2, 0.7], "float32")), (20_000, 1))
    found = router.route(scores, training=True)
    np.testing.assert_array_equal(ops.convert_to_numpy(found.indices[0]), [0, 1, 2])
    weights = ops.convert_to_numpy(found.weights)
    assert ((weights == 0) | (weights == 1)).all()
    np.testing.assert_allclose(weights.mean(axis=0), [0.1, 0.2, 0.7], atol=0.02)


def test_gumbel_gives_every_score_a_gradient(rng):
    router = routers.Gumbel(seed=0)
    scores = rng.normal(size=(5, 3)).astype("float32")
    router.build(scores.shape)
    if keras.config.backend() == "jax":
        # The seed is state: under jax.grad it would leak out of the trace.
        def weights(s):
            with keras.StatelessScope():
                return router.route(s, training=True).weights
    else:

        def weights(s):
            return router.route(s, training=True).weights

    cotangent = rng.normal(size=(5, 3)).astype("float32")
    _, (gradient,) = value_and_gradients(
        lambda s: ops.sum(ops.multiply(weights(s), cotangent)), [scores]
    )
    assert (np.abs(gradient) > 0).all()
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-5)


def test_a_temperature_is_state_and_changes_without_compiling_anew(data):
    x, _ = data
    router = routers.Softmax()
    model = keras.Sequential([keras.Input((3,)), router])
    before = model.predict(x, verbose=0)
    router.temperature = 0.5
    assert router.temperature == 0.5
    np.testing.assert_allclose(before, numpy_softmax(x), atol=1e-6)
    np.testing.assert_allclose(model.predict(x, verbose=0), numpy_softmax(2 * x), atol=1e-6)
    assert router.get_config()["temperature"] == 1.0


def test_capacity_is_known_from_the_number_of_rows():
    assert routers.TopK(2).capacity(4096, 64) is None
    assert routers.Softmax().capacity(4096, 64) is None
    assert routers.TopK(2, capacity_factor=1.25).capacity(4096, 64) == 160
    assert routers.ExpertChoice(2.0).capacity(4096, 64) == 128
    for router in (routers.TopK(2, capacity_factor=1.2), routers.ExpertChoice(1.2)):
        for rows in (0, 25, 50, 100, 4096):
            at_run_time = router.capacity(ops.convert_to_tensor(rows, dtype="int32"), 4)
            assert router.capacity(rows, 4) == int(at_run_time)


@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("top_k", routers.TopK),
        ("softmax", routers.Softmax),
        ("sparsemax", routers.Sparsemax),
        ("entmax15", routers.Entmax15),
        ("expert_choice", routers.ExpertChoice),
        ("Gumbel", routers.Gumbel),
    ],
)
def test_get_knows_every_router_by_name(name, router):
    assert type(routers.get(name)) is router


def test_get_passes_none_and_instances_through():
    router = routers.TopK(2)
    assert routers.get(None) is None
    assert routers.get(router) is router


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: routers.get("topp"), ValueError, "Received: 'topp'. Use 'topk'"),
        (lambda: routers.get(3), TypeError, "Received: 3 of type int"),
        (lambda: routers.TopK(0), ValueError, "`k` of TopK .* Received: k=0"),
        (lambda: routers.TopK(True), ValueError, "Received: k=True"),
        (lambda: routers.TopK(5).build((None, 4)), ValueError, "num_experts=4.*k=5. Use k<=4"),
        (lambda: routers.TopK(1, capacity_factor=0), ValueError, "capacity_factor=0"),
        (lambda: routers.TopK(1, noise=-1), ValueError, "noise=-1. Use noise=0.0"),
        (lambda: routers.TopK(1, bias_update_rate="a"), ValueError, "bias_update_rate='a'"),
        (lambda: routers.Softmax(-1), ValueError, "`temperature` of Softmax .* temperature=-1"),
        (lambda: routers.Gumbel(0), ValueError, "`temperature` of Gumbel"),
        (lambda: routers.ExpertChoice(0), ValueError, "`capacity_factor` of ExpertChoice"),
        (lambda: routers.Softmax(load_balance=-1), ValueError, "load_balance=-1"),
        (lambda: routers.Softmax().build((4, None)), ValueError, "it counts the experts"),
        (lambda: plait.routers.Router()(np.ones((1, 2))), NotImplementedError, "`select`"),
    ],
)
def test_a_wrong_argument_is_named(make, error, match):
    with pytest.raises(error, match=match):
        make()
