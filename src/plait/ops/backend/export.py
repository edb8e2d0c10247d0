"""How each backend writes models for other runtimes."""

import keras
from keras import tree

from plait.ops.tracing import Tracing
from plait.typing import Config, Nested

__all__ = ["export_options", "export_tracings", "format_on_the_way"]


def export_tracings(format: str) -> list[Tracing]:
    """How a graph with mixtures is traced for a format, the best first.

    Args:
        format: A format of `keras.Model.export`.

    Returns:
        A list, of which one that works is taken.
    """
    name = keras.config.backend()
    if format == "tf_saved_model" and name == "tensorflow":
        return ["as it is", "every expert"]
    if name == "torch" and format != "torch":
        return ["one by one"]  # the tracer and its converters take no vectorised calls
    return ["every expert", "one by one"]


def export_options(format: str, inputs: Nested, batch_size: int | None) -> Config:
    """What `keras.Model.export` must be told for a batch of any size.

    Args:
        format: A format of `keras.Model.export`.
        inputs: Structure of the symbolic inputs of a functional model.
        batch_size: A fixed batch size, or `None`.

    Returns:
        Keyword arguments.
    """
    if keras.config.backend() != "torch" or format != "torch" or batch_size is not None:
        return {}
    import torch

    batch = torch.export.Dim("batch", min=1)
    return {"dynamic_shapes": [(tree.map_structure(lambda _: {0: batch}, inputs),)]}


def format_on_the_way(format: str) -> str | None:
    """Which format the runtime's own converter reads, or `None` where Keras writes it at once.

    On TensorFlow Keras hands OpenVINO a traced function, of which every operation without a reader
    becomes an output. A SavedModel names its outputs.

    Args:
        format: A format of `keras.Model.export`.
    """
    if format == "openvino" and keras.config.backend() == "tensorflow":
        return "tf_saved_model"
    return None
