"""Frozen experts: scikit-learn models and other functions of arrays as Keras layers."""

import importlib
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from plait.errors import message
from plait.ops.backend.host import call_host, host_calls_compile
from plait.typing import Config, Mask, Nested, Shape, Tensor

_FILE = "model.skops"


@keras.saving.register_keras_serializable("plait")
class Frozen(keras.layers.Layer):
    """A trained model that is no Keras model, as an expert that predicts and is not trained.

    `predict` runs in NumPy, outside of what the backend compiles: it is called by
    `pure_callback` on JAX, by `numpy_function` on TensorFlow (without XLA), and directly on
    PyTorch. No gradient passes through it: a gate on the raw inputs is trained, by `fit` or better
    by `fit_gate`, which runs each expert once over the data; layers before a frozen expert are not.

    A `.keras` file holds a scikit-learn model where skops is installed, which uses no pickle, and a
    function that is registered with `keras.saving.register_keras_serializable`, by its name. With
    any other function `save` raises: save the gate with `save_weights`, and make the mixture again
    from the same functions before `load_weights`. Exports do not support either.

    Args:
        predict: A fitted scikit-learn model, of which `predict_proba` is called where it has that,
            else `predict`; or a function of arrays as the mixture's input is one, `(b, …)`, that
            returns an array `(b, *output_shape)`.
        output_shape: Shape of one row's output, or an integer for `(units,)`. `None` takes that of
            the scikit-learn model: its classes, or one value.
        classes: The classes of the columns of `predict_proba`, in order, common to all experts of a
            mixture. A class that a classifier was not trained on gets the probability zero.
        **kwargs: `name` and `dtype` of a Keras layer.

    Call arguments:
        inputs: Tensor of shape `(b, …)`, or a structure of such tensors.

    Returns:
        Tensor of shape `(b, *output_shape)`, in float32, or float64 under that dtype.

    Raises:
        TypeError: If `predict` is neither a function nor a model that predicts.
        ValueError: If `output_shape` is not known, a classifier gives no probabilities, or, at a
            call, the result has another shape; at `save`, if the file cannot hold the function.

    Example:
    >>> import numpy as np
    >>> import plait
    >>> double = plait.experts.Frozen(lambda x: 2 * x[:, :1], output_shape=1)
    >>> [float(v) for v in double(np.array([[1.0, 5.0], [3.0, 5.0]]))[:, 0]]
    [2.0, 6.0]
    """

    def __init__(
        self,
        predict: Any,
        output_shape: int | Sequence[int] | None = None,
        *,
        classes: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"autocast": False, "trainable": False, **kwargs})
        self.predict = predict
        self.classes = None if classes is None else list(classes)
        self.row_shape = _row_shape(predict, output_shape, self.classes)
        self.supports_jit = host_calls_compile()
        self.supports_masking = True
        self.built = True
        self._refusal: ValueError | None = None

    @property
    def held_by_skops(self) -> bool:
        """Whether a file holds the model in the format of skops."""
        return hasattr(self.predict, "get_params")

    def call(self, inputs: Nested) -> Tensor:
        """Returns the predictions."""
        leaves = tree.flatten(inputs)
        shape = (leaves[0].shape[0], *self.row_shape)
        dtype = self._output_dtype()

        def run(*arrays: np.ndarray) -> np.ndarray:
            x = tree.pack_sequence_as(inputs, list(arrays))
            found = np.asarray(predictions(self.predict, x, self.classes))
            wanted = (len(arrays[0]), *self.row_shape)
            if found.shape != wanted:
                raise ValueError(
                    message(
                        f"The function of the expert {self.name!r} must return shape {wanted}",
                        f"shape {found.shape}",
                        "Set `output_shape` to the shape of one row's output",
                    )
                )
            return np.ascontiguousarray(found, dtype)

        return call_host(run, leaves, shape, dtype)

    def _output_dtype(self) -> str:
        return "float64" if self.compute_dtype == "float64" else "float32"

    def compute_output_spec(self, inputs: Nested) -> keras.KerasTensor:
        """Returns shape and dtype of the predictions."""
        rows = tree.flatten(inputs)[0].shape[0]
        return keras.KerasTensor((rows, *self.row_shape), self._output_dtype())

    def compute_mask(self, inputs: Nested, previous_mask: Mask = None) -> None:
        """Predictions of whole rows have no masked steps."""
        del inputs, previous_mask

    def get_config(self) -> Config:
        """Returns the constructor's arguments.

        Raises:
            ValueError: If no file can hold the function.
        """
        config = {
            **super().get_config(),
            "output_shape": list(self.row_shape),
            "classes": self.classes and [getattr(c, "item", lambda c=c: c)() for c in self.classes],
        }
        if self.held_by_skops:
            _skops(self.name)
            return {**config, "predict": None}
        name = keras.saving.get_registered_name(self.predict)
        if keras.saving.get_registered_object(name) is self.predict:
            return {**config, "predict": name}
        raise ValueError(
            message(
                f"A .keras file cannot hold the function of the frozen expert {self.name!r}",
                f"{getattr(self.predict, '__qualname__', type(self.predict).__name__)}",
                "Register it with keras.saving.register_keras_serializable, or save the gate with "
                "save_weights and make the mixture anew from the same functions",
            )
        )

    @classmethod
    def from_config(cls, config: Config) -> "Frozen":
        """Returns a layer from a config; a scikit-learn model is set later, by `load_assets`."""
        name = config["predict"]
        predict = _NotLoaded() if name is None else keras.saving.get_registered_object(name)
        if predict is None:
            raise ValueError(
                message(
                    f"The function of the frozen expert {config['name']!r} must be registered",
                    f"a file that names {name!r}",
                    "Import the module that registers it before loading",
                )
            )
        return cls(**{**config, "predict": predict})

    def save_assets(self, folder: str) -> None:
        """Writes the scikit-learn model, where it is one."""
        if self.held_by_skops:
            _skops(self.name).dump(self.predict, pathlib.Path(folder) / _FILE)

    def load_assets(self, folder: str | None) -> None:
        """Reads the scikit-learn model, where it is one.

        Raises:
            ValueError: If the file holds types that are not trusted.
        """
        if folder is None:  # Keras retries what it failed to load, and reports the last error
            self._check_loaded()
            return
        path = pathlib.Path(folder) / _FILE
        if not path.exists():
            return
        skops = _skops(self.name)
        unknown = sorted(set(skops.get_untrusted_types(file=path)) - _trusted)
        if unknown:
            names = ", ".join(map(repr, unknown))
            self._refusal = ValueError(
                message(
                    f"The scikit-learn model of the frozen expert {self.name!r} may only hold "
                    "trusted types, as others may run code when they are loaded",
                    names,
                    f"If the file comes from a source you trust, call Frozen.trust({names}) first",
                )
            )
            self._check_loaded()
        self.predict = skops.load(path, trusted=sorted(_trusted))

    def _check_loaded(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    @staticmethod
    def trust(*types: str) -> None:
        """Allows these types, named as in skops, in files that this process loads.

        Args:
            *types: Names such as `"sklearn.tree._tree.Tree"`.
        """
        _trusted.update(types)


_trusted: set[str] = set()


class _NotLoaded:
    """A placeholder for a scikit-learn model until its file is read."""

    def get_params(self) -> None:
        """Marks the model as one that skops holds."""

    def predict(self, x: Nested) -> np.ndarray:
        """Raises: the model has not been loaded."""
        raise ValueError(
            message(
                "The model of a frozen expert comes with the file that holds it",
                "a layer that was made from its config alone",
                "Load it with keras.saving.load_model",
            )
        )


def _skops(name: str) -> Any:
    try:
        return importlib.import_module("skops.io")
    except ImportError as error:
        raise ValueError(
            message(
                f"A .keras file holds the scikit-learn model of the expert {name!r} by skops",
                "skops, which is not installed",
                "Install it (pip install skops), or save the gate with save_weights",
            )
        ) from error


def predictions(predict: Any, x: Nested, classes: Sequence[Any] | None = None) -> np.ndarray:
    """Returns the predictions of a fitted scikit-learn model, or of a function, for an array.

    Args:
        predict: See `Frozen`.
        x: Array or structure of arrays.
        classes: See `Frozen`.

    Returns:
        Probabilities `(b, classes)`, values `(b, 1)` or `(b, outputs)`; of a function its result.
    """
    if hasattr(predict, "predict_proba"):
        found = np.asarray(predict.predict_proba(x))
        seen = list(predict.classes_)
        if classes is None or list(classes) == seen:
            return found
        _check_classes(seen, classes)
        whole = np.zeros((len(found), len(classes)), found.dtype)
        whole[:, [list(classes).index(one) for one in seen]] = found
        return whole
    if hasattr(predict, "predict"):
        found = np.asarray(predict.predict(x))
        return found[:, None] if found.ndim == 1 else found
    return predict(x)


def _check_classes(seen: Sequence[Any], classes: Sequence[Any]) -> None:
    unknown = [one for one in seen if one not in classes]
    if unknown:
        raise ValueError(
            message(
                "`classes` of a frozen expert must name every class that its model knows",
                f"a model that knows {unknown[0]!r}",
                "Name the classes of the whole training table",
            )
        )


def _row_shape(
    predict: Any, output_shape: int | Sequence[int] | None, classes: Sequence[Any] | None
) -> Shape:
    if not callable(predict) and not hasattr(predict, "predict"):
        raise TypeError(
            message(
                "`predict` of Frozen must be a fitted scikit-learn model or a function of arrays",
                f"{predict!r} of type {type(predict).__name__}",
                "Pass for example model.predict_proba",
            )
        )
    if isinstance(output_shape, (int, np.integer)):
        return (int(output_shape),)
    if output_shape is not None:
        return tuple(int(size) for size in output_shape)
    kind = getattr(predict, "_estimator_type", None) or _kind_by_tags(predict)
    if hasattr(predict, "predict_proba"):
        if classes is not None:
            return (len(classes),)
        if hasattr(predict, "classes_"):
            return (len(predict.classes_),)
    elif kind == "classifier":
        raise ValueError(
            message(
                "A classifier among the experts must give probabilities",
                f"{type(predict).__name__}, which has no predict_proba",
                "Wrap it in sklearn.calibration.CalibratedClassifierCV",
            )
        )
    elif kind == "regressor":
        return (1,)
    raise ValueError(
        message(
            "`output_shape` of Frozen must say the shape of one row's output",
            f"output_shape=None for {type(predict).__name__}",
            "Use output_shape=3 for three classes, 1 for a value",
        )
    )


def _kind_by_tags(predict: Any) -> str | None:
    tags = getattr(predict, "__sklearn_tags__", None)
    return None if tags is None else tags().estimator_type


__all__ = ["Frozen", "predictions"]
