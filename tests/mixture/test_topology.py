"""Who reads what: one input or many, shared or not, by key, position or path."""

import keras
import numpy as np
import pytest
from tests.recipes import as_numpy, gate_weights, merged, randomize, top_1

import plait

U = 3


def net(rng, width):
    return randomize(keras.Sequential([keras.Input((width,)), keras.layers.Dense(U)]), rng)


def joined(rng, structure):
    """A functional model over a structure of inputs."""
    if isinstance(structure, dict):  # Keras wants the names of the inputs to be the keys
        inputs = {key: keras.Input((width,), name=key) for key, width in structure.items()}
    else:
        inputs = [keras.Input((width,)) for width in structure]
    flat = keras.layers.Concatenate()(keras.tree.flatten(inputs))
    return randomize(keras.Model(inputs, keras.layers.Dense(U)(flat)), rng)


def whole(inputs):
    return inputs


# name, widths of the input, widths that each expert reads, `expert_inputs`, how each expert's part
# is taken, `gate_inputs`, how the gate's part is taken
ROWS = [
    ("one input", 4, [4, 4], None, [whole] * 2, None, whole),
    (
        "separate inputs in a dict",
        {"image": 4, "text": 2, "meta": 3},
        [4, 2],
        ["image", "text"],
        [lambda i: i["image"], lambda i: i["text"]],
        "meta",
        lambda i: i["meta"],
    ),
    (
        "separate inputs in a list",
        [4, 2, 3],
        [4, 2],
        [0, 1],
        [lambda i: i[0], lambda i: i[1]],
        2,
        lambda i: i[2],
    ),
    (
        "some shared, some not",
        {"a": 4, "b": 4},
        [4, 4, 4],
        ["a", "b", "a"],
        [lambda i: i["a"], lambda i: i["b"], lambda i: i["a"]],
        "a",
        lambda i: i["a"],
    ),
    (
        "one part for all experts, another for the gate",
        {"x": 4, "meta": 3},
        [4, 4],
        "x",
        [lambda i: i["x"]] * 2,
        "meta",
        lambda i: i["meta"],
    ),
    (
        "paths into nested inputs",
        {"image": 4, "text": {"title": 2, "body": 3}},
        [2, 3],
        [("text", "title"), ("text", "body")],
        [lambda i: i["text"]["title"], lambda i: i["text"]["body"]],
        "image",
        lambda i: i["image"],
    ),
    (
        "one path for all",
        {"text": [2, {"body": 3}], "meta": 4},
        [3, 3],
        ("text", 1, "body"),
        [lambda i: i["text"][1]["body"]] * 2,
        ("text", 0),
        lambda i: i["text"][0],
    ),
    (
        "an expert that reads several parts",
        {"a": 4, "b": 2, "c": 3},
        [[4, 2], 3],
        [["a", "b"], "c"],
        [lambda i: [i["a"], i["b"]], lambda i: i["c"]],
        "c",
        lambda i: i["c"],
    ),
    (
        "an expert that reads the whole input",
        {"a": 4, "b": 2},
        [{"a": 4, "b": 2}, 2],
        [None, "b"],
        [whole, lambda i: i["b"]],
        "a",
        lambda i: i["a"],
    ),
    (
        "everybody reads a dict",
        {"a": 4, "b": 2},
        [{"a": 4, "b": 2}] * 2,
        None,
        [whole] * 2,
        "b",
        lambda i: i["b"],
    ),
    (
        "positions from the end",
        [4, 2, 3],
        [3, 3],
        -1,
        [lambda i: i[2]] * 2,
        0,
        lambda i: i[0],
    ),
]
every_topology = pytest.mark.parametrize(
    ("widths", "reads", "expert_inputs", "takes", "gate_inputs", "gate_takes"),
    [row[1:] for row in ROWS],
    ids=[row[0] for row in ROWS],
)


def made(rng, widths, reads, gate_takes):
    experts = [net(rng, r) if isinstance(r, int) else joined(rng, r) for r in reads]
    gate_width = gate_takes(widths)
    stack = [keras.layers.Dense(len(reads), activation="softmax")]
    gate = randomize(keras.Sequential([keras.Input((gate_width,)), *stack]), rng)
    return experts, gate


def data(rng, widths, size=6):
    return keras.tree.map_structure(
        lambda width: rng.normal(size=(size, width)).astype("float32"), widths
    )


@every_topology
@pytest.mark.parametrize("router", [None, "top_k"])
def test_everybody_reads_their_part(
    widths, reads, expert_inputs, takes, gate_inputs, gate_takes, router, rng
):
    experts, gate = made(rng, widths, reads, gate_takes)
    x = data(rng, widths)
    weights = gate(gate_takes(x))
    if router:
        router = top_1(from_logits=False)
        weights = gate_weights(weights, 1)
    mixture = plait.Mixture(
        experts, gate, router=router, expert_inputs=expert_inputs, gate_inputs=gate_inputs
    )
    outputs = [expert(take(x)) for expert, take in zip(experts, takes, strict=True)]
    expected = as_numpy(merged(weights, outputs))
    np.testing.assert_allclose(as_numpy(mixture(x)), expected, atol=1e-5)
    assert mixture.expert_outputs(x).shape == (6, len(experts), U)
    shapes = keras.tree.map_structure(lambda width: keras.Input((width,)), widths)
    assert tuple(mixture(shapes).shape) == (None, U)


@every_topology
def test_a_saved_mixture_reads_the_same_parts(
    widths, reads, expert_inputs, takes, gate_inputs, gate_takes, rng, tmp_path
):
    experts, gate = made(rng, widths, reads, gate_takes)
    x = data(rng, widths)
    mixture = plait.Mixture(experts, gate, expert_inputs=expert_inputs, gate_inputs=gate_inputs)
    expected = as_numpy(mixture(x))
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras", safe_mode=True)
    np.testing.assert_allclose(as_numpy(loaded(x)), expected, atol=1e-6)
    assert loaded.expert_inputs == expert_inputs
    assert loaded.gate_inputs == gate_inputs


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_structured_inputs_are_fitted_and_predicted_in_batches(kind, rng):
    widths = {"a": 4, "b": 2} if kind == "dict" else [4, 2]
    first, second = ("a", "b") if kind == "dict" else (0, 1)
    experts, gate = made(rng, widths, [4, 2], lambda part: part[second])
    mixture = plait.Mixture(experts, gate, expert_inputs=[first, second], gate_inputs=second)
    x, y = data(rng, widths, 10), rng.normal(size=(10, U)).astype("float32")
    before = [expert.get_weights()[0] for expert in experts]
    mixture.compile("adam", "mse")
    mixture.fit(x, y, batch_size=4, verbose=0)
    assert all(
        (expert.get_weights()[0] != old).any() for expert, old in zip(experts, before, strict=True)
    )
    outputs = [experts[0](x[first]), experts[1](x[second])]
    expected = as_numpy(merged(gate(x[second]), outputs))
    np.testing.assert_allclose(mixture.predict(x, batch_size=4, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(mixture.gate_weights(x), as_numpy(gate(x[second])), atol=1e-5)


def test_a_template_may_read_parts_of_its_own(rng):
    """Copies of one template, each fed with another input."""
    mixture = plait.Mixture(
        keras.layers.Dense(U),
        keras.layers.Dense(2, activation="softmax"),
        num_experts=2,
        expert_inputs=["left", "right"],
        gate_inputs="left",
    )
    x = data(rng, {"left": 4, "right": 4})
    found = as_numpy(mixture(x))
    outputs = [mixture.expert(0)(x["left"]), mixture.expert(1)(x["right"])]
    np.testing.assert_allclose(found, as_numpy(merged(mixture.gate(x["left"]), outputs)), atol=1e-5)


# input, expert_inputs, gate_inputs, what the error says
MISTAKES = [
    ({"a": 4, "b": 4}, ["a", "z"], "a", r"expert 1.*'a', 'b'.*Received: 'z'"),
    ({"a": 4, "b": 4}, ["a", "b"], "meta", r"the gate.*'a', 'b'.*Received: 'meta'"),
    ([4, 4], [0, 2], 0, r"expert 1.*2 parts.*Received: 2"),
    ([4, 4], [0, 1], "a", r"the gate.*2 parts.*Received: 'a'"),
    (4, ["a", "a"], None, r"expert 0.*one tensor.*Received: 'a'"),
    ({"a": {"b": 4}}, [("a", "b"), ("a", "c")], ("a", "b"), r"expert 1.*'b'.*Received: 'c'"),
]


@pytest.mark.parametrize(("widths", "expert_inputs", "gate_inputs", "match"), MISTAKES)
def test_a_part_that_does_not_exist_is_named_with_those_that_do(
    widths, expert_inputs, gate_inputs, match, rng
):
    experts = [keras.layers.Dense(U) for _ in "ab"]
    mixture = plait.Mixture(
        experts, keras.layers.Dense(2), expert_inputs=expert_inputs, gate_inputs=gate_inputs
    )
    with pytest.raises(ValueError, match=match):
        mixture(data(rng, widths))


def test_a_list_of_selectors_has_one_for_each_expert():
    experts = [keras.layers.Dense(U) for _ in "ab"]
    with pytest.raises(ValueError, match=r"each of the 2 experts. Received: 3 entries"):
        plait.Mixture(experts, expert_inputs=["a", "b", "c"])


def of_a_and_b(order, units, activation=None):
    """A model of inputs named a (4 wide) and b (6 wide), in a list or a dict of that order."""
    named = {"a": keras.Input((4,), name="a"), "b": keras.Input((6,), name="b")}
    flat = keras.layers.Concatenate()([named["a"], named["b"]])
    outputs = keras.layers.Dense(units, activation=activation)(flat)
    given = {
        "list": [named[key] for key in order[1]],
        "dict": {key: named[key] for key in order[1]},
    }
    return keras.Model(given[order[0]], outputs)


@pytest.mark.parametrize("gate_order", [("list", "ab"), ("list", "ba"), ("dict", "ba")])
@pytest.mark.parametrize("expert_order", [("list", "ab"), ("list", "ba"), ("dict", "ab")])
def test_a_dict_is_paired_by_name_with_models_of_any_order(expert_order, gate_order, rng, tmp_path):
    experts = [of_a_and_b(("list", "ab"), U), of_a_and_b(expert_order, U)]
    gate = of_a_and_b(gate_order, 2, "softmax")
    x = data(rng, {"b": 6, "a": 4})
    mixture = plait.Mixture(experts, gate)
    expected = as_numpy(merged(gate(x), [expert(x) for expert in experts]))
    np.testing.assert_allclose(as_numpy(mixture(x)), expected, atol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


def test_a_gate_of_named_inputs_takes_a_dict_of_parts(rng, tmp_path):
    experts = [net(rng, 6), net(rng, 6)]
    gate = of_a_and_b(("dict", "ba"), 2, "softmax")
    mixture = plait.Mixture(
        experts, gate, expert_inputs="text", gate_inputs={"a": "size", "b": ("text",)}
    )
    x = data(rng, {"text": 6, "size": 4})
    weights = gate({"a": x["size"], "b": x["text"]})
    expected = as_numpy(merged(weights, [expert(x["text"]) for expert in experts]))
    np.testing.assert_allclose(as_numpy(mixture(x)), expected, atol=1e-5)
    mixture.save(tmp_path / "mixture.keras")
    loaded = keras.saving.load_model(tmp_path / "mixture.keras")
    assert loaded.gate_inputs == {"a": "size", "b": ("text",)}
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_list_for_a_model_of_named_inputs_says_how_to_name_them(order, rng):
    gate = of_a_and_b(("dict", order), 2, "softmax")
    mixture = plait.Mixture([net(rng, 4)] * 2, gate, expert_inputs="a", gate_inputs=["a", "b"])
    with pytest.raises(ValueError, match=r"keys \['a', 'b'\].*list of 2.*gate_inputs=\{'a': …"):
        mixture(data(rng, {"a": 4, "b": 6}))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_an_expert_of_named_inputs_is_given_a_dict(order, rng):
    """A list would be paired with the sorted names."""
    experts = [net(rng, 4), of_a_and_b(("dict", "ab"), U)]
    x = data(rng, {"a": 4, "b": 6})
    mixture = plait.Mixture(experts, [0.0, 1.0], expert_inputs=["a", [*order]])
    with pytest.raises(
        ValueError, match=r"keys \['a', 'b'\].*list of 2.*an entry of expert_inputs"
    ):
        mixture(x)
    named = plait.Mixture(experts, [0.0, 1.0], expert_inputs=["a", {"b": "b", "a": "a"}])
    np.testing.assert_allclose(as_numpy(named(x)), as_numpy(experts[1](x)), atol=1e-6)
