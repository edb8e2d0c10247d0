import gzip
import io
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plait.tables import read, read_batches

FRAME = pd.DataFrame({"age": [40, 50, 60], "height": [1.5, 2.0, 1.75], "sex": ["f", "m", "f"]})


@pytest.fixture(params=["csv", "parquet"])
def path(request, tmp_path):
    path = tmp_path / f"t.{request.param}"
    if request.param == "csv":
        FRAME.to_csv(path, index=False)
    else:
        FRAME.to_parquet(path)
    return path


def test_a_table_comes_back_as_it_was_written(path):
    frame = read(path)
    assert {name: frame[name].tolist() for name in frame} == FRAME.to_dict("list")


def test_batches_put_together_are_the_table_and_count_its_rows(path):
    frames = list(read_batches(path, ["sex"], rows=2))
    assert [list(frame.index) for frame in frames] == [[0, 1], [2]]
    assert pd.concat(frames).to_dict("list") == FRAME.to_dict("list")


def test_standard_input_is_read_as_csv_in_batches():
    stream = io.BytesIO(FRAME.to_csv(index=False).encode())
    assert [len(frame) for frame in read_batches(stream, [], rows=2)] == [2, 1]


def test_arrays_of_an_npz_file_are_columns(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.arange(6.0).reshape(3, 2), y=np.array(["a", "b", "a"]))
    frame = read(tmp_path / "t.npz")
    assert frame["x1"].tolist() == [1.0, 3.0, 5.0]
    assert frame["y"].tolist() == ["a", "b", "a"]
    assert [len(part) for part in read_batches(tmp_path / "t.npz", [], rows=2)] == [2, 1]


def test_texts_of_a_csv_file_stay_as_they_stand(tmp_path):
    (tmp_path / "t.csv").write_text("code,flag,none\n01,TRUE,None\n2,FALSE,x\n")
    frame = read(tmp_path / "t.csv", texts=["code"])
    assert frame["code"].tolist() == ["01", "2"]
    assert frame["flag"].tolist() == ["TRUE", "FALSE"]
    assert frame["none"].tolist() == ["None", "x"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_csv_file():
    def peak(rows):
        stream = io.BytesIO(b"a,b\n" + b"1.5,2.5\n" * rows)
        tracemalloc.start()
        for _ in read_batches(stream, [], rows=1000):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2000)
    assert peak(400_000) < 1.5 * peak(100_000)


WRONG = [
    ("t.csv", b"", r"needs a header and at least one row\. Received: .*t\.csv"),
    ("t.csv", b"a,b\n", r"needs a header and at least one row"),
    ("t.parquet", b"", r"needs a header and at least one row"),
    ("t.csv", b"PAR1\x00", r"ends in \.csv must hold CSV .* begins like a Parquet file"),
    ("t.csv", gzip.compress(b"a,b", mtime=0), r"must hold CSV data\. .* begins like gzip"),
    ("t.csv", b"a\x00b", r"must hold CSV data"),
    ("t.parquet", b"a,b\n1,2\n", r"ends in \.parquet must hold PARQUET data"),
    ("t.parquet", b"PAR1 and no more", r"must hold PARQUET data.*is damaged"),
    ("t.npz", b"a,b\n1,2\n", r"ends in \.npz must hold NPZ data"),
    ("t.npz", b"PK\x03\x04 and no more", r"must hold NPZ data.*is damaged"),
    ("t.csv", b"a,b\n1,2\n1,2,3\n", r"as many cells as the header.*line 3, saw 3"),
    ("t.csv", b"a,b\n1,2,3\n1,2,3\n", r"as many cells as the header.*line 2, saw 3"),
    ("t.csv", b"a,b\n1,\xff\xfe\n", r"must be text in UTF-8"),
    ("t.xlsx", b"PK\x03\x04", r"ends in \.csv, .*Received: .*t\.xlsx"),
]


@pytest.mark.parametrize(("name", "content", "match"), WRONG)
def test_what_is_no_table_is_refused(tmp_path, name, content, match):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read(path)
    with pytest.raises(ValueError, match=match):
        list(read_batches(path, []))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"A table must exist\. Received: .*gone\.csv"):
        read(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"x": np.ones(3), "y": np.ones(4)}, r"one number of rows.*'x': 3, 'y': 4"),
        ({"x": np.ones((2, 2, 2))}, r"one axis or two.*'x' of shape \(2, 2, 2\)"),
        ({"x": np.array([{}, {}])}, r"damaged, or holds Python objects"),
    ],
)
def test_arrays_that_are_no_columns_are_refused(tmp_path, arrays, match):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(ValueError, match=match):
        read(tmp_path / "t.npz")


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (pa.array([1]), pa.array([1.5]), [1.0, 1.5]),
        (pa.array([1], pa.int8()), pa.array([300]), [1, 300]),
        (pa.nulls(1), pa.array(["u"]), [None, "u"]),
        (pa.array(["u"]).dictionary_encode(), pa.array(["v"]), ["u", "v"]),
        (pa.array(["u"]), pa.array(["v"]).dictionary_encode(), ["u", "v"]),
        (None, pa.array(["u"]), [None, "u"]),
        (pa.array(["u"]), None, ["u", None]),
    ],
)
def test_a_column_of_a_folder_is_what_holds_it_in_all_files(tmp_path, first, second, both):
    for name, column in (("1", first), ("2", second)):
        table = pa.table({"y": [7]} if column is None else {"y": [7], "x": column})
        (tmp_path / f"k={name}").mkdir()
        pq.write_table(table, tmp_path / f"k={name}" / "t.parquet")
    frame = read(tmp_path)
    assert frame["x"].astype(object).where(frame["x"].notna(), None).tolist() == both
    assert (frame["y"].tolist(), frame["k"].tolist()) == ([7, 7], [1, 2])


def test_files_of_a_folder_that_disagree_are_refused(tmp_path):
    for name, column in (("1", [1]), ("2", ["u"])):
        pq.write_table(pa.table({"x": column}), tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=r"of one type in all files of .*Field x.*int64 vs string"):
        read(tmp_path)
