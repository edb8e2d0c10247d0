"""A mixture's weights and experts' outputs as outputs of a Keras model; features of one expert."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy

import plait

D, U = 4, 3


def net(*hidden):
    stack = [keras.layers.Dense(units, activation="tanh") for units in hidden]
    return keras.Sequential([keras.Input((D,)), *stack, keras.layers.Dense(U)])


KINDS = {
    "unlike": lambda: plait.Mixture([net(), net(5)], name="moe"),
    "copied": lambda: plait.Mixture([net(5), net(5)], copy_experts=True, name="moe"),
    "sparse": lambda: plait.Mixture(net(5), num_experts=4, router="topk", name="moe"),
    "tasks": lambda: plait.MultiGateMixture([net(), net(5)], tasks=["a", "b"], name="moe"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_are_those_of_the_mixture(kind, rng, tmp_path):
    """Also from a file, and in a graph around a mixture that is a layer of another model."""
    mix = KINDS[kind]()
    inputs = keras.Input((D,))
    y = mix(keras.layers.Rescaling(2.0)(inputs))
    outer = keras.Model(inputs, keras.layers.Dense(1)(y["a"] if kind == "tasks" else y))
    inside = keras.Model(outer.inputs, mix.with_parts()(mix.input))
    x = rng.normal(size=(6, D)).astype("float32")
    found = inside.predict(x, verbose=0)
    expected = {
        "output": as_numpy(mix(2 * x)),
        "weights": mix.gate_weights(2 * x),
        "experts": mix.expert_outputs(2 * x),
    }
    inside.save(tmp_path / "inside.keras")
    loaded = keras.saving.load_model(tmp_path / "inside.keras").predict(x, verbose=0)
    for parts in (found, loaded):
        keras.tree.map_structure(
            lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), parts, expected
        )
    specs = keras.tree.map_structure(lambda spec: tuple(spec.shape)[1:], inside.output)
    assert specs == {
        name: keras.tree.map_structure(lambda array: array.shape[1:], part)
        for name, part in expected.items()
    }


def test_the_input_of_a_mixture_that_gets_a_mask_is_the_tensor_alone():
    """Keras counts the mask among a call's inputs; parts are made of what was passed."""
    tokens = keras.Input((6,), dtype="int32")
    hidden = keras.layers.Embedding(11, 4, mask_zero=True)(tokens)
    mix = plait.Mixture(
        keras.layers.Dense(4), keras.layers.Dense(3), num_experts=3, router=plait.routers.TopK(1)
    )
    mix(hidden)
    assert mix.input is hidden
    parts = mix.with_parts()
    inside = keras.Model(tokens, parts(mix.input))
    assert parts.input is hidden
    x = np.array([[1, 2, 3, 0, 0, 0]])
    found = inside.predict(x, verbose=0)
    embedded = keras.Model(tokens, hidden)(x)
    expected = as_numpy(mix(embedded, mask=x != 0))
    np.testing.assert_allclose(found["output"], expected, atol=1e-6)
    assert np.any(found["output"][:, :3])


def test_the_input_of_a_mixture_of_several_inputs_has_their_structure():
    inputs = {name: keras.Input((4,), name=name) for name in ("text", "image")}
    mix = plait.Mixture([net(), net(5)], expert_inputs=["text", "image"], gate_inputs="image")
    mix(inputs)
    assert mix.input == inputs
    keras.Model(inputs, mix.with_parts()(mix.input))


def test_what_is_set_in_the_mixture_is_what_its_parts_are(rng):
    mix = KINDS["unlike"]()
    parts = mix.with_parts()
    x = rng.normal(size=(6, D)).astype("float32")
    before = parts.predict(x, verbose=0)
    mix.experts[1].layers[-1].bias.assign([10.0, 0.0, 0.0])
    after = parts.predict(x, verbose=0)
    gain = (after["experts"] - before["experts"])[:, 1, 0]
    np.testing.assert_allclose(gain, 10.0, rtol=1e-5)
    assert parts.name == "moe_with_parts"
    assert [v.path for v in parts.variables] == [v.path for v in mix.variables]


def test_a_model_of_parts_trains_on_any_of_them(rng):
    """Such as on the weights themselves, where the right expert is known."""
    parts = plait.Mixture(net(5), num_experts=2).with_parts()
    x = rng.normal(size=(32, D)).astype("float32")
    y = {"output": x[:, :U], "weights": np.eye(2, dtype="float32")[(x[:, 0] > 0).astype(int)]}
    parts.compile(
        keras.optimizers.Adam(0.05),
        {"output": "mse", "weights": "categorical_crossentropy", "experts": None},
    )
    y["experts"] = np.zeros((32, 2, U), "float32")
    losses = parts.fit(x, y, epochs=8, verbose=0).history["weights_loss"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["unlike", "copied", "sparse"])
def test_inner_features_of_one_expert_are_reached(kind, rng):
    """Features and their gradients, as saliency maps take them."""
    mix = KINDS[kind]()
    expert = mix.expert(1)
    x = rng.normal(size=(3, D)).astype("float32")
    features = keras.Model(expert.inputs[0], [expert.layers[-2].output, expert.outputs[0]])
    hidden, output = as_numpy(features(x))
    assert hidden.shape == (3, 5)
    np.testing.assert_allclose(output, mix.expert_outputs(x)[:, 1], atol=1e-6)
    _, (slope,) = value_and_gradients(lambda h: ops.sum(expert.layers[-1](h)[:, 0]), [hidden])
    kernel = as_numpy(expert.layers[-1].kernel)
    np.testing.assert_allclose(slope, np.tile(kernel[:, 0], (3, 1)), atol=1e-6)


def test_a_summary_shows_the_experts():
    """Those that were passed in with their layers, stacked ones in a line."""
    shown = {}
    for kind, mix in (("unlike", KINDS["unlike"]()), ("stacked", KINDS["sparse"]())):
        lines = []
        keras.Sequential([keras.Input((D,)), mix]).summary(
            expand_nested=True, print_fn=lines.append
        )
        shown[kind] = "\n".join(map(str, lines))
    for expert in ("(LinearGate)", "(Sequential)", "(Dense)"):
        assert expert in shown["unlike"]
    assert "(StackedExperts)" in shown["stacked"]


@pytest.mark.parametrize("kind", ["unlike", "sparse"])
def test_a_mixture_can_be_drawn_as_a_graph_of_its_parts_and_its_summary_lists_them(kind, rng):
    """`plot_model` looks into functional models only; these share the mixture's variables."""
    mix = KINDS[kind]()
    inputs = keras.Input((D,))
    mix(inputs)
    scores = mix.gate(inputs)
    weights = scores if mix.router is None else mix.router(scores)
    outputs = [
        keras.Model(inputs, mix.expert(i)(inputs), name=f"expert_{i}")(inputs)
        for i in range(mix.num_experts)
    ]
    graph = keras.Model(inputs, plait.layers.WeightedMerge()([weights, *outputs]))
    x = rng.normal(size=(5, D)).astype("float32")
    np.testing.assert_allclose(as_numpy(graph(x)), as_numpy(mix(x)), atol=1e-6)
    source = keras.utils.model_to_dot(graph, expand_nested=True, show_layer_names=True).to_string()
    inner = [layer.name for i in range(mix.num_experts) for layer in mix.expert(i).layers]
    inner += [f"expert_{i}" for i in range(mix.num_experts)]
    assert all(name in source for name in [mix.gate.name, *inner])
    lines = []
    keras.Model(inputs, mix(inputs)).summary(
        expand_nested=True, print_fn=lambda line, **_: lines.append(line)
    )
    assert all(layer.name in "".join(lines) for layer in mix.layers)
