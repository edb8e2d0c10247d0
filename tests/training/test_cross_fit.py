"""Cross-fitting: no row is predicted by a model that saw it; the gate takes the outputs."""

import keras
import numpy as np
import pytest

import plait
from plait.training import cross_fit
from plait.training.folds import fold_numbers
from plait.training.seen import seen_in_training


def data(rng, rows=60):
    x = rng.normal(size=(rows, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype(int)


class Memory:
    """Knows the rows that it was trained on, and nothing else."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def fit(self, x, y, sample_weight=None):
        self.known = {row.tobytes(): label for row, label in zip(x, y, strict=True)}
        self.weighted = sample_weight
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        labels = [self.known.get(row.tobytes()) for row in x]
        return np.array([[0.5, 0.5] if y is None else np.eye(2)[y] for y in labels])

    predict = predict_proba


def network(units=2):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units, "softmax")])
    model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy")
    return model


def test_no_row_is_predicted_by_a_model_that_saw_it(rng):
    x, y = data(rng)
    found = cross_fit([Memory()], x, y, folds=4)
    assert (found.outputs == 0.5).all()
    refitted = plait.Mixture(found.experts).expert_outputs(x)[:, 0]
    np.testing.assert_allclose(refitted, np.eye(2)[y])  # on all rows


def test_given_models_stay_as_they_are_and_copies_learn(rng):
    x, y = data(rng)
    model = network()
    before = [w.copy() for w in model.get_weights()]
    found = cross_fit([model, Memory()], x, y, folds=2, fit={"epochs": 20, "verbose": 0})
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert found.outputs.shape == (60, 2, 2)
    assert (found.outputs[:, 0].argmax(axis=-1) == y).mean() > 0.8
    assert (found.experts[0].predict(x, verbose=0).argmax(axis=-1) == y).mean() > 0.8


def test_frozen_and_adapted_layers_keep_their_values(rng):
    x, y = data(rng)
    scaled = keras.layers.Normalization()
    scaled.adapt(100.0 + 50.0 * x)
    frozen = keras.layers.Dense(3, name="frozen", trainable=False)
    model = keras.Sequential([keras.Input((3,)), scaled, frozen, keras.layers.Dense(2, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    found = cross_fit([model], x, y, folds=2, fit={"verbose": 0}).experts[0]
    np.testing.assert_array_equal(found.layers[0].mean, scaled.mean)
    np.testing.assert_array_equal(found.layers[1].kernel, frozen.kernel)
    assert np.abs(found.layers[2].get_weights()[0] - model.layers[2].get_weights()[0]).max() > 1e-3


def test_compile_and_fit_arguments(rng):
    x, y = data(rng, 20)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, "softmax")])
    with pytest.raises(ValueError, match="not compiled, and compile=None"):
        cross_fit([model], x, y)
    made = []

    def callbacks():
        made.append(keras.callbacks.Callback())
        return made[-1:]

    def compile(copy):
        copy.compile("sgd", "sparse_categorical_crossentropy")

    fit = {"verbose": 0, "callbacks": callbacks}
    cross_fit([model], x, y, folds=2, compile=compile, fit=fit)
    assert len(made) == 3  # two folds, all rows
    with pytest.raises(ValueError, match="one for each of the 1 experts"):
        cross_fit([model], x, y, compile=compile, fit=[fit, fit])
    optimizer = keras.optimizers.SGD(0.01)
    compiled = {"optimizer": optimizer, "loss": "sparse_categorical_crossentropy"}
    cross_fit([model], x, y, folds=2, compile=compiled, fit={"verbose": 0}, refit=False)
    assert not optimizer.built


def test_sample_weights_and_views_reach_the_experts(rng):
    x, y = data(rng)
    weights = rng.uniform(size=60)
    found = cross_fit(
        [Memory(), Memory()], {"a": x, "b": x[:, :1]}, y, sample_weight=weights,
        expert_inputs=["a", "b"], folds=3,
    )  # fmt: skip
    np.testing.assert_array_equal(found.experts[0].predict.weighted, weights)
    assert len(found.experts[1].predict.known) == 60


def test_models_of_scikit_learn_are_cloned(rng):
    tree = pytest.importorskip("sklearn.tree")
    x, y = data(rng)
    labels = np.array(["no", "yes"])[rng.permutation(y)]
    model = tree.DecisionTreeClassifier(random_state=0)
    found = cross_fit([model], x, labels, folds=3)
    assert not hasattr(model, "classes_")
    assert found.experts[0].classes == ["no", "yes"]
    assert (found.outputs[:, 0].argmax(axis=-1) == (labels == "yes")).mean() < 0.8
    values = cross_fit([tree.DecisionTreeRegressor()], x, x[:, 0], folds=3)
    assert values.outputs.shape == (60, 1, 1)


def test_experts_that_cannot_be_trained_are_refused(rng):
    x, y = data(rng)
    with pytest.raises(TypeError, match="Expert 1 of cross_fit"):
        cross_fit([Memory(), keras.layers.Dense(2)], x, y)
    with pytest.raises(ValueError, match=r"Expert 1 returns rows of shape \(3,\)"):
        cross_fit([Memory(), network(3)], x, y, folds=2, fit={"verbose": 0}, refit=False)


@pytest.mark.parametrize("labels", [np.arange(90) % 3, np.array(list("abc"))[np.arange(90) % 3]])
def test_classes_are_spread_evenly(labels):
    numbers = fold_numbers(labels, 5)
    counts = [[((numbers == f) & (labels == c)).sum() for c in np.unique(labels)] for f in range(5)]
    assert np.ptp(counts) == 0


def test_groups_stay_whole(rng):
    groups = rng.integers(0, 9, 100)
    numbers = fold_numbers(rng.normal(size=100), 3, groups)
    assert all(len(set(numbers[groups == group])) == 1 for group in range(9))
    assert np.bincount(numbers).min() > 15
    with pytest.raises(ValueError, match="9 groups"):
        fold_numbers(groups, 10, groups)
    with pytest.raises(ValueError, match="99 for 100 rows"):
        fold_numbers(groups, 3, groups[1:])


def test_folds_may_be_given(rng):
    given = np.array([7, 7, 2, 2])
    np.testing.assert_array_equal(fold_numbers(given, given), [1, 1, 0, 0])
    with pytest.raises(ValueError, match="1 folds of shape"):
        fold_numbers(given, np.zeros(4))
    with pytest.raises(ValueError, match="folds=1"):
        fold_numbers(given, 1)
    selection = pytest.importorskip("sklearn.model_selection")
    numbers = fold_numbers(given, selection.KFold(2))
    np.testing.assert_array_equal(numbers, [0, 0, 1, 1])
    with pytest.raises(ValueError, match="ShuffleSplit, which holds out"):
        fold_numbers(given, selection.ShuffleSplit(2, random_state=0))


@pytest.mark.parametrize("in_file", [False, True])
def test_the_gate_is_fitted_on_given_outputs(in_file, rng, tmp_path):
    """Out of fold, whoever memorised is worth nothing; on its own rows it takes all the weight."""
    x, y = data(rng, 100)
    found = cross_fit([Memory(), network()], x, y, folds=2, fit={"epochs": 5, "verbose": 0})
    outputs = found.outputs
    if in_file:
        path = tmp_path / "outputs.npy"
        np.save(path, outputs)
        outputs = np.load(path, mmap_mode="r")
    arguments = {"epochs": 10, "verbose": 0, "batch_size": 50}

    def weights(**kwargs):
        mix = plait.Mixture(found.experts, gate="constant")
        mix.compile(keras.optimizers.Adam(0.2), "sparse_categorical_crossentropy")
        mix.fit_gate(x, y, **arguments, **kwargs)
        return mix.gate_weights(x[:1])[0]

    assert weights(outputs=outputs)[0] < 0.2
    assert weights(outputs=outputs, validation_split=0.5)[0] < 0.3
    if not in_file:
        assert weights()[0] > 0.8


def test_outputs_that_do_not_fit_are_refused(rng):
    x, y = data(rng)
    mix = plait.Mixture([network(), network()])
    mix.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"\(60, 2, 2\)\. Received: \(60, 3, 2\)"):
        mix.fit_gate(x, y, outputs=np.ones((60, 3, 2)))


def test_rows_that_were_seen_are_named(rng):
    x, y = data(rng, 100)
    new_x, new_y = data(rng, 80)
    memory = plait.experts.Frozen(Memory().fit(x, y), name="memory")
    mix = plait.Mixture([memory, network()], gate="constant")
    mix.compile("adam", "sparse_categorical_crossentropy")
    with pytest.warns(UserWarning, match=r"expert 0 \('memory'\) has loss [^;]*cross_fit"):
        mix.fit_gate(x, y, holdout=(new_x, new_y), verbose=0)
    mix.fit_gate(new_x[:40], new_y[:40], holdout=(new_x[40:], new_y[40:]), verbose=0)
    with pytest.raises(ValueError, match="`holdout` of fit_gate must be"):
        mix.fit_gate(x, y, holdout=x, verbose=0)


def test_noise_is_not_called_seen(rng):
    quiet = rng.exponential(size=(500, 3)), rng.exponential(size=(300, 3))
    assert seen_in_training(list("abc"), *quiet, "") is None
