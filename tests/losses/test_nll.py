"""The likelihood of one distribution, against SciPy; trained, saved, refused where wrong."""

import keras
import numpy as np
import pytest
import scipy.stats
from keras import ops
from tests.gradients import value_and_gradients

import plait
from plait.losses import NLL, ExpertMean
from plait.losses.families import Categorical, Gaussian

PREDICTED = Gaussian(scale="predicted")


def gaussian_nll(y, outputs):
    mean, raw = np.split(outputs.astype("float64"), 2, axis=-1)
    return -scipy.stats.norm.logpdf(y, mean, np.logaddexp(0, raw) + 1e-6).sum(axis=-1)


def number(tensor):
    return float(ops.convert_to_numpy(tensor))


@pytest.mark.parametrize("shape", [(5, 2), (4, 3, 1)])
def test_equals_scipys_summed_over_units(shape, rng):
    y = rng.normal(size=shape).astype("float32")
    outputs = rng.normal(size=(*shape[:-1], 2 * shape[-1])).astype("float32")
    expected = gaussian_nll(y, outputs)
    found = ops.convert_to_numpy(NLL(PREDICTED, reduction=None)(y, outputs))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(number(NLL(PREDICTED)(y, outputs)), expected.mean(), rtol=1e-4)


def test_of_classes_it_is_the_crossentropy(rng):
    logits, y = rng.normal(size=(6, 3)).astype("float32"), rng.integers(0, 3, 6)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = number(NLL(Categorical(from_logits=True))(y, logits))
    np.testing.assert_allclose(found, number(crossentropy(y, logits)), rtol=1e-5)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(number(NLL("categorical")(y, p)), found, rtol=1e-5)


def test_gradients_equal_differences(rng):
    y, outputs = rng.normal(size=(3, 1)), rng.normal(size=(3, 2))
    _, (found,) = value_and_gradients(
        lambda out: NLL(PREDICTED, reduction="sum")(y.astype("float32"), out),
        [outputs.astype("float32")],
    )
    for at in np.ndindex(3, 2):
        step = np.zeros((3, 2))
        step[at] = 1e-3
        slope = (gaussian_nll(y, outputs + step) - gaussian_nll(y, outputs - step)).sum() / 2e-3
        np.testing.assert_allclose(found[at], slope, rtol=1e-3, atol=1e-4)


def test_it_trains_any_model_and_is_saved_with_it(rng, tmp_path):
    x = rng.normal(size=(128, 1)).astype("float32")
    y = (2 * x + 0.3 * rng.normal(size=(128, 1))).astype("float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.1), NLL(PREDICTED))
    losses = model.fit(x, y, epochs=20, batch_size=64, verbose=0).history["loss"]
    assert losses[-1] < losses[0] - 0.3
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.loss.family.scale == "predicted"
    found = loaded.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(found, model.evaluate(x, y, verbose=0), rtol=1e-5)


def test_within_expert_mean_each_member_has_its_own(rng):
    y = rng.normal(size=(4, 1)).astype("float32")
    outputs = rng.normal(size=(3, 4, 2)).astype("float32")
    weights = np.full((4, 3), 1 / 3, "float32")
    found = ExpertMean(NLL(PREDICTED)).per_example(y, weights, outputs)
    expected = np.mean([gaussian_nll(y, one) for one in outputs], axis=0)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, rtol=1e-4, atol=1e-5)


def test_a_family_that_learns_is_refused():
    with pytest.raises(ValueError, match=r"the Gaussian family, which learns log_scale"):
        NLL("gaussian")
    with pytest.raises(ValueError, match="'normal'"):
        plait.losses.NLL("normal")
