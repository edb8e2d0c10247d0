"""Any Keras models or layers as experts, any gate, any router."""

import keras
import numpy as np
import pytest
from tests.experts.templates import Subclassed
from tests.recipes import as_numpy, gate_weights, merged, randomize, top_1

import plait

D, U = 4, 3
layers = keras.layers


def sequential(name=None):
    return keras.Sequential([keras.Input((D,)), layers.Dense(U)], name=name)


def deep():
    return keras.Sequential(
        [keras.Input((D,)), layers.Dense(5, activation="tanh"), layers.Dense(U)]
    )


def unbuilt():
    return keras.Sequential([layers.Dense(5, activation="tanh"), layers.Dense(U)])


def functional():
    x = keras.Input((D,))
    return keras.Model(x, layers.Dense(U)(layers.Concatenate()([x, layers.Dense(2)(x)])))


def subclassed():
    return Subclassed(U)


def bare_layer():
    return layers.Dense(U)


def another_mixture():
    return plait.Mixture([sequential(), deep()], gate="constant")


def another_stacked_mixture():
    return plait.Mixture([deep(), deep()], gate=layers.Dense(2), router=plait.routers.TopK(1))


KINDS = [
    sequential,
    deep,
    unbuilt,
    functional,
    subclassed,
    bare_layer,
    another_mixture,
    another_stacked_mixture,
]
EXECUTIONS = ["auto", "loop"]


def softmax_gate(count):
    return keras.Sequential([keras.Input((D,)), layers.Dense(count, activation="softmax")])


def data(rng, size=6):
    return rng.normal(size=(size, D)).astype("float32")


def stays_and_learns(experts, rng, execution="auto"):
    """The formula over the experts before and after training, through the caller's own objects."""
    gate, x = softmax_gate(len(experts)), data(rng)
    mixture = plait.Mixture(experts, gate, execution=execution)
    for _ in range(2):
        found = as_numpy(mixture(x))
        outputs = [expert(x) for expert in experts]
        np.testing.assert_allclose(found, as_numpy(merged(gate(x), outputs)), atol=1e-5)
        mixture.compile("adam", "mse")
        mixture.fit(x, np.ones((len(x), U), "float32"), verbose=0)
        assert np.abs(as_numpy(mixture(x)) - found).max() > 1e-5
    return mixture


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    "execution",
    [pytest.param(e, marks=[pytest.mark.slow] * (e == "loop")) for e in EXECUTIONS],
)
def test_experts_of_one_kind(kind, execution, rng):
    stays_and_learns([kind(), kind()], rng, execution)


def test_experts_of_every_kind_at_once(rng):
    mixture = stays_and_learns([kind() for kind in KINDS], rng)
    assert mixture.num_experts == len(KINDS)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_names_never_clash(execution, rng):
    """Two models called net with layers called dense; the caller's objects keep their names."""

    def net(units):
        stack = [layers.Dense(units, name="dense"), layers.Dense(U, name="dense_1")]
        return keras.Sequential([keras.Input((D,)), *stack], name="net")

    experts = [net(5), net(5), net(6)]
    stays_and_learns(experts, rng, execution)
    for expert in experts:
        assert expert.name == "net"
        assert [layer.name for layer in expert.layers] == ["dense", "dense_1"]
        assert expert.weights[0].path.startswith("net/dense/") or "net" in expert.weights[0].path


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_experts_of_one_name_are_trained_step_after_step_as_those_of_two(execution, rng):
    """Keras on PyTorch clears gradients by path: those of a namesake must not add up."""
    x, y = data(rng, 16), rng.normal(size=(16, U)).astype("float32")
    results = []
    for names in ["net", "net"], ["one", "two"]:
        stacks = [[keras.Input((D,)), layers.Dense(U, name="dense")] for _ in names]
        experts = [
            keras.Sequential(stack, name=name) for stack, name in zip(stacks, names, strict=True)
        ]
        for number, expert in enumerate(experts):
            expert.weights[0].assign(0.1 * (1 + number) * np.ones((D, U)))
        mixture = plait.Mixture(experts, gate="uniform", execution=execution)
        mixture.compile(keras.optimizers.SGD(0.1), "mse")
        mixture.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        results.append([expert.get_weights()[0] for expert in experts])
    np.testing.assert_allclose(results[0], results[1], atol=1e-6)


def test_a_mixture_may_share_the_name_of_its_experts(rng):
    x = data(rng)
    experts = [sequential("net"), sequential("net")]
    inputs = keras.Input((D,))
    model = keras.Model(inputs, plait.Mixture(experts, name="net")(inputs))
    assert model.predict(x, verbose=0).shape == (6, U)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_trained_models_stay_as_they_are_and_train_on(execution, rng):
    x, y = data(rng, 16), rng.normal(size=(16, U)).astype("float32")
    experts = [deep(), deep()]
    for expert in experts:
        expert.compile("adam", "mse")
        expert.fit(x, y, verbose=0)
    before = [expert.predict(x, verbose=0) for expert in experts]
    mixture = plait.Mixture(experts, gate="uniform", execution=execution)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), sum(before) / 2, atol=1e-5)
    for expert, old in zip(experts, before, strict=True):
        np.testing.assert_allclose(expert.predict(x, verbose=0), old, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_frozen_experts_stay_frozen(execution, optimizer, rng):
    """Also from an optimizer that decays weights, and in number of trainable weights."""
    x, y = data(rng, 16), rng.normal(size=(16, U)).astype("float32")
    experts = [deep(), deep()]
    for expert in experts:
        expert.trainable = False
    before = [expert.get_weights() for expert in experts]
    gate = softmax_gate(2)
    mixture = plait.Mixture(experts, gate, execution=execution)
    mixture.compile(optimizer, "mse")
    assert len(mixture.trainable_variables) == len(gate.trainable_variables)
    gate_before = gate.get_weights()
    mixture.fit(x, y, epochs=2, verbose=0)
    for expert, old in zip(experts, before, strict=True):
        assert not expert.trainable
        for now, then in zip(expert.get_weights(), old, strict=True):
            np.testing.assert_array_equal(now, then)
    assert (gate.get_weights()[0] != gate_before[0]).any()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_one_frozen_layer_of_each_expert_stays_frozen(execution, rng):
    experts = [deep(), deep(), deep()]
    for expert in experts:
        expert.layers[0].trainable = False
    before = [expert.get_weights() for expert in experts]
    mixture = plait.Mixture(experts, softmax_gate(3), execution=execution)
    mixture.compile("adam", "mse")
    mixture.fit(data(rng), np.ones((6, U), "float32"), verbose=0)
    for expert, old in zip(experts, before, strict=True):
        now = expert.get_weights()
        np.testing.assert_array_equal(now[0], old[0])
        np.testing.assert_array_equal(now[1], old[1])
        assert (now[2] != old[2]).any()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_one_frozen_expert_among_alike_ones(execution, rng):
    experts = [deep(), deep(), deep()]
    experts[1].trainable = False
    before = [expert.get_weights()[0] for expert in experts]
    mixture = plait.Mixture(experts, softmax_gate(3), execution=execution)
    mixture.compile("adam", "mse")
    mixture.fit(data(rng), np.ones((6, U), "float32"), verbose=0)
    moved = [(e.get_weights()[0] != b).any() for e, b in zip(experts, before, strict=True)]
    assert moved == [True, False, True]


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_experts_that_are_frozen_later_are_frozen_from_the_next_compile_on(execution, rng):
    experts = [deep(), deep()]
    mixture = plait.Mixture(experts, softmax_gate(2), execution=execution)
    mixture.compile("adam", "mse")
    mixture.fit(data(rng), np.ones((6, U), "float32"), verbose=0)
    for expert in experts:
        expert.trainable = False
    before = [expert.get_weights()[0] for expert in experts]
    mixture.compile("adam", "mse")
    mixture.fit(data(rng), np.ones((6, U), "float32"), verbose=0)
    for expert, old in zip(experts, before, strict=True):
        np.testing.assert_array_equal(expert.get_weights()[0], old)


def test_a_frozen_mixture_trains_nothing(rng):
    mixture = plait.Mixture([deep(), deep()], softmax_gate(2))
    mixture.trainable = False
    assert mixture.trainable_variables == []
    assert len(mixture.non_trainable_variables) == len(mixture.variables)


def outputs_of(structure):
    x = keras.Input((D,))
    if structure == "list":
        return keras.Model(x, [layers.Dense(2)(x), layers.Dense(U)(x)])
    if structure == "dict":
        return keras.Model(x, {"a": layers.Dense(2)(x), "b": layers.Dense(U)(x)})
    steps = layers.Dense(U)(layers.RepeatVector(5)(x))
    return keras.Model(x, {"a": layers.Dense(2)(x), "steps": [steps]})


@pytest.mark.parametrize("structure", ["list", "dict", "nested"])
@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("router", [None, "top_k"])
def test_each_leaf_of_the_outputs_is_merged_by_the_same_weights(structure, execution, router, rng):
    experts, x = [outputs_of(structure) for _ in range(3)], data(rng)
    gate = softmax_gate(3)
    weights = gate(x)
    if router:
        router = plait.routers.TopK(2, from_logits=False)
        weights = gate_weights(np.log(as_numpy(weights)), 2)
    mixture = plait.Mixture(experts, gate, router=router, execution=execution)
    found = mixture.predict(x, verbose=0)
    expected = keras.tree.map_structure(
        lambda *outputs: as_numpy(merged(weights, list(outputs))), *[e(x) for e in experts]
    )
    keras.tree.assert_same_structure(found, expected)
    for left, right in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    symbolic = mixture(keras.Input((D,)))
    shapes = [tuple(leaf.shape) for leaf in keras.tree.flatten(symbolic)]
    assert shapes == [(None, *leaf.shape[1:]) for leaf in keras.tree.flatten(expected)]


def test_a_mixture_with_several_outputs_is_trained_with_a_loss_for_each(rng):
    x, experts = data(rng), [outputs_of("dict") for _ in range(2)]
    mixture = plait.Mixture(experts, softmax_gate(2))
    mixture.compile("adam", {"a": "mse", "b": "mae"})
    y = {"a": np.ones((6, 2), "float32"), "b": np.ones((6, U), "float32")}
    losses = mixture.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


# name, gate, weights that it gives to scores computed from x
def test_the_default_gate_is_a_softmax_of_a_linear_map_of_the_flattened_features(rng):
    x = rng.normal(size=(6, 2, D)).astype("float32")
    experts = [keras.Sequential([layers.Flatten(), layers.Dense(U)]) for _ in range(3)]
    mixture = plait.Mixture(experts)
    mixture(x)
    kernel, bias = (as_numpy(v.value) for v in mixture.gate.trainable_variables)
    assert kernel.shape == (2 * D, 3)
    scores = x.reshape(6, -1).astype("float64") @ kernel + bias
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(mixture.gate_weights(x), expected, atol=1e-5)


@pytest.mark.parametrize(("gate", "learns"), [("constant", True), ("uniform", False)])
def test_gates_that_do_not_look_at_the_input(gate, learns, rng):
    x, experts = data(rng, 16), [deep(), deep(), functional()]
    mixture = plait.Mixture(experts, gate=gate)
    np.testing.assert_allclose(mixture.gate_weights(x), np.full((16, 3), 1 / 3), atol=1e-6)
    expected = sum(as_numpy(expert(x)) for expert in experts) / 3
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
    mixture.compile(keras.optimizers.SGD(0.5), "mse")
    mixture.fit(x, as_numpy(experts[2](x)), epochs=3, verbose=0)
    weights = mixture.gate_weights(x)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (np.abs(weights - 1 / 3) > 1e-4).any() == learns
    np.testing.assert_allclose(weights, np.repeat(weights[:1], 16, 0), atol=1e-6)


def test_without_a_router_the_output_of_the_gate_is_the_weights_as_it_is(rng):
    x, experts = data(rng), [deep(), deep()]
    gate = randomize(layers.Dense(2, name="raw"), rng)
    with pytest.warns(UserWarning, match="'raw' ends without a softmax and there is no router"):
        mixture = plait.Mixture(experts, gate)
    np.testing.assert_allclose(mixture.gate_weights(x), as_numpy(gate(x)), atol=1e-6)
    expected = as_numpy(merged(gate(x), [expert(x) for expert in experts]))
    np.testing.assert_allclose(as_numpy(mixture(x)), expected, atol=1e-5)


@pytest.mark.parametrize(
    "router",
    [
        "softmax",
        plait.routers.Softmax(0.5),
        keras.saving.serialize_keras_object(plait.routers.Softmax()),
    ],
    ids=["name", "instance", "config"],
)
def test_a_router_is_a_name_an_instance_or_a_config(router, rng):
    x, gate = data(rng), layers.Dense(2)
    mixture = plait.Mixture([deep(), deep()], gate, router=router)
    weights = mixture.gate_weights(x)
    scores = as_numpy(gate(x)) / (0.5 if isinstance(router, plait.routers.Softmax) else 1.0)
    np.testing.assert_allclose(weights, as_numpy(gate_weights(scores)), atol=1e-5)


def test_a_gate_that_is_a_model_of_its_own(rng):
    gate = keras.Sequential([layers.Dense(7, activation="tanh"), layers.Dense(2)], name="net")
    experts, x = [sequential("net"), sequential("net")], data(rng)
    mixture = plait.Mixture(experts, gate, router="softmax")
    expected = merged(gate_weights(gate(x)), [expert(x) for expert in experts])
    np.testing.assert_allclose(as_numpy(mixture(x)), as_numpy(expected), atol=1e-5)
    assert mixture.gate is gate
    assert gate.name == "net"


def test_a_gate_with_softmax_under_a_router_that_takes_logits_is_warned_about_once():
    with pytest.warns(UserWarning, match="'gating' ends in a softmax, but Softmax takes logits"):
        plait.Mixture(
            [deep(), deep()], layers.Dense(2, activation="softmax", name="gating"), router="softmax"
        )


def test_weights_per_class(rng):
    """Weights `(b, u, e)` over outputs `(b, u)`."""
    x, experts = data(rng), [deep(), deep()]
    gate = keras.Sequential(
        [keras.Input((D,)), layers.Dense(U * 2), layers.Reshape((U, 2)), layers.Softmax()]
    )
    mixture = plait.Mixture(experts, gate)
    outputs = np.stack([as_numpy(expert(x)) for expert in experts])
    expected = np.einsum("bue,ebu->bu", as_numpy(gate(x)), outputs)
    np.testing.assert_allclose(mixture.predict(x, verbose=0), expected, atol=1e-5)
    assert mixture.gate_weights(x).shape == (6, U, 2)
    assert mixture.expert_outputs(x).shape == (6, U, 2)


def test_a_hierarchy_of_mixtures_equals_the_nested_formula(rng):
    leaves = [[deep(), deep()], [deep(), functional()]]
    gates = [softmax_gate(2) for _ in range(3)]
    inner = [plait.Mixture(leaves[i], gates[i]) for i in range(2)]
    outer = plait.Mixture(inner, gates[2])
    x = data(rng)
    expected = merged(
        gates[2](x), [merged(gates[i](x), [leaf(x) for leaf in leaves[i]]) for i in range(2)]
    )
    np.testing.assert_allclose(outer.predict(x, verbose=0), as_numpy(expected), atol=1e-5)


def test_experts_that_drop_what_overflows_run_in_one_call(recwarn, rng):
    """Mixtures with a capacity, as experts of one architecture: no backend has to loop."""
    routers = [plait.routers.TopK(1, capacity_factor=1.0) for _ in range(2)]
    inner = [plait.Mixture([deep(), deep()], router=router) for router in routers]
    gate, x = softmax_gate(2), data(rng)
    expected = merged(gate(x), [mixture(x) for mixture in inner])
    found = plait.Mixture(inner, gate).predict(x, verbose=0)
    np.testing.assert_allclose(found, as_numpy(expected), atol=1e-5)
    assert not [w for w in recwarn if "one after another" in str(w.message)]


@pytest.mark.parametrize("router", ["softmax", top_1()], ids=["dense", "sparse"])
@pytest.mark.parametrize("execution", EXECUTIONS)
def test_alike_experts_may_have_no_variables(execution, router, rng):
    experts = [layers.Activation("tanh") for _ in range(3)]
    x = data(rng)
    mixture = plait.Mixture(experts, "constant", router=router, execution=execution)
    np.testing.assert_allclose(as_numpy(mixture(x)), np.tanh(x), atol=1e-6)


def test_one_model_may_be_an_expert_twice(rng):
    one, other, x = deep(), deep(), data(rng)
    gate = softmax_gate(3)
    mixture = plait.Mixture([one, other, one], gate)
    expected = merged(gate(x), [one(x), other(x), one(x)])
    np.testing.assert_allclose(as_numpy(mixture(x)), as_numpy(expected), atol=1e-5)
    mixture.compile("adam", "mse")
    mixture.fit(x, np.ones((6, U), "float32"), verbose=0)
    expected = merged(gate(x), [one(x), other(x), one(x)])
    np.testing.assert_allclose(as_numpy(mixture(x)), as_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("router", ["softmax", plait.routers.TopK(2)], ids=["dense", "sparse"])
def test_no_rows_give_an_empty_batch(router, rng):
    mixture = plait.Mixture([deep(), deep()], layers.Dense(2), router=router)
    empty = mixture(data(rng)[:0])
    assert tuple(empty.shape) == (0, U)
