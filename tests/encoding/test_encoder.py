import keras
import numpy as np
import pytest

from plait.encoding import Column, Schema, TableEncoder, TableInput

COLUMNS = (
    Column("age", mean=40.0, scale=10.0),
    Column("height", mean=1.5, scale=0.5),
    Column("sex", ("f", "m")),
    Column("size", mean=1.0, scale=2.0),
    Column("colour", ("b", "g", "r")),
)
SCHEMA = Schema(COLUMNS, "y", "regression")
RAW = np.array([[50.0, 1.0, 1.0, 5.0, 2.0], [40.0, 1.5, 0.0, 1.0, -1.0]])
FEATURES = np.array([[1.0, -1.0, 0, 1, 2.0, 0, 0, 1], [0.0, 0.0, 1, 0, 0.0, 0, 0, 0]])


def test_numbers_are_standardised_and_categories_one_hot():
    np.testing.assert_allclose(np.asarray(TableEncoder(SCHEMA)(RAW)), FEATURES, atol=1e-6)


def test_the_shape_is_known_before_any_data():
    assert TableEncoder(SCHEMA)(keras.Input((5,))).shape == (None, 8)
    assert TableInput(SCHEMA)(keras.Input((5,))).shape == (None, 5)


def test_half_precision_does_not_reach_codes_and_raw_numbers():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        encoder = TableEncoder(Schema((Column("big", mean=70000.0),), "y", "regression"))
        assert float(encoder(np.array([[70001.0]]))[0, 0]) == 1.0
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("layer", [TableEncoder, TableInput])
def test_the_schema_travels_inside_the_file(layer, tmp_path):
    model = keras.Sequential([keras.Input((5,)), layer(SCHEMA), keras.layers.Dense(1)])
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras", safe_mode=True)
    assert again.layers[0].schema == SCHEMA
    np.testing.assert_allclose(
        again.predict(RAW, verbose=0), model.predict(RAW, verbose=0), atol=1e-6
    )


def test_the_config_reads_the_same_before_and_after_build():
    encoder = TableEncoder(SCHEMA)
    before = encoder.get_config()
    encoder(RAW)
    assert encoder.get_config() == before


def test_a_matrix_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"TableEncoder reads a matrix \(b, 5\).*\(3, 4\).*colour"):
        TableEncoder(SCHEMA)(np.ones((3, 4)))
