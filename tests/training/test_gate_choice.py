"""The choice of a gate, and weights per class."""

import keras
import numpy as np
import pytest

import plait
from plait.experts import Frozen
from plait.layers import ClassWeights
from plait.mixture.gates import ConstantGate
from plait.training import choose_gate, gate_choice


def build(name):
    """Two experts that are given by their outputs alone."""
    experts = [Frozen(lambda x: np.zeros((len(x), 2)), 2) for _ in "ab"]
    gate, more = name, {}
    if name == "per-class":
        gate, more = ClassWeights(2, 2, l2=1e-4), {"combination": "geometric"}
    mix = plait.Mixture(experts, gate, **more)
    mix.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    return mix


def given(rng, rows=200):
    """Rows, classes, and outputs: the first expert is right where x0 > 0, the second elsewhere."""
    x = rng.normal(size=(rows, 2)).astype("float32")
    y = rng.integers(0, 2, rows)
    right = np.where(np.eye(2)[y] > 0, 0.9, 0.1)
    first = (x[:, :1] > 0).astype(float)
    outputs = np.stack([right * first + 0.5 * (1 - first), right * (1 - first) + 0.5 * first], 1)
    return x, y, outputs.astype("float32")


def test_a_gate_that_pays_is_chosen_and_fitted(rng):
    x, y, outputs = given(rng)
    found = choose_gate(
        build, x, y, ("uniform", "linear"), outputs=outputs, epochs=15, batch_size=40, patience=4
    )
    assert found.name == "linear"
    assert found.losses["linear"] < found.losses["uniform"]
    weights = found.mixture.gate_weights(x)
    assert (weights.argmax(axis=-1) == (x[:, 0] < 0)).mean() > 0.9


def test_the_simplest_is_chosen_where_nothing_speaks_against_it(rng):
    x, y, outputs = given(rng)
    outputs[:] = outputs[:, :1]  # both experts say the same
    found = choose_gate(
        build, x, y, ("uniform", "per-class", "linear"), outputs=outputs, epochs=2, batch_size=80
    )
    assert found.name in ("uniform", "per-class")
    same = choose_gate(build, x, y, ("uniform", "constant"), outputs=outputs, epochs=2)
    assert same.name == "uniform"
    assert found.errors[min(found.losses, key=found.losses.get)] == 0.0


def test_rows_that_compare_gates_neither_fit_them_nor_say_when_to_stop(rng, monkeypatch):
    x, y, outputs = given(rng, 30)
    x[:, 0] = np.arange(30)
    fitted, compared = [], []

    def fit(mixture, x, y, outputs, seen, last, *rest):
        fitted.append({*seen, *last})
        return 0

    def losses(mixture, x, y, outputs):
        compared.append({*x[:, 0].astype(int)})
        return np.zeros(len(y))

    monkeypatch.setattr(gate_choice, "_fit", fit)
    monkeypatch.setattr(gate_choice, "_losses", losses)
    choose_gate(build, x, y, ("linear",), outputs=outputs)
    assert all(not a & b for a, b in zip(fitted, compared, strict=True))
    assert sorted(row for part in compared for row in part) == list(range(30))


def test_rows_of_one_group_count_as_one_where_gates_are_compared(rng, monkeypatch):
    """A gate that is better by a little in each row of two groups, worse in two: noise."""
    x, y, outputs = given(rng, 40)
    groups = np.repeat(np.arange(4), 10)
    gain = np.repeat([-1.0, 0.9, -1.0, 0.5], 10)
    x[:, 0] = np.arange(40)

    def losses(mixture, x, y, outputs):
        fixed = isinstance(mixture.gate, ConstantGate)
        return 2.0 + (0.0 if fixed else gain[x[:, 0].astype(int)])

    monkeypatch.setattr(gate_choice, "_fit", lambda *_: 0)
    monkeypatch.setattr(gate_choice, "_losses", losses)
    common = {"outputs": outputs, "held_out": 0.3}
    by_rows = choose_gate(build, x, y, ("uniform", "linear"), **common)
    by_groups = choose_gate(build, x, y, ("uniform", "linear"), groups=groups, **common)
    assert (by_rows.name, by_groups.name) == ("linear", "uniform")
    means = gain.reshape(4, 10).mean(axis=1)
    np.testing.assert_allclose(by_groups.errors["uniform"], means.std(ddof=1) / 2, rtol=1e-6)


def test_candidates_are_checked(rng):
    x, y, outputs = given(rng, 20)
    with pytest.raises(ValueError, match=r"candidates=\[\], held_out=0\.2"):
        choose_gate(build, x, y, (), outputs=outputs)
    with pytest.raises(ValueError, match=r"held_out=0\.5"):
        choose_gate(build, x, y, ("linear",), outputs=outputs, held_out=0.5)


def test_losses_of_which_none_is_finite_are_told(rng):
    x, y, outputs = given(rng, 20)
    outputs[3] = np.nan
    with pytest.raises(ValueError, match="'uniform': nan"):
        choose_gate(build, x, y, ("uniform",), outputs=outputs)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_class_weights_are_in_float32_at_least(dtype):
    gate = ClassWeights(3, None, dtype=dtype)
    inputs = keras.Input((2,))
    model = keras.Model(inputs, gate(inputs))
    found = model(np.zeros((1, 2), "float32"))
    assert keras.backend.standardize_dtype(found.dtype) == model.output.dtype == "float32"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), 1 / 3, rtol=1e-6)


def test_weights_per_class_learn_whom_to_trust_on_which_class(rng):
    """The first expert tells class 0 from the rest, the second class 2."""
    y = rng.integers(0, 3, 300)
    known = [np.eye(3)[y] * 0.7 + 0.1, np.eye(3)[y] * 0.7 + 0.1]
    for expert, mine in ((0, 0), (1, 2)):
        unknown = np.full((300, 3), 0.45)
        unknown[:, mine] = 0.1
        known[expert] = np.where((y == mine)[:, None], known[expert], unknown)
    outputs = np.stack(known, axis=1).astype("float32")
    experts = [Frozen(lambda x: np.zeros((len(x), 3)), 3) for _ in "ab"]
    x = np.zeros((300, 1), "float32")
    mix = plait.Mixture(experts, ClassWeights(2, 3, l2=1e-4), combination="geometric")
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    history = mix.fit_gate(x, y, outputs=outputs, epochs=10, verbose=0).history["loss"]
    assert history[-1] < history[0]
    assert mix.gate_weights(x[:1]).shape == (1, 3, 2)


def test_class_weights_stay_near_their_start_and_are_saved(rng, tmp_path):
    experts = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])] * 1
    experts += [keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, "softmax")])]
    mix = plait.Mixture(experts, ClassWeights(2, 3, start=[0.2, 0.8]), combination="geometric")
    x = rng.normal(size=(4, 2)).astype("float32")
    expected = np.broadcast_to(np.array([0.2, 0.8], "float32"), (4, 3, 2))
    np.testing.assert_allclose(mix.gate_weights(x), expected)
    mix.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    mix.fit(x, np.array([0, 1, 2, 0]), verbose=0)
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), mix.predict(x, verbose=0), atol=1e-6)
    with pytest.raises(ValueError, match=r"start=\[1\.0\]"):
        ClassWeights(2, 3, start=[1.0])


def test_free_weights_are_the_least_squares_of_the_outputs(rng):
    """The second expert is the first one's error: its weight is −1, which no average has."""
    y = rng.normal(size=(256, 1))
    error = rng.normal(size=(256, 1))
    outputs = np.stack([y + error, error], axis=1).astype("float32")
    experts = [Frozen(lambda x: np.zeros((len(x), 1)), 1) for _ in "ab"]
    mix = plait.Mixture(experts, ClassWeights(2, None, start=[0.9, 0.1], l2=0.0))
    mix.compile(keras.optimizers.Adam(0.1), "mse")
    x = np.zeros((256, 1), "float32")
    mix.fit_gate(x, y, outputs=outputs, epochs=60, batch_size=64, verbose=0)
    np.testing.assert_allclose(mix.gate_weights(x[:1]), [[1.0, -1.0]], atol=0.02)


def test_free_weights_sharpen_a_pool_of_timid_experts(rng):
    """Two experts that say the same, each with half the evidence: their pool adds it up."""
    evidence = rng.normal(size=(512, 2)) * 2.0
    y = (rng.uniform(size=512) < 1 / (1 + np.exp(evidence[:, 0] - evidence[:, 1]))).astype(int)
    half = np.exp(evidence / 2)
    outputs = np.stack([half / half.sum(axis=1, keepdims=True)] * 2, axis=1).astype("float32")
    experts = [Frozen(lambda x: np.zeros((len(x), 2)), 2) for _ in "ab"]
    mix = plait.Mixture(experts, ClassWeights(2, None, l2=0.0), combination="geometric")
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    x = np.zeros((512, 1), "float32")
    mix.fit_gate(x, y, outputs=outputs, epochs=15, batch_size=64, verbose=0)
    assert 1.5 < mix.gate_weights(x[:1]).sum() < 2.6
