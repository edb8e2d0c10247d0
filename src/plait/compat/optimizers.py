"""Optimizers in files that any backend can read.

On PyTorch, Keras replaces most of its optimizers by classes of its own for that backend, and a file
then names these. Another backend that reads the file imports PyTorch's classes, which do not take
its tensors.
"""

import functools
from typing import Any

import keras

from plait.typing import Config


def with_public_optimizers(config: Config) -> Config:
    """Returns a config that names Keras' optimizers by their public names.

    Args:
        config: What `get_compile_config` gave, or a part of it.

    Example:
    >>> from plait.compat import with_public_optimizers
    >>> adam = {"module": "keras.private.optimizers.torch_adam", "class_name": "Adam", "config": {}}
    >>> with_public_optimizers({"optimizer": adam})["optimizer"]["module"]
    'keras.optimizers'
    """
    return _renamed(config)


def _renamed(entry: Any) -> Any:
    if isinstance(entry, (list, tuple)):
        return [_renamed(item) for item in entry]
    if not isinstance(entry, dict):
        return entry
    entry = {key: _renamed(value) for key, value in entry.items()}
    path = str(entry.get("module")).split(".")
    if path[0] == "keras" and "optimizers" in path and entry.get("class_name") in _classes():
        entry.update(module="keras.optimizers", registered_name=None)
    return entry


def register_optimizers() -> None:
    """Registers the classes that stand for Keras' optimizers on this backend.

    A file of a model that holds a mixture then names them as "plait>Adam" and so on, and on every
    backend that name is the class that stands for `keras.optimizers.Adam` there.
    """
    _register()


@functools.cache
def _register() -> None:
    for public in _classes().values():
        # A class may be replaced when it is instantiated; no instance is initialised.
        keras.saving.register_keras_serializable("plait")(type(public.__new__(public)))


@functools.cache
def _classes() -> dict[str, Any]:
    """Returns Keras' optimizers, by name."""
    found = vars(keras.optimizers).items()
    return {
        name: value
        for name, value in found
        if isinstance(value, type)
        and issubclass(value, keras.optimizers.Optimizer)
        and value is not keras.optimizers.Optimizer
    }
