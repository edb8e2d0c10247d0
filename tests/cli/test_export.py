import json

import keras
import numpy as np
import pytest

from plait.export.runtimes import is_installed

BACKEND = keras.config.backend()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND not in ("tensorflow", "torch"), reason="JAX writes no ONNX here")
@pytest.mark.skipif(not is_installed("onnxruntime"), reason="onnxruntime is not installed")
def test_an_exported_model_of_tables_preprocesses_as_the_model_does(plait, fitted, mixed, tmp_path):
    import onnxruntime

    result = plait("export", fitted / "price.keras", "-o", tmp_path / "price.onnx")
    assert result.exit_code == 0, result.output
    schema = json.loads((tmp_path / "price.onnx.schema.json").read_text())
    assert [column["name"] for column in schema["columns"]] == ["x", "colour"]
    x = np.stack([mixed["x"], mixed["colour"] == "red"], axis=1).astype("float32")
    session = onnxruntime.InferenceSession(tmp_path / "price.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    expected = keras.saving.load_model(fitted / "price.keras").predict(x, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_format_that_is_none_is_refused(refused, fitted, tmp_path):
    error = refused("export", fitted / "price.keras", "-o", tmp_path / "price.onx")
    assert "Use '.onnx'" in error
    assert list(tmp_path.iterdir()) == []
