"""A table in batches is the table: the same columns, matrix and refusals, however it is cut."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cli.test_odd_tables import LABELS, RIGHT, ROWS, WRONG, csv

from plait.tables import Table, doubts, infer, matrix, read, target
from plait.tables.inference import _MOST_CATEGORIES
from plait.tables.summary import MOST_COUNTED, Numbers

SIZES = st.integers(1, ROWS + 1)


def in_batches(path, size, **options):
    """The schema, matrix and target of a table that is cut into batches."""
    table = Table(path, ["y"], size)
    schema = infer(table, "y", **options)
    parts = [(matrix(frame, schema), target(frame, schema)) for frame in table.batches()]
    x, y = zip(*parts, strict=True)
    return schema, np.concatenate(x), np.concatenate(y), doubts(table, schema)


def assert_cuts_do_not_show(path, size, **options):
    frame = read(path, ["y"])
    whole = infer(frame, "y", **options)
    schema, x, y, doubted = in_batches(path, size, **options)
    for ours, theirs in zip(schema.columns, whole.columns, strict=True):
        assert (ours.mean, ours.scale) == pytest.approx((theirs.mean, theirs.scale), rel=1e-12)
        assert {**vars(ours), "mean": 0, "scale": 0} == {**vars(theirs), "mean": 0, "scale": 0}
    assert (schema.task, schema.classes) == (whole.task, whole.classes)
    np.testing.assert_array_equal(x, matrix(frame, whole))
    np.testing.assert_array_equal(y, target(frame, whole))
    assert doubted == doubts(frame, whole)
    cut = pd.concat(Table(path, ["y"], size).batches())
    pd.testing.assert_frame_equal(cut, frame, check_index_type=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


# What shows in the last row only.
LATE = {
    "a text": [*range(ROWS - 1), "old"],
    "a padded number": [*range(ROWS - 1), "007"],
    "an inexact integer": [*range(ROWS - 1), 2**53 + 1],
    "a fraction beside inexact integers": [*[2**53 + 1] * (ROWS - 1), "0.5"],
    "an integer of 64 bits": [*range(ROWS - 1), 2**63 + 1],
    "an integer of 64 bits beside a negative one": [*range(-1, ROWS - 2), 2**63 + 1],
    "an integer of more bits beside a fraction": [*["0.5"] * (ROWS - 1), 10**23],
    "a gap beside inexact integers": [*range(2**53, 2**53 + ROWS - 1), ""],
    "no date": [*["2024-01-31", "2023-01-31"] * 5, "2024-01-30", "soon"],
    "no truth value": [*["true"] * (ROWS - 1), "perhaps"],
    "the only value": [*[""] * (ROWS - 1), 3],
    "the only text": [*[""] * (ROWS - 1), "x"],
    "the only date": [*[""] * (ROWS - 1), "2024-01-31"],
}
COLUMNS = {**{name: column for name, (column, _) in RIGHT.items()}, **LATE}


@pytest.mark.parametrize("name", COLUMNS)
@settings(deadline=None, max_examples=10)
@given(size=SIZES)
def test_a_column_is_the_same_however_it_is_cut(folder, name, size):
    path = folder / f"{name}.csv"
    path.write_text(csv(COLUMNS[name]))
    assert_cuts_do_not_show(path, size)


@pytest.mark.parametrize("labels", [*LABELS, ["1", "2", "x"], ["0.5", "1", "2"], ["1", "2.0"]])
@settings(deadline=None, max_examples=10)
@given(size=SIZES, task=st.sampled_from(["auto", "classification"]))
def test_a_target_is_the_same_however_it_is_cut(folder, labels, size, task):
    path = folder / f"{'-'.join(labels)}.csv"
    rows = [f"{i},{labels[i * len(labels) // ROWS]}\n" for i in range(ROWS)]
    path.write_text("a,y\n" + "".join(rows))
    assert_cuts_do_not_show(path, size, task=task)


@pytest.mark.parametrize("name", WRONG)
@settings(deadline=None, max_examples=10)
@given(size=SIZES)
def test_what_is_refused_is_counted_over_all_batches(folder, name, size):
    path = folder / f"{name}.csv"
    path.write_text(WRONG[name][0])

    def refusal(size):
        with pytest.raises(ValueError, match=WRONG[name][1]) as found:
            in_batches(path, size)
        return str(found.value)

    assert refusal(size) == refusal(None)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.integers(1, 40))
def test_numbers_are_summed_up_as_if_they_came_at_once(values, size):
    found, values = Numbers(), np.array(values)
    for start in range(0, len(values), size):
        found.add(values[start : start + size], np.zeros(len(values[start : start + size])))
    assert found.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
    assert np.sqrt(found.variance) == pytest.approx(values.std(), rel=1e-6, abs=1e-6)
    assert (found.low, found.high) == (values.min(), values.max())
    assert found.median == np.median(values)


def test_the_median_of_many_numbers_is_that_of_a_sample_that_no_cut_changes(rng):
    values = rng.normal(size=300_000)
    found = []
    for size in (1000, 70_000):
        numbers, keys = Numbers(), np.random.default_rng(1)
        for start in range(0, len(values), size):
            part = values[start : start + size]
            numbers.add(part, keys.random(len(part)))
        found.append(numbers.median)
    assert found[0] == found[1]
    assert np.mean(values < found[0]) == pytest.approx(0.5, abs=0.01)


def test_a_table_of_one_batch_is_read_once(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,u\n2,v\n")
    table = Table(path)
    path.unlink()
    assert [frame["a"].tolist() for frame in table.batches()] == [[1, 2]]


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,u\n2,v\n")
    table = Table(path, size=1)
    path.write_text("a,y\n1,u\n2,v\n3,u\n")
    with pytest.raises(ValueError, match=r"must stay as it is.*Received: 3 rows where 2 were"):
        list(table.batches())


def test_a_file_that_loses_a_column_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n1,u\n2,v\n")
    table = Table(path, size=1)
    path.write_text("b,y\n1,u\n2,v\n")
    with pytest.raises(ValueError, match=r"must stay as it is.*Received: no column 'a', which was"):
        list(table.batches())


def test_integers_beyond_those_of_floats_stay_texts_also_beside_empty_cells(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"a,b,y\n{2**53 + 1},{2**53 - 1},u\n,,v\n")
    frame = read(path)
    assert frame["a"].tolist()[:1] == [str(2**53 + 1)]
    assert frame["b"].tolist()[:1] == [2**53 - 1]


def test_rows_are_taken_by_number_in_the_order_asked_for(tmp_path):
    pd.DataFrame({"a": range(10), "b": 0, "y": list("uvuvuvuvuv")}).to_parquet(
        tmp_path / "t.parquet"
    )
    table = Table(tmp_path / "t.parquet", size=3).without(["b"])
    found = table.take(np.array([7, 0, 4]))
    assert found.to_dict("list") == {"a": [7, 0, 4], "y": ["v", "u", "u"]}
    assert list(found.index) == [7, 0, 4]


def test_more_texts_than_are_counted_are_refused(tmp_path):
    path = tmp_path / "t.csv"
    rows = MOST_COUNTED + 5000
    pd.DataFrame({"id": [f"n{i}" for i in range(rows)], "y": ["u", "v"] * (rows // 2)}).to_csv(path)
    match = f"may have {_MOST_CATEGORIES:,}.*more than 100,000 in the 105,000 rows of 'id' in row 1"
    with pytest.raises(ValueError, match=match):
        infer(Table(path, size=2000), "y")
    with pytest.raises(ValueError, match=r"may have 100,000 different classes.*rows of 'id'"):
        infer(Table(path, size=2000).without(["y"]), "id")


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_lines_of_json_are_read_as_cells_of_csv(tmp_path):
    (tmp_path / "t.csv").write_text(
        'a,b,c,code,y\n1.50,True,"x, ü",007,u\n2,,z,1,v\n,False,None,2,u\n'
    )
    (tmp_path / "t.jsonl").write_text(
        lines({"a": 1.5, "b": True, "c": "x, ü", "code": "007", "y": "u"}).replace("1.5", "1.50")
        + "\n"
        + lines(
            {"y": "v", "c": "z", "code": 1, "b": None, "a": 2},
            {"b": False, "c": "None", "code": 2, "y": "u"},
        )
    )
    for size in (1, None):
        found = Table(tmp_path / "t.jsonl", ["y"], size)
        for frame, other in zip(
            found.batches(), Table(tmp_path / "t.csv", ["y"], size).batches(), strict=True
        ):
            pd.testing.assert_frame_equal(frame, other)


NO_LINES = [
    ("", r"needs a header and at least one row"),
    ("\n\n", r"needs a header and at least one row"),
    ("{}\n", r"must be a JSON object\. Received: an object without keys in line 1"),
    ('{"a": 1}\n[1]\n', r"must be a JSON object\. Received: another value in line 2"),
    ('{"a": 1},\n', r"must be a JSON object\. Received: Extra data.* in line 1"),
    ('{"a": 1}\n{"a": 1\n', r"must be a JSON object\. Received: .* in line 2"),
    ('{"a": 1}\n{"a": 1, "b": 2}\n', r"must have keys of its first\. Received: 'b' in line 2"),
    ('{"a": 1, "a": 2}\n', r"different names\. Received: 'a' more than once in line 1"),
    ('{"a": [1]}\n', r"a number, a text, true.* Received: a list or an object in 'a' of line 1"),
    ('{"a": {}}\n', r"Received: a list or an object in 'a' of line 1"),
]


@pytest.mark.parametrize(("text", "match"), NO_LINES)
def test_what_are_no_lines_of_json_is_refused(tmp_path, text, match):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ValueError, match=match):
        read(tmp_path / "t.jsonl")


def test_lines_of_json_are_text_in_utf_8(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(ValueError, match=r"must be text in UTF-8.*in line 1"):
        read(tmp_path / "t.jsonl")
