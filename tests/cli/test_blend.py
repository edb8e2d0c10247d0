import json
import re
import shutil

import keras
import numpy as np
import pandas as pd
import pytest

from plait.tables import load


def half_right(good, units=2):
    """Right where x1 has the sign `good`, wrong elsewhere: sharp on x0 times that sign."""
    inputs = keras.Input((2,))
    # tanh(9 x1) is about the sign of x1; a product of layers gives x0 where it is `good`.
    sign = keras.layers.Dense(1, activation="tanh", use_bias=False, name="dense")(inputs)
    value = keras.layers.Dense(1, use_bias=False, name="dense_1")(inputs)
    product = keras.layers.Multiply()([sign, value])
    last = {"use_bias": False, "name": "dense_2"}
    if units == 1:
        outputs = keras.layers.Dense(1, **last)(product)
        kernel = [[good]]
    else:
        outputs = keras.layers.Dense(2, activation="softmax", **last)(product)
        kernel = [[-2.0 * good, 2.0 * good]]
    model = keras.Model(inputs, outputs, name="net")
    model.set_weights([np.array(w, "float32") for w in ([[0.0], [9.0]], [[1.0], [0.0]], kernel)])
    return model


def flat(units=2):
    """Knows nothing; built another way than the others, under the same names."""
    last = keras.layers.Dense(
        units, activation="softmax" if units > 1 else None, kernel_initializer="zeros", name="dense"
    )
    layers = [keras.Input((2,)), keras.layers.Reshape((2, 1)), keras.layers.Flatten(), last]
    return keras.Sequential(layers, name="net")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Two tables and three models for each task; the sign of x1 tells whom to trust."""
    folder = tmp_path_factory.mktemp("blend")
    rng = np.random.default_rng(11)
    x = rng.normal(size=(800, 2))
    frame = pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": x[:, 0] + rng.normal(0, 0.1, 800)})
    frame["label"] = (frame["y"] > 0).astype(int)
    frame["coin"] = rng.integers(0, 2, 800)
    frame[:600].to_csv(folder / "train.csv", index=False)
    frame[600:].to_csv(folder / "test.csv", index=False)
    for units, task in ((2, "c"), (1, "r")):
        half_right(1.0, units).save(folder / f"{task}1.keras")
        half_right(-1.0, units).save(folder / f"{task}2.keras")
        flat(units).save(folder / f"{task}3.keras")
    return folder


def blend(plait, folder, task, out, target, *more):
    others = {"label", "y", "coin"} - {target}
    ignore = [part for name in sorted(others) for part in ("--ignore", name)]
    models = [folder / f"{task}{i}.keras" for i in (1, 2, 3)]
    return plait(
        "blend", *models, "--data", folder / "train.csv", "--target", target, *ignore,
        "--test", folder / "test.csv", "-o", out, "--json", *more,
    )  # fmt: skip


@pytest.mark.parametrize(("task", "target"), [("c", "label"), ("r", "y")])
def test_a_gate_learns_whom_to_trust(plait, folder, tmp_path, task, target):
    out = tmp_path / "m.keras"
    result = blend(plait, folder, task, out, target, "--epochs", 60)
    assert result.exit_code == 0, result.output
    rows = {row["name"].split(" (")[0]: row["loss"] for row in json.loads(result.stdout)["scores"]}
    assert rows["mixture"] < 0.9 * rows["best constant weights"]
    # Trained models stay as they are, in the file as well.
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    found = load(out).expert_outputs(x)
    for i in range(3):
        expected = keras.saving.load_model(folder / f"{task}{i + 1}.keras").predict(x, verbose=0)
        np.testing.assert_allclose(found[:, i], expected, atol=1e-5)


def test_the_simplest_gate_that_held_out_rows_allow_is_chosen(plait, folder, tmp_path):
    """One that sees the row where that pays, the plain average where nothing does."""
    chosen = {}
    for target in ("label", "coin"):
        out, report = tmp_path / f"{target}.keras", tmp_path / f"{target}.html"
        result = blend(
            plait, folder, "c", out, target, "--gate", "auto", "--epochs", 20, "--report", report
        )
        assert result.exit_code == 0, result.output
        told = re.search(r"Loss on held-out rows: (.*)\. Chosen: ([a-z-]+),", result.stderr)
        names = [part.split()[0] for part in told[1].split(", ")]
        assert names == ["uniform", "constant", "free", "linear", "per-class", "mlp"]
        chosen[target] = json.loads(result.stdout)["gate"]
        assert chosen[target] == told[2]
        assert load(out).model.predict(np.zeros((1, 2)), verbose=0).shape == (1, 2)
    assert chosen["label"] in ("linear", "mlp")
    assert chosen["coin"] == "uniform"


def test_weights_per_class(plait, refused, folder, tmp_path):
    """A weight for each class and model; a table of values has no classes."""
    out, report = tmp_path / "m.keras", tmp_path / "r.html"
    result = blend(
        plait, folder, "c", out, "label", "--gate", "per-class", "--epochs", 5, "--report", report
    )
    assert result.exit_code == 0, result.output
    mixture = load(out).mixture
    assert mixture.combination == "geometric"
    assert mixture.gate_weights(np.zeros((1, 2), "float32")).shape == (1, 2, 3)
    assert "The honest table" in report.read_text()
    models = [folder / f"r{i}.keras" for i in (1, 2)]
    error = refused(
        "blend", *models, "--data", folder / "train.csv", "--target", "y", "--ignore", "label",
        "--ignore", "coin", "--gate", "per-class", "-o", tmp_path / "n.keras",
    )  # fmt: skip
    assert "`--gate per-class` weighs the classes" in error


@pytest.mark.parametrize(("kind", "target"), [("c", "label"), ("r", "y")])
def test_free_weights(plait, folder, tmp_path, kind, target):
    """A weight for each model, of any sign and sum: of a pool of classes, of a sum of values."""
    out = tmp_path / "m.keras"
    result = blend(plait, folder, kind, out, target, "--gate", "free", "--epochs", 5)
    assert result.exit_code == 0, result.output
    mixture = load(out).mixture
    assert mixture.combination == ("geometric" if kind == "c" else "arithmetic")
    assert mixture.gate_weights(np.zeros((1, 2), "float32")).shape == (1, mixture.num_experts)


def test_where_no_gate_helps_the_blend_is_the_best_constant_weights(plait, folder, tmp_path):
    result = blend(plait, folder, "c", tmp_path / "m.keras", "coin", "--epochs", 3)
    rows = {row["name"]: row["loss"] for row in json.loads(result.stdout)["scores"]}
    assert rows["mixture"] <= rows["best constant weights"] + 1e-3


@pytest.mark.slow
def test_files_of_fit_blend_with_their_columns_and_units(plait, fitted, mixed, tmp_path):
    other = tmp_path / "other.keras"
    plait(
        "fit", fitted / "t.csv", "--target", "price", "--ignore", "kind", "--experts", 1,
        "--hidden", 4, "--epochs", 2, "--gate", "constant", "-o", other,
    )  # fmt: skip
    out = tmp_path / "m.keras"
    result = plait(
        "blend", fitted / "price.keras", other, "--data", fitted / "t.csv", "--target", "price",
        "--gate", "mlp", "--epochs", 2, "-o", out, "--report", tmp_path / "r.html", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["experts"] == ["price", "other"]
    predicted = plait("predict", out, fitted / "t.csv").stdout.split()[1:]
    assert abs(np.mean([float(value) for value in predicted]) - mixed["price"].mean()) < 100
    assert "other" in plait("inspect", out).stdout
    assert "The honest table" in (tmp_path / "r.html").read_text()


def test_a_blend_of_files_of_fit_is_no_network_of_theirs(plait, fitted, tmp_path):
    """What the first file says of its own training is not said of the blend."""
    shutil.copy(fitted / "price.keras", tmp_path / "copy.keras")
    result = plait(
        "blend", fitted / "price.keras", tmp_path / "copy.keras", "--data", fitted / "t.csv",
        "--target", "price", "--gate", "uniform", "-o", tmp_path / "m.keras", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["scores"][0]["name"] == "mixture"
    assert load(tmp_path / "m.keras").schema.record is None


def test_a_blend_keeps_an_output_that_cannot_be_replaced(refused, fitted):
    model = fitted / "kind.keras"
    found = refused(
        "blend", model, model, "--data", fitted / "t.csv", "--target", "kind", "-o", model
    )
    assert re.search(r"must not overwrite an input", found)


@pytest.fixture(scope="session")
def wrong(folder):
    """Models that do not fit the tables."""
    path = folder / "wrong"
    path.mkdir()
    dense = keras.layers.Dense
    keras.Sequential([keras.Input((2,)), dense(3, activation="softmax")]).save(path / "3.keras")
    keras.Sequential([keras.Input((5,)), dense(2, activation="softmax")]).save(path / "in.keras")
    keras.Sequential([keras.Input((2,)), dense(2)]).save(path / "logits.keras")
    keras.Sequential([keras.Input((2, 3)), dense(2)]).save(path / "steps.keras")
    (path / "damaged.keras").write_text("not a model")
    return path


WRONG = [
    ("3.keras", r"must end in 2 units for 2 classes\. Received: 3 with 3"),
    ("in.keras", r"must read the table's 2 feature columns\. Received: in with .*\(None, 5\)"),
    ("logits.keras", r"must end in a softmax.*Received: logits, whose first outputs sum to"),
    ("steps.keras", r"one output of shape \(b, units\)\. Received: steps with \(None, 2, 2\)"),
    ("damaged.keras", r"must be a \.keras file that Keras can load"),
    ("gone.keras", r"A model must exist"),
]


@pytest.mark.parametrize(("name", "match"), WRONG)
def test_models_that_do_not_fit(refused, folder, wrong, tmp_path, name, match):
    found = refused(
        "blend", folder / "c1.keras", wrong / name, "--data", folder / "train.csv",
        "--target", "label", "--ignore", "y", "--ignore", "coin", "-o", tmp_path / "m.keras",
    )  # fmt: skip
    assert re.search(match, found), found
    assert not list(tmp_path.iterdir())


def test_one_model_is_no_blend(refused, folder, tmp_path):
    found = refused(
        "blend", folder / "c1.keras", "--data", folder / "train.csv", "--target", "label",
        "-o", tmp_path / "m.keras",
    )  # fmt: skip
    assert re.search(r"A blend needs at least two models\. Received: 1", found)


def test_texts_need_models_that_know_them(refused, folder, fitted, tmp_path):
    found = refused(
        "blend", folder / "c1.keras", folder / "c2.keras", "--data", fitted / "t.csv",
        "--target", "kind", "-o", tmp_path / "m.keras",
    )  # fmt: skip
    assert re.search(r"read numbers only\. Received: texts in 'colour'.*--ignore colour", found)


def test_files_of_fit_with_other_targets_do_not_blend(refused, fitted, tmp_path):
    found = refused(
        "blend", fitted / "kind.keras", fitted / "price.keras", "--data", fitted / "t.csv",
        "--target", "kind", "-o", tmp_path / "m.keras",
    )  # fmt: skip
    assert re.search(r"must have the same tasks\. Received: kind with 'classification'", found)


def test_models_that_have_seen_the_rows_of_the_gate_are_named(plait, folder, tmp_path):
    """The first regressor gives the training table's target exactly, and not the test table's."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 2))
    exact = keras.saving.load_model(folder / "r1.keras").predict(x, verbose=0)[:, 0]
    frame = pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": exact})
    frame[:120].to_csv(tmp_path / "train.csv", index=False)
    new = frame[120:].assign(y=frame["y"][120:] + rng.normal(0, 1, 80))
    new.to_csv(tmp_path / "test.csv", index=False)
    result = plait(
        "blend", folder / "r1.keras", folder / "r3.keras", "--data", tmp_path / "train.csv",
        "--target", "y", "--test", tmp_path / "test.csv", "--epochs", 1, "-o", tmp_path / "m.keras",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert re.search(r"seen in training: r1 has loss [^;]*\. A gate", result.stderr)
