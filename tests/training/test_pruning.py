"""A pruned mixture is the old one over the experts that remain, and an ordinary mixture."""

import keras
import numpy as np
import pytest
from keras import ops

import plait
from plait.losses import MixtureNLL, families
from plait.training import prune

FEATURES, E, U = 3, 4, 2
GONE, KEPT = [2], [0, 1, 3]


def softmax_dense():
    return keras.layers.Dense(E, activation="softmax")


def sequential():
    layers = [keras.layers.Dense(E, "tanh"), keras.layers.Dropout(0.5), softmax_dense()]
    return keras.Sequential([keras.Input((FEATURES,)), *layers])


def functional():
    """A gate with statistics of the data, a way around, and a softmax of its own."""
    x = keras.Input((FEATURES,))
    scaled = keras.layers.Normalization(mean=[0.0, 1.0, 2.0], variance=[1.0, 2.0, 3.0])(x)
    hidden = keras.layers.Add()([scaled, keras.layers.Dense(FEATURES, "relu")(scaled)])
    return keras.Model(x, keras.layers.Softmax()(keras.layers.Dense(E, use_bias=False)(hidden)))


def adapted():
    layer = keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(2, 3, (50, FEATURES)))
    return keras.Sequential([keras.Input((FEATURES,)), layer, softmax_dense()])


def nested():
    inner = keras.Sequential([keras.layers.Dense(5, "tanh"), keras.layers.Dense(E)])
    layers = [keras.Input((FEATURES,)), inner, keras.layers.Activation("softmax")]
    return keras.Sequential(layers)


GATES = {
    "linear": lambda: None,
    "constant": lambda: "constant",
    "uniform": lambda: "uniform",
    "dense": softmax_dense,
    "sequential": sequential,
    "functional": functional,
    "adapted": adapted,
    "nested": nested,
}
EXPERTS = {
    "template": lambda: {"experts": keras.layers.Dense(U), "num_experts": E},
    "looped": lambda: {"experts": keras.layers.Dense(U), "num_experts": E, "execution": "loop"},
    "stacked": lambda: {"experts": [keras.layers.Dense(U) for _ in range(E)]},
    "alone": lambda: {
        "experts": [
            keras.Sequential([keras.layers.Dense(i + 1), keras.layers.Dense(U)]) for i in range(E)
        ]
    },
}


def stirred(mix, x, rng):
    """The built mixture, with weights that are not those it started with."""
    mix(x)
    bank = mix.state.bank
    for i in range(mix.num_experts):
        values = [ops.convert_to_numpy(value) for value in bank.values(i)]
        bank.set_values(i, [v + rng.normal(size=v.shape).astype("float32") for v in values])
    for variable in mix.gate.trainable_variables:
        value = ops.convert_to_numpy(variable.value)
        variable.assign(value + rng.normal(size=value.shape).astype("float32"))
    return mix


def make(experts, gate, rng):
    mix = plait.Mixture(**EXPERTS[experts](), gate=GATES[gate]())
    x = rng.normal(size=(9, FEATURES)).astype("float32")
    return stirred(mix, x, rng), x


def over_the_kept(mix, x, kept=KEPT):
    """The old weights of the experts that remain, in float64, summing to one."""
    weights = np.asarray(mix.gate_weights(x), "float64")[..., kept]
    return weights / weights.sum(axis=-1, keepdims=True)


SLOW = ["looped", "stacked"]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(
    "experts", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in EXPERTS]
)
def test_equals_the_old_mixture_over_the_experts_that_remain(experts, gate, rng, tmp_path):
    mix, x = make(experts, gate, rng)
    before = mix.predict(x, verbose=0)
    pruned = prune(mix, GONE)
    weights = over_the_kept(mix, x)
    outputs = np.asarray(mix.expert_outputs(x), "float64")[:, KEPT]
    blend = np.einsum("be,beu->bu", weights, outputs)
    assert pruned.num_experts == len(KEPT)
    np.testing.assert_allclose(pruned.gate_weights(x), weights, atol=1e-6)
    np.testing.assert_allclose(pruned.expert_outputs(x), outputs, atol=1e-5)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), blend, atol=1e-5)
    np.testing.assert_array_equal(mix.predict(x, verbose=0), before)
    pruned.save(tmp_path / "pruned.keras")
    loaded = keras.models.load_model(tmp_path / "pruned.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), blend, atol=1e-5)
    assert not pruned.compiled


def test_trains_on_and_the_wider_gate_stays(rng):
    """Experts that were passed in are those of the pruned mixture; gates are two."""
    experts = [keras.layers.Dense(U) for _ in range(E)]
    mix = plait.Mixture(experts, functional())
    x = rng.normal(size=(32, FEATURES)).astype("float32")
    stirred(mix, x, rng)
    gate, idle = mix.gate.get_weights(), experts[GONE[0]]
    pruned = prune(mix, GONE)
    kernel = ops.convert_to_numpy(idle.kernel)
    pruned.compile("adam", "mse")
    history = pruned.fit(x, x[:, :U], epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for old, new in zip(gate, mix.gate.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(ops.convert_to_numpy(idle.kernel), kernel)
    outputs = np.stack([ops.convert_to_numpy(experts[i](x)) for i in KEPT], axis=1)
    np.testing.assert_allclose(pruned.expert_outputs(x), outputs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The gate .* ends without a softmax")
def test_weights_without_a_softmax_stay_as_they_are(rng):
    mix = plait.Mixture([keras.layers.Dense(U) for _ in range(E)], keras.layers.Dense(E))
    x = rng.normal(size=(9, FEATURES)).astype("float32")
    stirred(mix, x, rng)
    weights = np.asarray(mix.gate_weights(x))[:, KEPT]
    np.testing.assert_allclose(prune(mix, GONE).gate_weights(x), weights, atol=1e-6)


def test_an_expert_that_nobody_chose_leaves_no_trace(rng):
    """Under top-2 of steps, with a selection bias that belongs to the experts."""
    router = plait.routers.TopK(2, bias_update_rate=0.1)
    mix = plait.Mixture(keras.layers.Dense(U), keras.layers.Dense(E), num_experts=E, router=router)
    x = rng.normal(size=(5, 7, FEATURES)).astype("float32")
    stirred(mix, x, rng)
    router.bias.assign(np.array([0.5, -0.5, -1e9, 0.25], "float32"))
    pruned = prune(mix, GONE)
    assert (np.asarray(mix.gate_weights(x))[..., GONE] == 0).all()
    np.testing.assert_allclose(pruned.gate_weights(x), over_the_kept(mix, x), atol=1e-6)
    np.testing.assert_allclose(
        pruned.predict(x, verbose=0), mix.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    assert ops.convert_to_numpy(pruned.router.bias).tolist() == [0.5, -0.5, 0.25]


def test_each_expert_goes_on_reading_its_own_input(rng):
    mix = plait.Mixture(
        [keras.layers.Dense(U) for _ in range(3)],
        expert_inputs=["a", "b", "a"],
        gate_inputs="b",
        execution="loop",
        name="readers",
    )
    x = {"a": rng.normal(size=(6, 2)), "b": rng.normal(size=(6, 4))}
    x = {key: value.astype("float32") for key, value in x.items()}
    stirred(mix, x, rng)
    pruned = prune(mix, [0])
    weights = over_the_kept(mix, x, [1, 2])
    blend = np.einsum("be,beu->bu", weights, np.asarray(mix.expert_outputs(x))[:, 1:])
    np.testing.assert_allclose(pruned.predict(x, verbose=0), blend, atol=1e-5)
    assert pruned.expert_inputs == ["b", "a"]
    assert (pruned.name, pruned.execution) == ("readers", "loop")


def test_pruning_nobody_gives_the_same_mixture(rng):
    mix, x = make("template", "sequential", rng)
    pruned = prune(mix, [])
    np.testing.assert_allclose(pruned.predict(x, verbose=0), mix.predict(x, verbose=0), atol=1e-6)


def off_the_data():
    """Three experts, of which the last is a thousand off and stays so: no row asks for it."""
    experts = [
        keras.Sequential([keras.Input((1,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)])
        for _ in range(3)
    ]
    experts[2].layers[-1].bias.assign([1000.0])
    return experts


@pytest.mark.parametrize("gate", ["constant", None])
def test_without_its_dead_experts_a_mixture_explains_as_much(gate, rng):
    x = rng.uniform(-1, 1, size=(64, 1)).astype("float32")
    y = np.where(rng.random((64, 1)) < 0.5, x, -x) + 0.1 * rng.normal(size=(64, 1))
    mix = plait.Mixture(off_the_data(), gate)
    with pytest.warns(UserWarning, match=r"Experts \[2\].*out with plait.training.prune"):
        found = mix.fit_em(x, y, max_iterations=8, verbose=0)
    pruned = prune(mix, found.dead)
    kept = [0, 1]
    pruned.compile("adam", MixtureNLL(families.Gaussian(scale=found.scales[kept])))
    explained = -64 * pruned.evaluate(x, y, verbose=0)
    assert explained == pytest.approx(found.log_likelihood, rel=5e-3)
    again = pruned.fit_em(x, y, max_iterations=2, verbose=0)
    assert not again.dead


def test_a_mixture_that_was_pruned_is_fitted_in_closed_form(rng):
    x, y = rng.normal(size=(2, 60, 1)).astype("float32")
    mix = plait.Mixture([keras.layers.Dense(1) for _ in range(3)])
    mix(x)
    found = prune(mix, [0]).fit_em(x, y, restarts=2, verbose=0)
    assert found.num_parameters == 2 * 2 + 2 + 2
    assert len(found.restarts) == 2


class Scores(keras.layers.Layer):
    """A gate that says nothing about which weights belong to which expert."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], E))

    def call(self, x):
        return ops.softmax(ops.matmul(x, self.kernel))


def built(gate):
    mix = plait.Mixture([keras.layers.Dense(1) for _ in range(E)], gate, name="woven")
    mix(np.ones((2, FEATURES), "float32"))
    return mix


@pytest.mark.parametrize(
    ("cut", "error", "match"),
    [
        (lambda: prune(built(None), [4]), ValueError, "experts 0 to 3. Received: 4 among"),
        (lambda: prune(built(None), ["text"]), ValueError, "Received: 'text' among"),
        (lambda: prune(built(None), range(4)), ValueError, "Received: all of the 4 experts"),
        (
            lambda: prune(plait.Mixture([keras.layers.Dense(1)], name="woven"), [0]),
            ValueError,
            "'woven', which has seen no input yet",
        ),
        (lambda: prune(built(Scores(name="own")), [0]), TypeError, "'own' of type Scores"),
        (
            lambda: prune(built(keras.Sequential([softmax_dense(), Scores(name="own")])), [0]),
            TypeError,
            "'own' of type Scores",
        ),
        (
            lambda: prune(
                plait.Mixture(
                    keras.Sequential([keras.Input((E,)), keras.layers.Dense(1)]),
                    keras.Sequential([keras.layers.Softmax()], name="bare"),
                    num_experts=E,
                ),
                [0],
            ),
            TypeError,
            "'bare' of type Sequential",
        ),
    ],
)
def test_what_cannot_be_pruned_is_named(cut, error, match):
    with pytest.raises(error, match=match):
        cut()
