"""Tables larger than memory go the way of small ones: here the limits are lowered instead."""

import json

import numpy as np
import pandas as pd
import pytest

from plait.cli import data, fit
from plait.tables import Table, load, reading

FIT = ["--ignore", "price", "--experts", 3, "--hidden", 8, "--epochs", 4]


@pytest.fixture
def little_memory(monkeypatch):
    """Batches of some rows, and nothing to learn from in memory."""
    monkeypatch.setattr(reading, "_CELLS", 100)
    monkeypatch.setattr(data, "IN_MEMORY", 0)


def test_fit_learns_the_same_from_a_file(plait, fitted, printed, little_memory, tmp_path):
    assert len(list(Table(fitted / "t.csv").batches())) > 5
    model = tmp_path / "m.keras"
    result = plait(
        "fit", fitted / "t.csv", "--target", "kind", *FIT, "--model", "mixture", "-o", model,
        "--report", tmp_path / "r.html", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for ours, theirs in zip(
        json.loads(result.stdout)["scores"], printed["kind"]["scores"], strict=True
    ):
        assert ours["name"] == theirs["name"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    x = np.array([[40.0, 0.0], [60.0, 1.0]])
    for ours, theirs in zip(
        load(model).model.get_weights(),
        load(fitted / "kind.keras").model.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert load(model).model.predict(x, verbose=0).shape == (2, 2)


@pytest.mark.parametrize("gate", ["linear", "auto"])
def test_blend_learns_the_same_from_a_file(plait, fitted, request, tmp_path, gate):
    models = [tmp_path / "a.keras", tmp_path / "bb.keras"]
    for model in models:
        made = ["fit", fitted / "t.csv", "--target", "kind", *FIT, "--seed", len(model.name)]
        assert plait(*made, "-o", model).exit_code == 0

    def blend():
        result = plait(
            "blend", *models, "--data", fitted / "t.csv", "--target", "kind", "--ignore", "price",
            "--gate", gate, "--epochs", 2, "-o", tmp_path / "m.keras", "--json",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        return [score["loss"] for score in json.loads(result.stdout)["scores"]]

    in_memory = blend()
    request.getfixturevalue("little_memory")
    assert blend() == pytest.approx(in_memory, rel=1e-2)


def test_report_scores_the_same_from_a_file(plait, fitted, request, tmp_path):
    def report():
        result = plait(
            "report", fitted / "kind.keras", fitted / "t.csv", "-o", tmp_path / "r.html", "--json"
        )
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    in_memory = report()
    request.getfixturevalue("little_memory")
    assert report() == in_memory


def test_what_is_measured_and_fitted_on_some_rows_says_so(
    plait, fitted, mixed, monkeypatch, tmp_path
):
    monkeypatch.setattr(data, "MOST_SCORED", 20)
    monkeypatch.setattr(fit, "MOST_FITTED", 50)
    groups = tmp_path / "groups.csv"
    mixed.assign(who=np.repeat(np.arange(6), 40)).to_csv(groups, index=False)

    def scored_on(*arguments):
        result = plait(
            *arguments, "-o", tmp_path / f"m{'.html' * (arguments[0] == 'report') or '.keras'}"
        )
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    learn = ["fit", fitted / "t.csv", "--target", "kind", *FIT]
    found = scored_on(*learn)
    assert "Scored on rows held out of the table (20 rows)" in found
    assert "boosted trees of 50 rows" in found
    found = scored_on(*learn, "--test", fitted / "t.csv")
    assert "t.csv (20 of its 240 rows)" in found
    found = scored_on("fit", groups, "--target", "kind", *FIT, "--group", "who")
    assert "a fifth held out of the table (20 of its 40 rows)" in found
    found = scored_on("report", fitted / "kind.keras", fitted / "t.csv")
    assert "t.csv (20 of its 240 rows)" in found


def test_rows_of_the_whole_table_are_checked_where_some_are_scored(
    refused, fitted, mixed, monkeypatch, tmp_path
):
    monkeypatch.setattr(data, "MOST_SCORED", 5)
    monkeypatch.setattr(reading, "_CELLS", 40)
    wrong = mixed.assign(kind=["odd" if i % 2 else kind for i, kind in enumerate(mixed["kind"])])
    wrong.to_csv(tmp_path / "t.csv", index=False)
    found = refused("report", fitted / "kind.keras", tmp_path / "t.csv", "-o", tmp_path / "r.html")
    assert "'odd' in row 2 (120 such rows of 240)" in found


def test_groups_of_a_large_table_are_held_out_whole(
    fitted, mixed, monkeypatch, little_memory, tmp_path
):
    monkeypatch.setattr(data, "MOST_SCORED", 5)
    who = [f"p{i % 12}" for i in range(240)]
    mixed.assign(who=who).to_csv(tmp_path / "t.csv", index=False)
    table = Table(tmp_path / "t.csv", ["who"])
    groups = data.group_codes(table, "who")
    names = sorted(set(who))
    assert [names[code] for code in groups] == who
    folds = data.folds_of(np.arange(240.0), groups, 0)
    for group in range(12):
        assert len(set(folds[groups == group])) == 1


def test_numbers_of_groups_are_the_same_beside_empty_cells(tmp_path):
    pd.DataFrame({"who": pd.array([7, None, 7, 8], "Int64")}).to_parquet(tmp_path / "t.parquet")
    table = Table(tmp_path / "t.parquet", ["who"], size=2)
    assert data.group_codes(table, "who").tolist() == [1, 0, 1, 2]


def test_a_large_table_holds_out_no_more_than_is_measured_on(monkeypatch):
    monkeypatch.setattr(data, "MOST_SCORED", 30)
    y = np.repeat([0, 1], [9000, 16_000])
    folds = data.folds_of(y, None, 0)
    assert (folds == 0).sum() == 30
    rows = data.AllRows(None, None, y)
    held = data.hold_out(rows, "classification", None, 0)
    assert held.sum() == 30
    assert y[held].mean() == pytest.approx(0.64, abs=0.1)
