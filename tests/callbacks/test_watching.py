"""The balance monitor sees every mixture of a model, at any depth, as the model runs them."""

import keras
import numpy as np
import pytest
from keras import ops
from tests.recipes import as_numpy

import plait
from plait.callbacks import BalanceMonitor
from plait.routers import TopK

D = 4


def template(name="moe", **arguments):
    arguments = {"num_experts": 3, "gate": keras.layers.Dense(3), "router": "softmax", **arguments}
    return plait.Mixture(keras.layers.Dense(D), name=name, **arguments)


def watched(model, x, **arguments):
    """The logs of one epoch that does not move the weights."""
    model.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros_like(as_numpy(model(x)))
    logs = model.fit(x, y, verbose=0, callbacks=[BalanceMonitor(x, **arguments)]).history
    return {key: values[-1] for key, values in logs.items()}


def shares(weights):
    weights = weights.reshape(-1, weights.shape[-1])
    return weights.sum(0) / weights.sum()


class Block(keras.layers.Layer):
    """A residual block of its own class, with a mixture in an attribute."""

    def __init__(self, mixture, **kwargs):
        super().__init__(**kwargs)
        self.mixture = mixture

    def call(self, x):
        return x + self.mixture(x)


def test_mixtures_at_any_depth_are_told_apart(rng):
    """Two of one name, one of them inside a layer that is no model; each on its own input."""
    first, second, third = template(), template(), template("other")
    inputs = keras.Input((5, D))
    model = keras.Sequential([keras.Sequential([first]), Block(second), third])
    model = keras.Model(inputs, model(inputs))
    x = rng.normal(size=(6, 5, D)).astype("float32")
    logs = watched(model, x)
    hidden = x
    for name, mix in (("moe", first), ("moe_1", second), ("other", third)):
        expected = shares(mix.gate_weights(hidden))
        found = [logs[f"{name}/usage_{expert}"] for expert in range(3)]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert {f"{name}/entropy", f"{name}/dead"} <= set(logs)
        assert f"{name}/dropped" not in logs
        hidden = as_numpy(mix(hidden)) + (hidden if mix is second else 0)


def test_what_a_capacity_drops_is_logged(rng):
    mix = template(router=TopK(1, capacity_factor=1.0))
    mix.build((None, D))
    mix.gate.bias.assign([50.0, 0.0, 0.0])
    x = rng.normal(size=(12, D)).astype("float32")
    with pytest.warns(UserWarning, match=r"Experts \[1, 2\] of 3 in 'moe'"):
        logs = watched(keras.Sequential([mix]), x)
    assert logs["moe/dropped"] == pytest.approx(8 / 12)
    assert logs["moe/usage_0"] == pytest.approx(1.0)


def test_masked_steps_do_not_count(rng):
    mix = template()
    model = keras.Sequential([keras.layers.Masking(), mix])
    x = rng.normal(size=(4, 5, D)).astype("float32")
    x[:, 2:] = 0
    logs = watched(model, x)
    expected = shares(mix.gate_weights(x)[:, :2])
    found = [logs[f"moe/usage_{expert}"] for expert in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["template", "list"])
def test_mixtures_inside_experts_count_the_rows_of_these_experts(kind, rng):
    inner = template("inner")
    expert = keras.Sequential([keras.Input((D,)), inner])
    plain = keras.Sequential([keras.Input((D,)), keras.layers.Dense(D)])
    many = {"num_experts": 2} if kind == "template" else {}
    outer = plait.Mixture(expert if many else [expert, plain], router=TopK(1), name="outer", **many)
    x = rng.normal(size=(16, D)).astype("float32")
    logs = watched(keras.Sequential([outer]), x, threshold=0.0)
    chosen = outer.gate_weights(x)[:, 0] > 0
    assert 0 < chosen.sum() < 16
    expected = shares(outer.expert(0).layers[-1].gate_weights(x[chosen]))
    found = [logs[f"outer/expert_0/inner/usage_{expert}"] for expert in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert ("outer/expert_1/inner/entropy" in logs) == (kind == "template")


def test_gates_of_several_tasks_are_told_apart(rng):
    mix = plait.MultiGateMixture(
        keras.layers.Dense(1), num_experts=2, private_experts=1, tasks=["a", "b"], name="moe"
    )
    x = rng.normal(size=(6, D)).astype("float32")
    mix.compile("sgd", {"a": "mse", "b": "mse"})
    y = {"a": np.ones((6, 1), "float32"), "b": np.ones((6, 1), "float32")}
    logs = mix.fit(x, y, verbose=0, callbacks=[BalanceMonitor(x)]).history
    usages = {key for key in logs if "usage" in key}
    assert usages == {f"moe/a/usage_{i}" for i in (0, 1, 2)} | {
        f"moe/b/usage_{i}" for i in (0, 1, 3)
    }


def test_structured_inputs_and_batches_reach_the_model(rng):
    """The monitor takes what `predict` takes; the last batch may be smaller."""
    mix = template()
    inputs = {key: keras.Input((D,), name=key) for key in ("a", "b")}
    model = keras.Model(inputs, mix(inputs["a"] + inputs["b"]))
    x = {key: rng.normal(size=(7, D)).astype("float32") for key in ("a", "b")}
    logs = watched(model, x, batch_size=3)
    expected = shares(mix.gate_weights(x["a"] + x["b"]))
    found = [logs[f"moe/usage_{expert}"] for expert in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_shared_mixture_counts_every_call(rng):
    mix = template()
    model = keras.Sequential([mix, mix])
    x = rng.normal(size=(6, D)).astype("float32")
    logs = watched(model, x)
    both = np.concatenate([mix.gate_weights(x), mix.gate_weights(as_numpy(mix(x)))])
    np.testing.assert_allclose(logs["moe/usage_1"], shares(both)[1], rtol=1e-5)
    assert ops.ndim(both) == 2
