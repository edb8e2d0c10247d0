"""Models that read tables: the schema, the mixture, and how they sit in one `.keras` file."""

import os
import pathlib
import warnings
from typing import NamedTuple

import keras
import numpy as np

from plait.encoding import Schema, TableEncoder, TableInput
from plait.errors import message
from plait.mixture import Mixture
from plait.tables.output import replacing


class TableModel(NamedTuple):
    """A mixture that reads tables.

    Attributes:
        model: The whole Keras model, from the raw matrix `(b, c)` to probabilities or values in
            the target's units.
        mixture: The mixture inside it.
        schema: What the columns and the outputs mean.
    """

    model: keras.Model
    mixture: Mixture
    schema: Schema

    def features(self, x: np.ndarray) -> np.ndarray:
        """Returns what the mixture reads, `(b, d)`, for a raw matrix `(b, c)`."""
        return keras.ops.convert_to_numpy(self.model.layers[0](x))

    def expert_outputs(self, x: np.ndarray) -> np.ndarray:
        """Returns the experts' outputs for a raw matrix, in the target's units, `(b, e, u)`."""
        outputs = self.mixture.expert_outputs(self.features(x))
        routed = len(self.mixture.weights_shape() or (0, 0)) - 1
        outputs = np.moveaxis(outputs, routed, 1)  # with weights per class they are (b, u, e)
        for layer in self.model.layers[2:]:
            outputs = keras.ops.convert_to_numpy(layer(outputs))
        return outputs


def assemble(mixture: Mixture, schema: Schema, encode: bool) -> TableModel:
    """Puts a built mixture behind the layer that holds its schema.

    Args:
        mixture: Reads the encoded features if `encode`, else the raw matrix.
        schema: What the columns and the outputs mean.
        encode: Whether scaling and one-hot encoding come before the mixture, and the target's
            units, if it is regressed on, after it.
    """
    layers = [
        keras.Input((len(schema.columns),), name="table"),
        (TableEncoder if encode else TableInput)(schema),
        mixture,
    ]
    if encode and schema.task == "regression":
        layers.append(keras.layers.Rescaling(schema.spread, schema.center, name="units"))
    return TableModel(keras.Sequential(layers), mixture, schema)


def finished(model: TableModel) -> TableModel:
    """Returns a copy that holds `model.schema` in its layers, and no state of an optimizer.

    That state would be two thirds of the file, and is of no use to predictions.
    """
    mixture = Mixture.from_config(model.mixture.get_config())
    encode = isinstance(model.model.layers[0], TableEncoder)
    whole = assemble(mixture, model.schema, encode)
    whole.model.set_weights(model.model.get_weights())
    return whole


def save(model: TableModel, path: str | os.PathLike[str]) -> None:
    """Writes the `.keras` file whole, or not at all."""
    with replacing(path) as beside:
        model.model.save(beside)


def load_keras(path: str | os.PathLike[str]) -> keras.Model:
    """Loads any `.keras` file in safe mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not end in `.keras`, or is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            message("A model must exist", f"{str(path)!r}, which is no file", "Check the path")
        )
    if path.suffix != ".keras":
        raise ValueError(
            message(
                "A model is a .keras file", repr(str(path)), "Save it with model.save('….keras')"
            )
        )
    try:
        with warnings.catch_warnings():
            # Keras warns of optimizer state that it cannot restore; nothing here trains it on.
            warnings.simplefilter("ignore")
            model = keras.saving.load_model(path)
    except Exception as error:  # zipfile, h5py, json and Keras each raise their own
        text = " ".join(str(error).split())
        detail = text if len(text) <= 160 else text[:159] + "…"
        raise ValueError(
            message(
                f"{str(path)!r} must be a .keras file that Keras can load in safe mode",
                f"a file on which loading stops with {type(error).__name__}: {detail}",
                "Write it again, or import and register its custom layers",
            )
        ) from error
    broken = [
        variable.path
        for variable, value in zip(model.weights, model.get_weights(), strict=True)
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all()
    ]
    if broken:
        raise ValueError(
            message(
                f"{str(path)!r} must hold finite weights",
                f"NaN or infinity in {len(broken)} of {len(model.weights)} variables, the first "
                f"{broken[0]!r}",
                "Train the model again, with a lower learning rate",
            )
        )
    return model


def as_table_model(model: keras.Model) -> TableModel | None:
    """Returns the parts of a model that `assemble` made, `None` for any other."""
    layers = getattr(model, "layers", [])
    if len(layers) < 2 or not isinstance(layers[0], TableInput):
        return None
    return TableModel(model, layers[1], layers[0].schema)


def load(path: str | os.PathLike[str]) -> TableModel:
    """Loads a file that `save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds no mixture that reads tables.
    """
    found = as_table_model(load_keras(path))
    if found is None:
        raise ValueError(
            message(
                "The model must be a mixture that reads tables, as `plait fit` and `plait blend` "
                "write it",
                f"{str(path)!r}, which holds another model",
                "Blend it with others first: plait blend",
            )
        )
    return found


__all__ = ["TableModel", "as_table_model", "assemble", "finished", "load", "load_keras", "save"]
