import json

import keras
import numpy as np
import pytest

from plait.tables import load

FIT = ["--target", "kind", "--ignore", "price", "--model", "mixture"]
FIT += ["--experts", 3, "--hidden", 8, "--epochs", 4]
CANDIDATES = ["one network", "networks averaged", "blended mixture"]


@pytest.mark.parametrize(
    ("task", "measures"), [("kind", {"loss", "accuracy"}), ("price", {"loss", "rmse", "r2"})]
)
def test_the_contest_is_honest_and_readable_by_machines(printed, task, measures):
    scores = printed[task]["scores"]
    constant = "majority class" if task == "kind" else "mean"
    names = [*CANDIDATES, constant, "linear model", "boosted trees"]
    assert [row["name"] for row in scores] == names
    for row in scores:
        more = {"chosen_less_this", "noise"} & set(row)
        assert set(row) - more == {"name", *measures}
        assert bool(more) == (row["name"] != "blended mixture")  # the one that was forced
    assert printed[task]["chosen"] == "mixture"
    assert printed[task]["rows"] == {"train": 192, "held_out": 192, "scored": 48}
    assert set(printed[task]["held_out"]) == {"network", "average", "mixture"}


def test_a_regression_learns_in_the_units_of_its_target(printed, fitted, mixed):
    assert printed["price"]["scores"][2]["r2"] > 0.1
    model = keras.saving.load_model(fitted / "price.keras")
    x = np.stack([mixed["x"], mixed["colour"] == "red"], axis=1)
    found = model.predict(x, verbose=0)[:, 0]
    assert abs(found.mean() - 1000) < 100


def test_the_same_seed_repeats_the_run_exactly(plait, fitted, printed, tmp_path):
    result = plait("fit", fitted / "t.csv", *FIT, "-o", tmp_path / "m.keras", "--json")
    assert json.loads(result.stdout)["scores"] == printed["kind"]["scores"]


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["linear", "constant"])
def test_every_gate_trains_and_reloads(plait, fitted, printed, tmp_path, gate):
    model = tmp_path / "m.keras"
    result = plait("fit", fitted / "t.csv", *FIT, "--gate", gate, "-o", model, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["gate"] == gate
    assert found["scores"] != printed["kind"]["scores"]
    weights = load(model).mixture.gate_weights(np.zeros((2, 3)))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)


@pytest.mark.slow
def test_a_test_table_is_scored_and_not_learned_from(plait, mixed, tmp_path):
    mixed[:200].to_csv(tmp_path / "a.csv", index=False)
    mixed[200:].to_csv(tmp_path / "b.csv", index=False)
    upside_down = mixed[200:].assign(
        kind=lambda f: f["kind"].map({"dear": "cheap", "cheap": "dear"})
    )
    upside_down.to_csv(tmp_path / "c.csv", index=False)

    def run(test):
        result = plait(
            "fit", tmp_path / "a.csv", "--target", "kind", "--ignore", "price", "--experts", 2,
            "--hidden", 4, "--epochs", 1, "--test", tmp_path / test, "-o", tmp_path / "m.keras",
        )  # fmt: skip
        assert f"{test} (40 rows)" in " ".join(result.stdout.split())
        model = keras.saving.load_model(tmp_path / "m.keras")
        return result.stdout, np.concatenate([w.ravel() for w in model.get_weights()])

    (first, learned), (second, again) = run("b.csv"), run("c.csv")
    np.testing.assert_array_equal(learned, again)
    assert first != second


def test_what_is_printed_for_people_ends_with_the_table(plait, fitted, tmp_path):
    result = plait(
        "fit", fitted / "t.csv", "--target", "kind", "--epochs", 1, "--experts", 2,
        "-o", tmp_path / "m.keras", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in CANDIDATES)
    assert "Wrote" not in result.stdout
    assert f"Wrote {tmp_path / 'r.html'}" in result.stderr
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_groups_and_weights_are_no_features(plait, mixed, tmp_path):
    who = np.repeat(np.arange(24), 10)
    mixed.assign(who=who, w=1.0).to_csv(tmp_path / "t.csv", index=False)
    result = plait(
        "fit", tmp_path / "t.csv", "--target", "kind", "--ignore", "price", "--group", "who",
        "--weight", "w", "--experts", 2, "--hidden", 4, "--epochs", 1, "-o", tmp_path / "m.keras",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert load(tmp_path / "m.keras").schema.names == ["x", "colour"]
    assert json.loads(result.stdout)["rows"]["scored"] % 10 == 0
