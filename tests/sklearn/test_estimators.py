"""The estimators keep scikit-learn's contract, and compute what their formulas say."""

import pickle
import random

import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression, Perceptron, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator

from plait.sklearn import (
    GatedClassifier,
    GatedRegressor,
    MixtureClassifier,
    MixtureRegressor,
)

CLASSIFIERS = [("lr", LogisticRegression(max_iter=500)), ("nb", GaussianNB())]
REGRESSORS = [("ridge", Ridge()), ("tree", DecisionTreeRegressor(max_depth=3, random_state=0))]
SMALL = {"n_experts": 2, "hidden_layer_sizes": (8,), "learning_rate_init": 0.03, "random_state": 0}
ESTIMATORS = {
    "MixtureClassifier": MixtureClassifier(**SMALL, max_iter=40),
    "MixtureRegressor": MixtureRegressor(**SMALL, max_iter=40),
    "GatedClassifier": GatedClassifier(CLASSIFIERS, cv=3, max_iter=20),
    "GatedRegressor": GatedRegressor(REGRESSORS, cv=3, max_iter=20),
}
FLOAT32 = (
    "the gradient steps are taken in float32: a weight of 2 and a repeated row agree to about "
    "1e-5, where the check asks for 1e-7"
)
EXPECTED_FAILURES = {"check_sample_weight_equivalence_on_dense_data": FLOAT32}
X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    keras.backend.backend() != "torch",
    reason="hundreds of small fits: the other backends compile each of them for a second",
)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_check_estimator_is_clean(name):
    results = check_estimator(
        ESTIMATORS[name], expected_failed_checks=EXPECTED_FAILURES, on_fail="raise", on_skip=None
    )
    assert sum(result["status"] == "passed" for result in results) > 50


@pytest.mark.parametrize(
    "estimator", [ESTIMATORS["MixtureRegressor"], ESTIMATORS["GatedRegressor"]]
)
def test_weights_and_repeated_rows_agree_to_float32(estimator):
    """What the expected failure hides is rounding alone."""
    x, y = X[::4, :3], X[::4, 3]
    counts = np.arange(len(x)) % 3
    estimator = clone(estimator).set_params(random_state=0, max_iter=10)
    if "cv" in estimator.get_params():
        fitted = [(name, clone(each).fit(x, y)) for name, each in REGRESSORS]
        estimator.set_params(estimators=fitted, cv="prefit")
    weighed = clone(estimator) if "cv" not in estimator.get_params() else estimator
    first = weighed.fit(x, y, sample_weight=counts).predict(x)
    second = weighed.fit(np.repeat(x, counts, axis=0), np.repeat(y, counts)).predict(x)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["mixture", "likelihood", "expert_mean"])
def test_a_mixture_learns_classes_with_every_objective(objective):
    model = MixtureClassifier(**SMALL, max_iter=60, objective=objective).fit(X, NAMES)
    p = model.predict_proba(X)
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=0, atol=1e-15)
    assert set(model.predict(X)) <= set(NAMES)
    assert model.score(X, NAMES) > 0.9
    np.testing.assert_allclose(model.gate_weights(X).sum(axis=1), 1.0, atol=1e-5)


def test_the_callers_random_numbers_do_not_depend_on_a_fit():
    def numbers(between):
        keras.utils.set_random_seed(7)
        between()
        own = (
            random.random(),
            np.random.rand(),  # noqa: NPY002
            keras.ops.convert_to_numpy(keras.random.uniform(())),
        )
        return [float(each) for each in own]

    def work():
        model = MixtureClassifier(**SMALL, max_iter=2, batch_size=50).fit(X, Y)
        pickle.loads(pickle.dumps(model)).predict(X)
        GatedClassifier(CLASSIFIERS, cv="prefit", max_iter=2).set_params(
            estimators=[(name, clone(each).fit(X, Y)) for name, each in CLASSIFIERS]
        ).fit(X, Y).predict(X)

    assert numbers(lambda: None) == numbers(work)


def test_one_seed_gives_one_model_whatever_the_global_seed():
    fits = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        fits.append(MixtureClassifier(**SMALL, max_iter=3, batch_size=40).fit(X, Y))
    first, second = (fit.predict_proba(X) for fit in fits)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    other = MixtureClassifier(**{**SMALL, "random_state": 1}, max_iter=3).fit(X, Y)
    assert np.abs(other.predict_proba(X) - first).max() > 1e-3


def test_a_pickle_predicts_the_same_and_goes_on_training():
    model = MixtureRegressor(**SMALL, max_iter=5, warm_start=True).fit(X[:, :2], X[:, 2:])
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(again.predict(X[:, :2]), model.predict(X[:, :2]), rtol=1e-6)
    before = again.loss_
    assert again.fit(X[:, :2], X[:, 2:]).loss_ < before
    with pytest.raises(ValueError, match=r"y of shape \(150,\) after \(n, 2\)"):
        again.fit(X[:, :2], X[:, 2])


def test_a_warm_start_meets_the_same_classes():
    model = MixtureClassifier(**SMALL, max_iter=2, warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match=r"classes \[0, 1\] after \[0, 1, 2\]"):
        model.fit(X[:100], Y[:100])


def test_early_stopping_keeps_the_weights_that_did_best():
    model = MixtureClassifier(
        **{**SMALL, "learning_rate_init": 0.3},
        max_iter=40,
        early_stopping=True,
        validation_fraction=0.3,
        n_iter_no_change=5,
    ).fit(X, Y)
    assert len(model.validation_losses_) == model.n_iter_ <= 40


def test_class_weights_count_like_sample_weights():
    by_class = MixtureClassifier(**SMALL, max_iter=5, class_weight={0: 1.0, 1: 5.0, 2: 1.0})
    by_row = MixtureClassifier(**SMALL, max_iter=5)
    first = by_class.fit(X, Y).predict_proba(X)
    second = by_row.fit(X, Y, sample_weight=np.where(Y == 1, 5.0, 1.0)).predict_proba(X)
    np.testing.assert_allclose(first, second, rtol=1e-5)
    assert np.abs(by_row.fit(X, Y).predict_proba(X) - first).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n_experts": 0}, "n_experts=0"),
        ({"hidden_layer_sizes": (8, 0)}, "hidden_layer_sizes=.*0"),
        ({"gate": "liner"}, "Use 'linear'"),
        ({"objective": "nll"}, "`objective` must be one of"),
        ({"max_iter": 2.5}, "max_iter=2.5"),
        ({"batch_size": "big"}, "batch_size='big'"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, says):
    with pytest.raises(ValueError, match=says):
        MixtureClassifier(**{**SMALL, **wrong}).fit(X, Y)


def fitted(gate, combination="arithmetic"):
    pairs = [*CLASSIFIERS, ("knn", KNeighborsClassifier(3))]
    return GatedClassifier(
        pairs, gate=gate, combination=combination, cv=3, max_iter=30, random_state=0
    ).fit(X[::2], NAMES[::2])


@pytest.mark.parametrize("gate", ["uniform", "constant", "linear", "mlp", "per-class"])
def test_the_arithmetic_gate_is_the_weighted_sum(gate):
    model = fitted(gate)
    p = np.stack([each.predict_proba(X) for each in model.named_estimators_.values()], axis=-1)
    w = model.gate_weights(X).astype("float64")
    expected = (p * (w if gate == "per-class" else w[:, None, :])).sum(axis=-1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-5)
    assert model.score(X, NAMES) > 0.9
    if gate == "uniform":
        np.testing.assert_allclose(w, 1 / 3, atol=1e-6)
    else:
        assert np.abs(w - 1 / 3).max() > 1e-3  # it was trained


@pytest.mark.parametrize("gate", ["uniform", "linear", "per-class"])
def test_the_geometric_gate_is_the_weighted_sum_of_logarithms(gate):
    model = fitted(gate, "geometric")
    p = np.stack([each.predict_proba(X) for each in model.named_estimators_.values()], axis=-1)
    p = np.maximum(p, 1e-6)
    p /= p.sum(axis=1, keepdims=True)
    w = model.gate_weights(X).astype("float64")
    pooled = np.exp((np.log(p) * (w if gate == "per-class" else w[:, None, :])).sum(axis=-1))
    pooled /= pooled.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X), pooled, atol=1e-5)


def test_the_geometric_gate_of_regressors_weighs_by_precision():
    x, y = load_diabetes(return_X_y=True)
    pairs = [(name, clone(each).fit(x[:200], y[:200])) for name, each in REGRESSORS]
    model = GatedRegressor(pairs, cv="prefit", gate="uniform", combination="geometric")
    model.fit(x[200:], y[200:])
    outputs = np.stack([each.predict(x[200:]) for _, each in pairs], axis=1)
    precisions = 1 / ((outputs - y[200:, None]) ** 2).mean(axis=0)
    expected = outputs @ (precisions / precisions.sum())
    np.testing.assert_allclose(model.predict(x[200:]), expected, rtol=1e-4)


def test_the_gate_reads_outputs_out_of_fold():
    """A tree that knows its own rows by heart gets no weight on labels that are noise."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(120, 3)), generator.integers(0, 2, 120)
    pairs = [("knn", KNeighborsClassifier(1)), ("prior", DummyClassifier())]
    settings = {"gate": "constant", "learning_rate_init": 0.1, "random_state": 0}
    honest = GatedClassifier(pairs, cv=4, **settings).fit(x, y)
    own = [(name, clone(each).fit(x, y)) for name, each in pairs]
    fooled = GatedClassifier(own, cv="prefit", **settings).fit(x, y)
    assert honest.gate_weights(x)[0, 0] < 0.3
    assert fooled.gate_weights(x)[0, 0] > 0.8


def test_inner_parameters_are_found_set_and_cloned():
    model = GatedClassifier(CLASSIFIERS)
    copied = clone(model).set_params(lr__C=0.5, nb=KNeighborsClassifier(), gate="constant")
    assert copied.get_params()["lr__C"] == 0.5
    assert type(copied.get_params()["nb"]) is KNeighborsClassifier
    assert model.get_params()["lr__C"] == 1.0
    assert copied.gate == "constant"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"estimators": []}, "Received: \\[\\]"),
        ({"estimators": [("a", GaussianNB()), ("a", GaussianNB())]}, "names of their own"),
        ({"estimators": [("gate", GaussianNB())]}, "'gate'"),
        ({"estimators": [("p", Perceptron())]}, "'p', a Perceptron. .*CalibratedClassifierCV"),
        ({"gate": "per class"}, "Use 'per-class'"),
        ({"combination": "harmonic"}, "'harmonic'"),
    ],
)
def test_a_wrong_gate_or_estimator_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        GatedClassifier(**{"estimators": CLASSIFIERS, **arguments}).fit(X, Y)


def test_an_estimator_without_sample_weights_is_named():
    pairs = [("knn", KNeighborsClassifier()), *CLASSIFIERS]
    with pytest.raises(TypeError, match="'knn', a KNeighborsClassifier"):
        GatedClassifier(pairs).fit(X, Y, sample_weight=np.ones(len(X)))


def test_tables_with_text_pass_through_pipelines():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"]).assign(
        kind=np.where(X[:, 0] > 5.8, "x", "y")
    )
    columns = make_column_transformer(
        (OneHotEncoder(), ["kind"]), (StandardScaler(), ["a", "b", "c", "d"])
    ).set_output(transform="default")
    mixture = make_pipeline(columns, MixtureClassifier(**SMALL, max_iter=30)).fit(frame, NAMES)
    assert mixture.score(frame, NAMES) > 0.8
    inner = [
        ("lr", make_pipeline(clone(columns), LogisticRegression())),
        ("prior", DummyClassifier()),
    ]
    gated = GatedClassifier(inner, cv=3, gate_transformer=clone(columns), max_iter=20)
    assert gated.fit(frame, NAMES).score(frame, NAMES) > 0.8
    assert gated.feature_names_in_.tolist() == [*"abcd", "kind"]
    with pytest.raises(ValueError, match="could not convert string to float"):
        clone(gated).set_params(gate_transformer=None).fit(frame, NAMES)


def test_names_of_columns_are_kept_and_checked():
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    scaled = StandardScaler().set_output(transform="pandas")
    model = make_pipeline(scaled, MixtureClassifier(**SMALL, max_iter=2)).fit(frame, Y)
    assert model[-1].feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        model[-1].predict(frame[["b", "a", "c", "d"]])


def test_out_of_fold_predictions_are_made():
    model = MixtureClassifier(**{**SMALL, "n_experts": 1}, max_iter=30)
    p = cross_val_predict(model, X[::3], Y[::3], cv=2, method="predict_proba")
    assert p.shape == (50, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_grid_search_in_two_processes():
    search = GridSearchCV(
        MixtureClassifier(**SMALL, max_iter=20), {"gate": ["linear", "constant"]}, cv=2, n_jobs=2
    )
    search.fit(X, NAMES)
    assert search.best_score_ > 0.8
    assert pickle.loads(pickle.dumps(search)).predict(X).tolist() == search.predict(X).tolist()


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (np.ones(3), r"shape \(3,\)"),
        (-np.ones(150), "from -1 to -1"),
        (np.zeros(150), "from 0 to 0"),
    ],
)
def test_wrong_sample_weights_are_named(weights, says):
    with pytest.raises(ValueError, match=says):
        MixtureClassifier(**SMALL).fit(X, Y, sample_weight=weights)
