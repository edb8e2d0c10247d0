"""`fit_em` on datasets, loaders, generators and files equals `fit_em` on the rows in memory."""

import os
import tempfile

import keras
import numpy as np
import pytest
from tests.training.streams import KINDS, NEEDS_STEPS, Sequence

import plait
from plait.training import on_disk
from plait.training.regression import least_squares
from plait.training.regression_by_batch import LeastSquares

ACTIVATIONS = {
    "bernoulli": "sigmoid",
    "categorical": "softmax",
    "gaussian": None,
    "poisson": "exponential",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of temporary files, which is empty again after each test."""
    inside = tmp_path / "files"
    inside.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(inside))
    yield inside
    assert os.listdir(inside) == []


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Rows are read 37 at a time, so that tests have several chunks, the last one smaller."""
    monkeypatch.setattr(on_disk, "_ROWS", 37)


def draw(family, rng, rows=120):
    """Rows of two experts, with some weights of zero."""
    x = rng.normal(size=(rows, 2)).astype("float32")
    eta = np.where(rng.random(rows) < 0.5, x[:, 0], 0.5 - 1.5 * x[:, 1])
    y = {
        "bernoulli": rng.binomial(1, 1 / (1 + np.exp(-eta))),
        "categorical": (eta > -0.5).astype(int) + (eta > 0.5),
        "gaussian": eta + 0.1 * rng.normal(size=rows),
        "poisson": rng.poisson(np.exp(np.minimum(eta, 2.0))),
    }[family]
    return x, y, rng.integers(0, 3, rows).astype("float64")


def mixture(family="gaussian", gate="constant"):
    keras.utils.set_random_seed(7)
    units = 3 if family == "categorical" else 1
    return plait.Mixture(keras.layers.Dense(units, ACTIVATIONS[family]), gate, num_experts=2)


def same(found, expected):
    """Every number agrees to 1e-8, relative."""
    for name in ("log_likelihood", "bic", "icl", "restarts"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-8)
    assert found.history.keys() == expected.history.keys()
    for name, values in expected.history.items():
        np.testing.assert_allclose(found.history[name], values, rtol=1e-8, err_msg=name)
    assert found.dead == expected.dead


@pytest.mark.filterwarnings("ignore:Experts .* explain next to nothing")  # few rows
@pytest.mark.parametrize("gate", ["constant", None, "uniform"])
@pytest.mark.parametrize("family", ACTIVATIONS)
def test_linear_experts_reach_the_likelihoods_of_memory(family, gate, rng):
    x, y, weights = draw(family, rng)
    known = {"family": family, "seed": 3, "restarts": 2, "max_iterations": 8, "verbose": 0}
    memory, stream = mixture(family, gate), mixture(family, gate)
    expected = memory.fit_em(x, y, sample_weight=weights, validation_data=(x[:50], y[:50]), **known)
    held_out = Sequence((x[:50], y[:50]), 20)
    found = stream.fit_em(Sequence((x, y, weights), 50), validation_data=held_out, **known)
    same(found, expected)
    for ours, theirs in zip(stream.get_weights(), memory.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_is_read(kind, rng):
    x, y, weights = draw("gaussian", rng)
    known = {"seed": 3, "restarts": 2, "max_iterations": 5, "verbose": 0}
    expected = mixture().fit_em(x, y, sample_weight=weights, validation_data=(x, y), **known)
    if kind in NEEDS_STEPS:
        known |= {"steps_per_epoch": 3, "validation_steps": 3}
    held_out = KINDS[kind]((x, y), 50)
    found = mixture().fit_em(KINDS[kind]((x, y, weights), 50), validation_data=held_out, **known)
    same(found, expected)


def test_tables_of_pandas_are_arrays(rng):
    pandas = pytest.importorskip("pandas")
    x, y, weights = draw("gaussian", rng)
    known = {"seed": 3, "restarts": 2, "max_iterations": 5, "verbose": 0}
    expected = mixture().fit_em(x, y, sample_weight=weights, **known)
    made = pandas.DataFrame(x), pandas.Series(y)
    same(mixture().fit_em(*made, sample_weight=pandas.Series(weights), **known), expected)


def test_arrays_in_files_are_read_by_chunks(rng, tmp_path, monkeypatch):
    """No read takes more than a chunk: rows of weight zero stay in the file."""
    x, y, weights = draw("gaussian", rng)
    known = {"seed": 3, "restarts": 2, "max_iterations": 5, "verbose": 0}
    expected = mixture().fit_em(x, y, sample_weight=weights, **known)
    files = []
    for name, array in (("x", x), ("y", y)):
        files.append(np.memmap(tmp_path / name, array.dtype, "w+", shape=array.shape))
        files[-1][:] = array
    same(mixture().fit_em(*files, sample_weight=weights, **known), expected)


def test_experts_that_read_different_inputs(rng):
    x, y, _ = draw("gaussian", rng)
    parts = {"a": x, "b": np.concatenate([x, x**2], axis=1)}
    known = {"seed": 3, "restarts": 2, "max_iterations": 5, "verbose": 0}
    found = []
    for data in ((parts, y), (Sequence((parts, y), 50),)):
        experts = [keras.layers.Dense(1), keras.layers.Dense(1, use_bias=False)]
        made = plait.Mixture(experts, gate_inputs="a", expert_inputs=["a", "b"])
        found.append(made.fit_em(*data, **known))
    same(*found)


@pytest.mark.parametrize("which", ["experts", "gate"])
def test_gradient_steps_climb_and_leave_no_files(which, rng):
    """Deep experts under a linear gate, linear experts under a deep gate."""
    x, y, weights = draw("gaussian", rng)
    deep = [keras.layers.Dense(4, "tanh"), keras.layers.Dense(1 if which == "experts" else 2)]
    deep = keras.Sequential([keras.Input((2,)), *deep])
    made = (
        plait.Mixture(deep, num_experts=2)
        if which == "experts"
        else plait.Mixture(keras.layers.Dense(1), deep, num_experts=2, router="softmax")
    )
    known = {"restarts": 1, "max_iterations": 3, "epochs": 2, "seed": 1, "verbose": 0}
    found = made.fit_em(Sequence((x, y, weights), 50), **known)
    climbed = found.history["log_likelihood"]
    assert climbed[-1] > climbed[0]
    assert (np.diff(climbed) >= 0).all()
    kept = weights > 0
    scales = found.scales
    outputs, gate = made.expert_outputs(x[kept])[..., 0], made.gate_weights(x[kept])
    z = (y[kept, None] - outputs) / scales
    density = np.exp(-0.5 * z**2) / scales / np.sqrt(2 * np.pi)
    total = weights[kept] @ np.log((gate * density).sum(axis=1))
    np.testing.assert_allclose(found.log_likelihood, total, rtol=1e-4)


def test_classes_weigh_as_their_rows_do(rng):
    x, y, _ = draw("categorical", rng)
    known = {"family": "categorical", "seed": 3, "restarts": 1, "max_iterations": 5, "verbose": 0}
    by_class = {0: 2.0, 2: 0.5}
    weights = np.array([2.0, 1.0, 0.5])[y]
    expected = mixture("categorical").fit_em(x, y, sample_weight=weights, **known)
    for data in ((x, y), (x, np.eye(3)[y]), (Sequence((x, y[:, None]), 50),)):
        same(mixture("categorical").fit_em(*data, class_weight=by_class, **known), expected)


def test_ill_conditioned_rows_keep_their_accuracy(rng):
    """Two columns that differ by 1e-7: normal equations would see one."""
    design = rng.normal(size=(200, 3))
    design[:, 2] = design[:, 1] + 1e-7 * rng.normal(size=200)
    target = design @ np.array([1.0, 2.0, 3.0])
    weights = rng.random(200)
    fit = LeastSquares(3, 1)
    for rows in (slice(0, 90), slice(90, 200)):
        fit.add(design[rows], target[None, rows], weights[rows])
    np.testing.assert_allclose(fit.coefficients(), [[1.0, 2.0, 3.0]], rtol=1e-6)
    apart = least_squares(design, target[None], weights[None])
    np.testing.assert_allclose(fit.coefficients(), apart[0], rtol=1e-6)


X, Y = np.ones((6, 2), "float32"), np.arange(6.0)


@pytest.mark.parametrize(
    ("data", "arguments", "match"),
    [
        (lambda: ((each for each in [(X, Y)]),), {}, "fit_em reads `x` once.*Pass steps_per_epoch"),
        (lambda: (Sequence((X, Y), 3), Y), {}, "`y` of fit_em goes with arrays"),
        (lambda: (Sequence((X, Y), 3),), {"sample_weight": Y}, "`sample_weight` of fit_em goes"),
        (lambda: (X, Y), {"steps_per_epoch": 2}, "steps_per_epoch=2 for arrays"),
        (lambda: (Sequence((X, Y, -Y), 3),), {}, "Received: -1.0 for row 1"),
        (lambda: (Sequence((X, Y, 0 * Y), 3),), {}, "`x` of fit_em must yield rows"),
        (
            lambda: (X, Y),
            {"validation_data": (each for each in [(X, Y)])},
            "reads `validation_data` once.*without validation_steps",
        ),
        (lambda: (X, Y + 0.5), {"class_weight": {0: 2.0}}, "class labels.*dtype float64"),
        (
            lambda: (X, Y),
            {"class_weight": {0: 2.0}, "sample_weight": Y},
            "`class_weight` or `sample_weight`. Received: both",
        ),
    ],
)
def test_what_cannot_be_read_is_named(data, arguments, match):
    with pytest.raises(ValueError, match=match):
        mixture().fit_em(*data(), verbose=0, **arguments)
