"""Upcycled models compute what they came from at the start, and are ordinary models after."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.recipes import gradients

import plait


def block(name, units=6):
    """A feed-forward block on steps of three features."""
    return keras.Sequential(
        [keras.layers.Dense(units, "tanh", name="up"), keras.layers.Dense(3, name="down")],
        name=name,
    )


def trained(model, rng, shape):
    """The model after some steps on random targets."""
    x = rng.normal(size=(32, *shape)).astype("float32")
    y = rng.normal(size=model.predict(x, verbose=0).shape)
    model.compile("adam", "mse")
    model.fit(x, y, epochs=2, verbose=0)
    return model


def sequential(rng):
    layers = [keras.Input((5,)), keras.layers.Dense(8, "relu", name="hidden")]
    layers += [keras.layers.BatchNormalization(), keras.layers.Dense(2, name="head")]
    return trained(keras.Sequential(layers), rng, (5,))


def residual(rng):
    """A functional model with a residual feed-forward block on the steps of a sequence."""
    x = keras.Input((4, 3))
    hidden = keras.layers.LayerNormalization()(x)
    hidden = keras.layers.Add()([x, block("feed_forward")(hidden)])
    return trained(keras.Model(x, keras.layers.Dense(2, name="head")(hidden)), rng, (4, 3))


def nested(rng):
    """A model whose layer of interest lies in a model in a model."""
    x = keras.Input((3,))
    middle = keras.Sequential([keras.layers.Dense(3), block("inner")], name="middle")
    return trained(keras.Model(x, keras.layers.Dense(1)(middle(x))), rng, (3,))


def pooled(rng):
    """A block that turns a sequence into one vector: its mixture weighs per example."""
    body = [keras.layers.Dense(4, "relu"), keras.layers.GlobalAveragePooling1D()]
    layers = [keras.Input((4, 3)), keras.Sequential(body, name="body"), keras.layers.Dense(1)]
    return trained(keras.Sequential(layers), rng, (4, 3))


def adapted(rng):
    """A layer before the mixture, and one inside its experts, know statistics of the data."""
    data = rng.normal(3, 5, size=(50, 3))
    first, second = (keras.layers.Normalization() for _ in "ab")
    first.adapt(data)
    second.adapt(0.1 * data)
    block = keras.Sequential([keras.Input((3,)), second, keras.layers.Dense(4)], name="block")
    model = keras.Sequential([keras.Input((3,)), first, block, keras.layers.Dense(1)])
    return trained(model, rng, (3,))


CASES = [
    (adapted, "block", None),
    (adapted, "block", plait.routers.TopK(2)),
    (sequential, ["hidden", "head"], None),
    (sequential, None, plait.routers.TopK(2)),
    (residual, "feed_forward", None),
    (residual, "feed_forward", plait.routers.TopK(1, renormalize=True, load_balance=0.01)),
    (residual, "feed_forward", "sparsemax"),
    (residual, "feed_forward", plait.routers.TopK(2)),
    (residual, "up", plait.routers.TopK(2)),
    (nested, "inner", plait.routers.TopK(2)),
    (nested, "down", None),
    (pooled, "body", plait.routers.TopK(2)),
]


@pytest.mark.parametrize(("make", "layers", "router"), CASES)
def test_same_function_at_the_start(rng, make, layers, router):
    model = make(rng)
    before = [weight.copy() for weight in model.get_weights()]
    new, difference = plait.training.upcycle(model, layers, num_experts=3, router=router)
    x = rng.normal(size=(7, *model.input_shape[1:])).astype("float32")
    found = np.abs(new.predict(x, verbose=0) - model.predict(x, verbose=0)).max()
    assert max(found, difference) < 1e-5
    assert new.count_params() > model.count_params()
    for old, kept in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, kept)


def test_difference_is_measured_on_the_data_given(rng):
    model = sequential(rng)
    x = rng.normal(size=(9, 5)).astype("float32")
    new, difference = plait.training.upcycle(model, "hidden", noise=0.5, seed=1, x=x)
    expected = np.abs(new.predict(x, verbose=0) - model.predict(x, verbose=0)).max()
    assert difference == pytest.approx(float(expected), rel=1e-4)


def test_noise_parts_the_experts_as_much_as_it_says(rng):
    """The relative deviation of kernels is `noise`, biases stay, and the seed repeats it."""
    model = keras.Sequential([keras.Input((40,)), keras.layers.Dense(50, name="wide")])
    first, same = (
        plait.training.upcycle(model, "wide", 3, noise=0.1, seed=4).model.get_layer("wide")
        for _ in range(2)
    )
    kernel, bias = model.get_layer("wide").get_weights()
    for i in range(3):
        noisy, kept = first.expert(i).get_weights()
        assert np.std(noisy - kernel) / np.std(kernel) == pytest.approx(0.1, rel=0.1)
        np.testing.assert_array_equal(kept, bias)
        np.testing.assert_array_equal(noisy, same.expert(i).get_weights()[0])
    assert np.abs(first.expert(0).get_weights()[0] - first.expert(1).get_weights()[0]).max() > 0


def test_gradients_reach_every_expert_and_the_gate(rng):
    model = sequential(rng)
    new = plait.training.upcycle(model, "hidden", num_experts=3, noise=0.1).model
    x = rng.normal(size=(20, 5)).astype("float32")
    _, found, _ = gradients(lambda: ops.sum(new(x) ** 2), new.trainable_variables)
    assert all(np.abs(gradient).max() > 0 for gradient in found)
    mixture = new.get_layer("hidden")
    stacked = [g for g in found if g.ndim == 3 and g.shape[0] == 3]
    assert stacked
    assert all(np.abs(g).max(axis=(1, 2)).min() > 0 for g in stacked)
    assert mixture.gate.built


def test_trains_saves_and_loads(rng, tmp_path):
    model = residual(rng)
    new = plait.training.upcycle(model, "feed_forward", 3, plait.routers.TopK(2)).model
    x = rng.normal(size=(16, 4, 3)).astype("float32")
    y = rng.normal(size=(16, 4, 2)).astype("float32")
    new.compile("adam", "mse")
    new.fit(x, y, epochs=2, verbose=0)
    new.save(tmp_path / "upcycled.keras")
    loaded = keras.models.load_model(tmp_path / "upcycled.keras")
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), new.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )


def test_without_a_router_the_gate_gives_the_weights(rng):
    """As in `Mixture(router=None)`: its output sums to one, and so the function is kept."""
    new = plait.training.upcycle(residual(rng), "feed_forward", 3).model
    mixture = new.get_layer("feed_forward")
    assert mixture.router is None
    x = rng.normal(size=(2, 4, 3)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(mixture.gate(x)), mixture.gate_weights(x))
    np.testing.assert_allclose(mixture.gate_weights(x).sum(axis=-1), 1, rtol=1e-5)


def test_a_router_of_probabilities_gets_probabilities(rng):
    router = plait.routers.TopK(2, from_logits=False)
    new, difference = plait.training.upcycle(residual(rng), "feed_forward", 3, router)
    assert difference < 1e-5
    assert new.get_layer("feed_forward").router is not router


def test_steps_of_a_block_are_routed_one_by_one(rng):
    new = plait.training.upcycle(residual(rng), "feed_forward", 3, "top_k").model
    assert new.get_layer("feed_forward").weights_shape() == (None, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": "hiden"}, r"Received: 'hiden'\. Use 'hidden'"),
        ({"layers": []}, r"layers=\[\] for .* with layers 'hidden'"),
        ({"layers": "hidden", "noise": -1.0}, "noise=-1.0"),
        ({"layers": "hidden", "num_experts": 0}, "num_experts=0"),
    ],
)
def test_wrong_arguments(rng, arguments, match):
    with pytest.raises(ValueError, match=match):
        plait.training.upcycle(sequential(rng), **arguments)


def test_a_layer_of_two_inputs():
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Add(name="sum")([x, keras.layers.Dense(3)(x)]))
    with pytest.raises(ValueError, match=r"one input\. Received: 'sum'"):
        plait.training.upcycle(model, "sum")


def test_a_layer_used_twice_becomes_a_mixture_used_twice():
    x = keras.Input((3,))
    shared = keras.layers.Dense(3, name="shared")
    new, difference = plait.training.upcycle(keras.Model(x, shared(shared(x))), "shared", 2)
    assert difference < 1e-5
    assert len(new.layers) == 2


def test_a_layer_that_cannot_be_copied():
    class Stubborn(keras.layers.Dense):
        def __init__(self, units, secret, **kwargs):
            super().__init__(units, **kwargs)
            self.secret = secret

    model = keras.Sequential([keras.Input((3,)), Stubborn(2, secret=1, name="stubborn")])
    with pytest.raises(ValueError, match="'stubborn', whose copy failed"):
        plait.training.upcycle(model, "stubborn")


def test_a_model_of_integers_needs_data(rng):
    model = keras.Sequential(
        [keras.Input((4,), dtype="int32"), keras.layers.Embedding(9, 3), block("block")]
    )
    with pytest.raises(ValueError, match="an input of dtype int32"):
        plait.training.upcycle(model, "block")
    x = rng.integers(0, 9, (6, 4))
    assert plait.training.upcycle(model, "block", x=x).difference < 1e-5


def test_needs_a_model_whose_layers_show():
    with pytest.raises(TypeError, match="of type Dense"):
        plait.training.upcycle(keras.layers.Dense(2))


def test_needs_a_built_model():
    with pytest.raises(ValueError, match="'unseen', which has seen no input"):
        plait.training.upcycle(keras.Sequential([keras.layers.Dense(2)], name="unseen"))


@pytest.mark.parametrize("router", [None, plait.routers.TopK(2)], ids=["all", "top 2"])
@pytest.mark.parametrize("kind", ["sequential", "functional"])
@pytest.mark.parametrize("mask_zero", [False, True])
@pytest.mark.filterwarnings("ignore:")  # Keras says of such a block that it drops the mask
def test_a_block_between_masked_steps(kind, router, mask_zero, rng):
    """Keras counts a mask as an input; a functional block is rebuilt for single steps."""
    tokens = keras.Input((None,), dtype="int32")
    steps = keras.layers.Embedding(9, 4, mask_zero=mask_zero)(tokens)
    if kind == "functional":
        inside = keras.Input((None, 4))
        hidden = keras.layers.Dense(8, "tanh")(inside)
        feed_forward = keras.Model(inside, keras.layers.Dense(4)(hidden), name="feed_forward")
    else:
        parts = [keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)]
        feed_forward = keras.Sequential(parts, name="feed_forward")
    summed = keras.layers.Add()([steps, feed_forward(steps)])
    model = keras.Model(tokens, keras.layers.Dense(3)(summed))
    x = rng.integers(0, 9, (3, 5)).astype("int32")
    found = plait.training.upcycle(model, "feed_forward", num_experts=3, router=router, x=x)
    assert found.difference < 1e-5
    mixture = found.model.get_layer("feed_forward")
    assert mixture.weights_shape() == (None, None, 3)
    assert mixture.state.dispatches == (router is not None)
