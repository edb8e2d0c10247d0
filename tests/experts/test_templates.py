"""Every template on every execution path equals independent Keras models, gradients included."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.experts.templates import TEMPLATES, dense, gate_for, input_of, is_float
from tests.recipes import as_numpy, gradients, mixture_gradients, randomize, recipe

import plait

L, K = 3, 2
# Each path and how many experts its weights keep. The capacity has room for every row.
PATHS = {
    "loop": ({"execution": "loop", "router": "softmax"}, None),
    "stacked": ({"copy_experts": True, "router": "softmax"}, None),
    "stacked in the call": ({"execution": "stacked", "router": "softmax"}, None),
    "sparse": ({"router": plait.routers.TopK(K)}, K),
    "sparse with capacity": (
        {"copy_experts": True, "router": plait.routers.TopK(K, capacity_factor=L / K)},
        K,
    ),
    "sparse in a loop": ({"execution": "loop", "router": plait.routers.TopK(K)}, K),
}
# Each has a sibling that stays fast.
SLOW = ["conv1d", "depthwise_conv2d", "separable_conv2d", "pooling", "lstm", "residual", "nested"]
every_template = pytest.mark.parametrize(
    "template",
    [
        pytest.param(t, id=t.__name__, marks=[pytest.mark.slow] * (t.__name__ in SLOW))
        for t in TEMPLATES
    ],
)


def drawn(template):
    """Experts, gate, input and upstream gradient of a template, the same at every call."""
    rng = np.random.default_rng(len(template.__name__))
    experts = [randomize(template(), rng) for _ in range(L)]
    x = input_of(experts[0], rng)
    gate = randomize(gate_for(x, L), rng)
    shape = experts[0].compute_output_spec(keras.KerasTensor(x.shape, str(x.dtype))).shape
    return experts, gate, x, rng.normal(size=shape).astype("float32")


@pytest.fixture(scope="module")
def references():
    """Outputs and gradients of the recipe, made once for a template and a number of experts."""
    made = {}

    def reference(template, k):
        if (template, k) not in made:
            experts, gate, x, upstream = drawn(template)
            variables = [v for model in [*experts, gate] for v in model.trainable_variables]

            def loss(upstream, data=x):
                return ops.sum(ops.multiply(recipe(experts, gate, data, k=k), upstream))

            arrays = [upstream, x] if is_float(x) else [upstream]
            _, to_variables, to_arrays = gradients(loss, variables, arrays, compiled=True)
            made[template, k] = [*to_variables, *to_arrays]
        return made[template, k]

    return reference


def mixture_of(path, experts, gate, **options):
    arguments, k = PATHS[path]
    router = arguments["router"]
    if not isinstance(router, str):
        router = type(router).from_config(router.get_config())
    return plait.Mixture(experts, gate, **{**arguments, "router": router}, **options), k


# Stacked in the call, experts would draw other random numbers than alone: they run in a loop.
@pytest.mark.filterwarnings("ignore:execution='stacked' found no experts to stack")
@every_template
@pytest.mark.parametrize("path", PATHS)
def test_outputs_and_gradients_equal_independent_models(template, path, references):
    """The gradient of `Σ out · upstream` to `upstream` is the output."""
    experts, gate, x, upstream = drawn(template)
    mixture, k = mixture_of(path, experts, gate)
    mixture(keras.KerasTensor(x.shape, str(x.dtype)))  # some know their variables once called

    def loss(upstream, data=x):
        return ops.sum(ops.multiply(mixture(data), upstream))

    arrays = [upstream, x] if is_float(x) else [upstream]
    to_experts, to_gate, to_arrays = mixture_gradients(mixture, loss, arrays, compiled=True)
    found = [gradient for of_one in to_experts for gradient in of_one] + to_gate + to_arrays
    for left, right in zip(found, references(template, k), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


@every_template
@pytest.mark.parametrize("path", ["loop", "stacked", "sparse"])
def test_experts_made_of_a_template_are_those_that_expert_gives(template, path, rng):
    one = template()
    x = input_of(one, rng)
    gate = gate_for(x, L)
    mixture, k = mixture_of(path, one, gate, num_experts=L)
    found = mixture.predict(x, verbose=0)
    experts = [mixture.expert(i) for i in range(L)]
    np.testing.assert_allclose(found, as_numpy(recipe(experts, gate, x, k=k)), atol=1e-5)


@every_template
@pytest.mark.parametrize("path", ["loop", "stacked"])
def test_fresh_experts_differ_where_an_initialiser_is_random_and_only_there(template, path, rng):
    one = template()
    before = [np.array(value) for value in one.get_weights()]
    x = input_of(one, rng)
    mixture, _ = mixture_of(path, one, gate_for(x, L), num_experts=L)
    mixture(x)
    all_weights = [mixture.expert(i).get_weights() for i in range(L)]
    for values in zip(before, *all_weights, strict=True):
        template_value, *own = values
        # Constant initialisers give one value, or two: the forget gate's bias of an LSTM.
        random = np.unique(template_value).size > 2
        for i in range(L):
            assert own[i].shape == template_value.shape
            for j in range(i):
                assert (own[i] != own[j]).any() == random
            if not random:
                np.testing.assert_array_equal(own[i], template_value)
            else:
                assert (own[i] != template_value).any()
                ratio = own[i].std() / template_value.std()
                assert 0.2 < ratio < 5
    for value, old in zip(one.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.mark.parametrize("path", ["loop", "stacked"])
@pytest.mark.parametrize("built", [True, False])
def test_a_seed_in_the_initialiser_does_not_make_the_experts_equal(path, built, rng):
    stack = [keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=3))]
    template = keras.Sequential([keras.Input((6,)), *stack] if built else stack)
    x = rng.normal(size=(2, 6)).astype("float32")
    mixture, _ = mixture_of(path, template, keras.layers.Dense(L), num_experts=L)
    mixture(x)
    kernels = [mixture.expert(i).get_weights()[0] for i in range(L)]
    assert all((kernels[i] != kernels[j]).any() for i in range(L) for j in range(i))
    assert template.built == built


def test_the_template_is_not_renamed_nor_trained(rng):
    template = dense()
    names = [template.name, *[layer.name for layer in template.layers]]
    before = template.get_weights()
    x, y = rng.normal(size=(8, 6)).astype("float32"), rng.normal(size=(8, 4)).astype("float32")
    mixture = plait.Mixture(template, num_experts=L)
    mixture.compile("sgd", "mse")
    mixture.fit(x, y, verbose=0)
    assert [template.name, *[layer.name for layer in template.layers]] == names
    for old, new in zip(before, template.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (mixture.expert(0).get_weights()[0] != before[0]).any()


def test_a_bare_layer_is_a_template(rng):
    x = rng.normal(size=(5, 6)).astype("float32")
    gate = gate_for(x, L)
    mixture = plait.Mixture(keras.layers.Dense(4), gate, num_experts=L, router="softmax")
    found = as_numpy(mixture(x))
    experts = [mixture.expert(i) for i in range(L)]
    assert all(isinstance(expert, keras.Model) for expert in experts)
    np.testing.assert_allclose(found, as_numpy(recipe(experts, gate, x)), atol=1e-5)
