"""Views that are missing: weight zero, the rest in proportion, and nothing shows through."""

import keras
import numpy as np
import pytest
from tests.gradients import value_and_gradients
from tests.recipes import as_numpy

import plait
from plait.ops.presence import log_over_present, over_present

VIEWS = {"a": 2, "b": 3, "c": 4}
MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]], "float32")


def experts(units=3):
    return [
        keras.Sequential([keras.Input((size,)), keras.layers.Dense(units, "softmax")])
        for size in VIEWS.values()
    ]


def views(rng, rows=5):
    return {name: rng.normal(size=(rows, size)).astype("float32") for name, size in VIEWS.items()}


def with_nan(x, mask):
    """The views with NaN where the mask is zero."""
    found = {}
    for position, (name, values) in enumerate(x.items()):
        found[name] = np.where(mask[:, position, None] > 0, values, np.nan).astype("float32")
    return found


def gate():
    return keras.layers.Dense(3, "softmax")


def merged(combination, weights, outputs):
    """The formula in NumPy."""
    if combination == "arithmetic":
        return np.einsum("be,beu->bu", weights, outputs)
    powers = np.exp(np.einsum("be,beu->bu", weights, np.log(outputs)))
    return powers / powers.sum(axis=-1, keepdims=True)


def by_hand(weights, mask):
    kept = np.where(mask.any(axis=-1, keepdims=True), weights * mask, weights)
    return kept / kept.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
@pytest.mark.parametrize("router", [None, "softmax"])
def test_the_rest_share_the_weight_in_proportion(combination, router, rng):
    x, names = views(rng), list(VIEWS)
    last = keras.layers.Dense(3) if router else gate()
    mix = plait.Mixture(
        experts(), last, router=router, expert_inputs=names, gate_inputs="m",
        present="p", combination=combination,
    )  # fmt: skip
    meta = rng.normal(size=(5, 2)).astype("float32")
    everything = {**x, "m": meta, "p": np.ones_like(MASK)}
    full = mix.gate_weights(everything)
    found = mix.gate_weights({**with_nan(x, MASK), "m": meta, "p": MASK})
    np.testing.assert_allclose(found, by_hand(full, MASK), atol=1e-6)
    outputs = mix.expert_outputs({**with_nan(x, MASK), "m": meta, "p": MASK})
    np.testing.assert_allclose(
        mix.predict({**with_nan(x, MASK), "m": meta, "p": MASK}, verbose=0),
        merged(combination, by_hand(full, MASK), outputs),
        atol=1e-5,
    )


def test_nan_says_what_is_missing(rng):
    """Both ways of saying it give one number."""
    x, names = views(rng), list(VIEWS)
    parts, last = experts(), keras.layers.Dense(3)
    by_mask = plait.Mixture(
        parts, last, router="softmax", expert_inputs=names, gate_inputs="a", present="p"
    )
    by_nan = plait.Mixture(
        parts, last, router="softmax", expert_inputs=names, gate_inputs="a", present="not_nan"
    )
    found = by_nan.predict(with_nan(x, MASK), verbose=0)
    expected = by_mask.predict({**x, "p": MASK}, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_in_part_nan_shows(rng):
    x = views(rng)
    x["b"][0, 1] = np.nan
    mix = plait.Mixture(experts(), "uniform", expert_inputs=list(VIEWS), present="not_nan")
    found = mix.predict(x, verbose=0)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1:]).all()


def test_a_view_may_be_none(rng):
    x = views(rng)
    mix = plait.Mixture(experts(), "uniform", expert_inputs=list(VIEWS), present="not_nan")
    with pytest.raises(ValueError, match="a mixture that is not built"):
        mix({**x, "b": None})
    mix(x)
    gone = np.array([[1, 0, 1]] * 5)
    expected = mix.predict(with_nan(x, gone), verbose=0)
    np.testing.assert_allclose(as_numpy(mix({**x, "b": None})), expected, atol=1e-6)
    with pytest.raises(ValueError, match="all None"):
        mix(dict.fromkeys(VIEWS))
    listed = plait.Mixture(experts(), "uniform", expert_inputs=[0, 1, 2], present="not_nan")
    listed(list(x.values()))
    assert np.isfinite(as_numpy(listed([x["a"], None, x["c"]]))).all()


def test_a_row_without_views_is_the_experts_answer_to_zeros(rng):
    mix = plait.Mixture(experts(), "uniform", expert_inputs=list(VIEWS), present="not_nan")
    nothing = {name: np.full((1, size), np.nan, "float32") for name, size in VIEWS.items()}
    zeros = {name: np.zeros((1, size), "float32") for name, size in VIEWS.items()}
    np.testing.assert_allclose(mix.predict(nothing, verbose=0), mix.predict(zeros, verbose=0))
    assert mix.gate_weights(nothing).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("router", "combination"), [("softmax", "geometric"), (plait.routers.TopK(2), "arithmetic")]
)
def test_it_trains_with_missing_views(router, combination, rng, tmp_path):
    mask = (rng.uniform(size=(64, 3)) < 0.5).astype("float32")
    mask[:3] = 0.0
    x = views(rng, 64)
    y = (x["a"][:, 0] > 0).astype(int)
    mix = plait.Mixture(
        experts(), router=router, gate=keras.layers.Dense(3), expert_inputs=list(VIEWS),
        gate_inputs="a", present="not_nan", combination=combination,
    )  # fmt: skip
    mix.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy")
    given = with_nan(x, mask)
    losses = mix.fit(given, y, epochs=4, batch_size=64, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    weights = mix.gate_weights(given)
    some = mask.any(axis=-1)
    assert (weights[some][mask[some] == 0] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
    assert np.isfinite(mix.fit_gate(given, y, verbose=0).history["loss"]).all()
    mix.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(
        loaded.predict(given, verbose=0), mix.predict(given, verbose=0), atol=1e-6
    )


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_no_gradient_reaches_an_expert_whose_view_is_missing(combination, rng):
    outputs = [rng.dirichlet(np.ones(3), 5).astype("float32") for _ in range(3)]
    outputs[1][1:] = np.nan
    weights = rng.dirichlet(np.ones(3), 5).astype("float32")
    mask = np.array([[1, 1, 1]] + [[1, 0, 1]] * 3 + [[0, 0, 0]], "float32")
    layer = plait.layers.WeightedMerge(combination=combination)

    def loss(weights, *outputs):
        merged = layer([weights, *outputs], present=mask)
        return keras.ops.sum(keras.ops.multiply(merged, np.arange(3, dtype="float32")))

    value, (to_weights, *to_outputs) = value_and_gradients(loss, [weights, *outputs])
    assert np.isfinite(value)
    assert np.isfinite(to_weights).all()
    assert (to_outputs[1][1:] == 0).all()
    assert (to_outputs[0][:4] != 0).any()
    assert np.isfinite(to_outputs[0]).all()


@pytest.mark.parametrize("combination", ["arithmetic", "geometric"])
def test_the_layer_in_log_space_agrees(combination, rng):
    outputs = [rng.dirichlet(np.ones(3), 4).astype("float32") for _ in range(3)]
    weights = rng.dirichlet(np.ones(3), 4).astype("float32")
    mask = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1]], "bool")
    plain = plait.layers.WeightedMerge(combination=combination)
    logs = plait.layers.WeightedMerge(combination=combination, log_space=True)
    expected = as_numpy(plain([weights, *outputs], present=mask))
    found = as_numpy(logs([np.log(weights), *map(np.log, outputs)], present=mask))
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-5)
    np.testing.assert_allclose(
        expected, merged(combination, by_hand(weights, mask), np.stack(outputs, 1)), atol=1e-5
    )


def test_the_layer_takes_its_mask_in_a_graph(rng):
    parts = [keras.Input((2,)), keras.Input((3,)), keras.Input((3,)), keras.Input((2,))]
    out = plait.layers.WeightedMerge()(parts[:3], present=parts[3])
    model = keras.Model(parts, out)
    w, y, z = (rng.uniform(size=(4, n)).astype("float32") for n in (2, 3, 3))
    mask = np.array([[1, 0]] * 4, "float32")
    found = model.predict([w, y, z, mask], verbose=0)
    np.testing.assert_allclose(found, w.sum(axis=1, keepdims=True) * y, rtol=1e-5)


def test_a_weight_that_underflowed_leaves_the_others_even():
    weights, mask = np.array([[1.0, 0.0, 0.0]], "float32"), np.array([[0, 1, 1]])
    np.testing.assert_allclose(as_numpy(over_present(weights, mask)), [[0.0, 0.5, 0.5]])
    with np.errstate(divide="ignore"):
        found = as_numpy(log_over_present(np.log(weights), mask))
    np.testing.assert_allclose(np.exp(found), [[0.0, 0.5, 0.5]], atol=1e-7)
    assert np.isnan(as_numpy(over_present(np.array([[np.nan, 1.0, 1.0]]), mask | 1))).any()


def test_a_mask_that_does_not_fit_is_refused(rng):
    mix = plait.Mixture(experts(), "uniform", expert_inputs=list(VIEWS), present="p")
    with pytest.raises(ValueError, match=r"shape \(b, 3\).*present='p' of shape"):
        mix({**views(rng), "p": np.ones((5, 2), "float32")})
    with pytest.raises(ValueError, match="each expert must read one of its own"):
        plait.Mixture([keras.layers.Dense(2) for _ in "ab"], present="not_nan")(np.ones((2, 3)))
    with pytest.raises(ValueError, match="present=None"):
        plait.Mixture(experts(), "uniform", expert_inputs=list(VIEWS))({**views(rng), "b": None})
