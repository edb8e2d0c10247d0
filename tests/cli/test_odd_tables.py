"""Tables as they are: each is read right, or refused with a sentence that helps."""

import datetime
import decimal
import gzip
import json
import re

import numpy as np
import pandas as pd
import pytest

from plait.tables import Findings, infer, matrix, read, target

ROWS = 12
Y = ["u", "v"] * (ROWS // 2)


def csv(cells, name="a"):
    return f"{name},y\n" + "".join(f"{cell},{y}\n" for cell, y in zip(cells, Y, strict=True))


def inferred(path, **options):
    frame = read(path, ["y"])
    schema = infer(frame, "y", **options)
    return frame, schema, matrix(frame, schema)


# What a column of a CSV file becomes: the features' names, and the classes.
RIGHT = {
    "integers": ([*range(ROWS)], ["a"]),
    "decimals": ([f"{i}.50" for i in range(ROWS)], ["a"]),
    "exponents": ([f"{i}e-3" for i in range(ROWS)], ["a"]),
    "negative": ([-i for i in range(ROWS)], ["a"]),
    "empty number": (["", *range(1, ROWS)], ["a", "a is empty"]),
    "NA number": (["NA", *range(1, ROWS)], ["a", "a is empty"]),
    "empty text": (["", *"pq" * 5, "p"], ["a = ", "a = p", "a = q"]),
    "None is a text": (["None", "x"] * 6, ["a = None", "a = x"]),
    "padded": (["007", "010"] * 6, ["a = 007", "a = 010"]),
    "beyond 2^53": (["9007199254740993", "9007199254740995"] * 6, None),
    "truth values": (["true", "FALSE"] * 6, ["a = False", "a = True"]),
    "dates": ([f"2024-0{1 + i % 9}-11" for i in range(ROWS)], ["a (month)", "a (weekday)"]),
    "dates with slashes": (["2024/01/31", "2023/01/31"] * 6, ["a (year)", "a (weekday)"]),
    "moments": ([f"2024-01-01T{i:02d}:30Z" for i in range(ROWS)], ["a (hour)"]),
    "times": ([f"{i}:30" for i in range(ROWS)], ["a (hour)"]),
    "empty date": (["", *["2024-01-31", "2023-01-31"] * 5, "2024-01-31"], None),
    "all empty": ([""] * ROWS, ["a", "a is empty"]),
    "constant": ([5] * ROWS, ["a"]),
    "quotes": (['"x, y"', "z"] * 6, ["a = x, y", "a = z"]),
    "brackets": (["[/x]", "[bold]"] * 6, ["a = [/x]", "a = [bold]"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_column_of_a_csv_file_is_read_right(tmp_path, name):
    column, features = RIGHT[name]
    (tmp_path / "t.csv").write_text(csv(column))
    _, schema, x = inferred(tmp_path / "t.csv")
    assert features is None or schema.features == features
    assert schema.classes == ("u", "v")
    assert len(x) == ROWS


LABELS = [
    ["1", "01", "2"],
    ["007", "010"],
    ["1e3", "2e3"],
    ["1.0", "2.0"],
    ["9007199254740993", "9007199254740995"],
    ["TRUE", "false"],
    ["3", "10"],
]


@pytest.mark.parametrize("labels", LABELS)
def test_class_labels_come_back_as_they_were_written(tmp_path, labels):
    rows = [f"{i},{labels[i % len(labels)]}\n" for i in range(ROWS)]
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(rows))
    frame, schema, _ = inferred(tmp_path / "t.csv", task="classification")
    assert sorted(map(str, schema.classes)) == sorted(labels)
    back = [str(schema.classes[code]) for code in target(frame, schema)]
    assert back == [labels[i % len(labels)] for i in range(ROWS)]


def test_files_of_every_kind_hold_the_same_table(tmp_path):
    text = csv([*range(ROWS)])
    (tmp_path / "t.csv").write_text(text)
    (tmp_path / "t.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    whole = read(tmp_path / "t.csv")
    (tmp_path / "d" / "k=1").mkdir(parents=True)
    whole[:5].to_parquet(tmp_path / "d" / "k=1" / "a.parquet")
    whole[5:].to_parquet(tmp_path / "d" / "k=1" / "b.parquet")
    for name in ("t.tsv", "t.csv.gz", "d"):
        pd.testing.assert_frame_equal(read(tmp_path / name)[["a", "y"]], whole, check_dtype=False)
    assert read(tmp_path / "d")["k"].tolist() == [1] * ROWS


PARQUET = {
    "decimals": ([decimal.Decimal(i) / 4 for i in range(ROWS)], ["a"]),
    "dates": ([datetime.date(2020 + i, 1, 1) for i in range(ROWS)], ["a (year)", "a (weekday)"]),
    "truth values with gaps": ([True, False, None] * 4, ["a = ", "a = False", "a = True"]),
    "durations": (pd.to_timedelta(np.arange(ROWS), unit="h"), ["a"]),
    "time zones": (pd.date_range("2024-01-01", periods=ROWS, freq="h", tz="Asia/Tokyo"), None),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_column_of_a_parquet_file_is_read_right(tmp_path, name):
    column, features = PARQUET[name]
    pd.DataFrame({"a": column, "y": Y}).to_parquet(tmp_path / "t.parquet")
    _, schema, x = inferred(tmp_path / "t.parquet")
    assert features is None or schema.features == features
    assert np.isfinite(x).all()


WRONG = {
    "two headers": ("a,y,y\n" + "1,u,u\n" * 12, r"different names\. Received: 'y' more than once"),
    "beyond 32 bits": (csv([f"{i}e39" for i in range(ROWS)]), r"finite value of 32 bits.*e\+39"),
    "infinity": (csv(["inf", *range(1, ROWS)]), r"finite value of 32 bits\. Received: infinity"),
    "missing label": ("a,y\n1,\n2,u\n", r"'y' must hold a value in every row.*row 1"),
    "long row": ("a,y\n1,u,3\n", r"as many cells as the header"),
    "two bad columns": (
        "a,b,y\n" + "inf,1e40,u\n1,2,v\n",
        r"2 columns cannot be read\. Column 'a'.*Column 'b'",
    ),
    "no spelling": ("a,Y\n1,u\n2,v\n", r"must have the column 'y'.*Did you mean 'Y'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_cannot_be_read_is_refused_with_help(tmp_path, name):
    text, match = WRONG[name]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        inferred(tmp_path / "t.csv")


def test_new_categories_and_empty_cells_are_counted_not_refused(plait, refused, fitted):
    text = "x,colour\n50,red\n,green\n60,green\n60,\n"
    result = plait("predict", fitted / "kind.keras", "-", stdin=text)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 5
    assert "'colour': 3 of 4 rows hold a category not seen" in result.stderr
    assert "'green', 2 times" in result.stderr
    assert "'x': 1 of 4 rows is empty" in result.stderr
    found = refused("predict", fitted / "kind.keras", "-", "--strict", stdin=text)
    assert re.search(r"2 columns cannot be read.*\(1 such row of 4\).*\(3 such rows of 4\)", found)


def test_identifiers_are_doubted(plait, mixed, tmp_path):
    findings = Findings(strict=False)
    frame = pd.DataFrame({"id": [f"n{i}" for i in range(30)], "y": [0.5] * 29 + [1.0]})
    matrix(frame.assign(id="new"), infer(frame, "y"), findings)
    assert "30 of 30 rows hold a category not seen" in findings.remarks()[0]


def test_names_print_literally_and_json_is_json(plait, fitted, mixed, tmp_path):
    table = tmp_path / "q.csv"
    mixed[:1].to_csv(table, index=False)
    page = tmp_path / "r.html"
    result = plait("report", fitted / "price.keras", table, "-o", page, "--json")

    def no(constant):
        raise ValueError(constant)

    assert json.loads(result.stdout, parse_constant=no)["scores"][0]["r2"] is None
    name = "\x1b[31m[/x]"
    found = plait("predict", fitted / "price.keras", "-", stdin=f"{name}\n1\n")
    assert found.exit_code == 2
    assert "\x1b" not in found.stderr
    assert "[31m[/x]" in found.stderr


def test_a_link_as_output_stays_one(plait, fitted, tmp_path):
    (tmp_path / "real.csv").write_text("before")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    result = plait("predict", fitted / "kind.keras", fitted / "t.csv", "-o", tmp_path / "link.csv")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "link.csv").is_symlink()
    assert len((tmp_path / "real.csv").read_text().splitlines()) == 241
