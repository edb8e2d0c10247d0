import json

import keras
import numpy as np
import pytest

import plait as package


def test_inspect_tells_what_is_inside(plait, fitted):
    text = plait("inspect", fitted / "kind.keras").stdout
    for part in (
        "classification of 'kind'",
        "cheap, dear",
        "x, colour (2 categories)",
        "Softmax(",
        "expert 2",
        "Dense(8), Dense(8), Dense(2)",
        "(b, 3)",
    ):
        assert part in text


def test_inspect_speaks_json(plait, fitted):
    found = json.loads(plait("inspect", fitted / "price.keras", "--json").stdout)
    assert [expert["parameters"] for expert in found["experts"]] == [4 * 8 + 9 * 8 + 9] * 3
    assert found["gate"]["parameters"] == 4 * 8 + 9 * 3
    assert found["table"]["target"] == "price"
    assert len(found["table"]["baseline"]["weights"]) == 3


def test_inspect_reads_any_mixture_however_deep(plait, tmp_path):
    experts = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]) for _ in range(2)]
    mixture = package.Mixture(experts, "uniform")
    model = keras.Sequential([keras.Input((4,)), keras.Sequential([mixture])])
    model.save(tmp_path / "m.keras")
    found = json.loads(plait("inspect", tmp_path / "m.keras", "--json").stdout)
    assert len(found["experts"]) == 2
    assert found["table"] is None


def test_report_scores_a_table_and_writes_a_page(plait, fitted, printed, tmp_path):
    page = tmp_path / "r.html"
    result = plait("report", fitted / "kind.keras", fitted / "t.csv", "-o", page, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rows"] == {"scored": 240}
    assert found["written"] == [str(page)]
    assert found["scores"][0]["name"] == "mixture"
    assert printed["kind"]["scores"][2]["name"] in page.read_text()
    assert "t.csv (240 rows)\nwith 3 experts." in page.read_text()


def test_report_finds_the_truth_in_a_column_of_another_name(plait, fitted, mixed, tmp_path):
    mixed.rename(columns={"price": "paid"}).to_csv(tmp_path / "t.csv", index=False)
    result = plait(
        "report", fitted / "price.keras", tmp_path / "t.csv", "--target", "paid",
        "-o", tmp_path / "r.html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Weights along the target" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("ending", ["parquet", "npz"])
def test_tables_of_every_kind_score_the_same(plait, fitted, mixed, tmp_path, ending):
    other = tmp_path / f"t.{ending}"
    if ending == "parquet":
        mixed.to_parquet(other)
    else:
        colours = np.array(mixed["colour"].tolist())
        np.savez(other, x=mixed["x"], price=mixed["price"], colour=colours)

    def scores(data):
        page = tmp_path / "r.html"
        result = plait("report", fitted / "price.keras", data, "-o", page, "--json")
        return [row["rmse"] for row in json.loads(result.stdout)["scores"]]

    np.testing.assert_allclose(scores(other), scores(fitted / "t.csv"), rtol=1e-5)
