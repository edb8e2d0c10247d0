import io

import keras
import numpy as np
import pandas as pd
import pytest


def test_labels_and_probabilities_are_those_of_the_model(plait, fitted, mixed):
    result = plait("predict", fitted / "kind.keras", fitted / "t.csv")
    assert result.exit_code == 0, result.output
    found = pd.read_csv(io.StringIO(result.stdout))
    assert list(found) == ["kind", "p_cheap", "p_dear"]
    x = np.stack([mixed["x"], mixed["colour"] == "red"], axis=1)
    expected = keras.saving.load_model(fitted / "kind.keras").predict(x, verbose=0)
    np.testing.assert_allclose(found[["p_cheap", "p_dear"]], expected, atol=1e-5)
    assert found["kind"].tolist() == np.array(["cheap", "dear"])[expected.argmax(1)].tolist()


def test_standard_input_gives_what_the_file_gives(plait, fitted):
    text = (fitted / "t.csv").read_text()
    file = plait("predict", fitted / "price.keras", fitted / "t.csv")
    assert plait("predict", fitted / "price.keras", "-", stdin=text).stdout == file.stdout
    assert file.stdout.startswith("price\n")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_batches_leave_no_seam(plait, fitted, mixed, tmp_path, monkeypatch, ending):
    whole = tmp_path / f"whole.{ending}"
    parts = tmp_path / f"parts.{ending}"
    mixed.to_parquet(tmp_path / "t.parquet")
    plait("predict", fitted / "kind.keras", tmp_path / "t.parquet", "-o", whole)
    monkeypatch.setattr("plait.cli.predict._ROWS", 100)
    plait("predict", fitted / "kind.keras", fitted / "t.csv", "-o", parts)
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    pd.testing.assert_frame_equal(read(whole), read(parts), atol=1e-5)
    assert len(read(parts)) == 240


def test_columns_may_come_in_any_order_with_others_beside_them(plait, fitted, mixed, tmp_path):
    mixed[["kind", "colour", "price", "x"]].to_csv(tmp_path / "t.csv", index=False)
    first = plait("predict", fitted / "kind.keras", fitted / "t.csv").stdout
    assert plait("predict", fitted / "kind.keras", tmp_path / "t.csv").stdout == first


def test_a_bad_row_far_down_leaves_the_old_output_alone(
    plait, fitted, mixed, tmp_path, monkeypatch
):
    monkeypatch.setattr("plait.cli.predict._ROWS", 100)
    mixed.assign(colour=[*mixed["colour"][:-1], "green"]).to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "p.csv").write_text("before")
    result = plait(
        "predict", fitted / "kind.keras", tmp_path / "t.csv", "--strict", "-o", tmp_path / "p.csv"
    )
    assert result.exit_code == 2
    assert "'green' in row 240" in result.stderr
    assert (tmp_path / "p.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.csv", "t.csv"]
