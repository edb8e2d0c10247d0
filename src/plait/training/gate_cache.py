"""The data of `fit_gate`: arrays, split for validation, with the experts' outputs beside them.

The arrays may lie in files: those of a dataset or generator do, and so may the experts' outputs.
"""

import contextlib
import math
import os
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from plait.errors import message
from plait.mixture import Mixture
from plait.ops.shapes import agree
from plait.training.on_disk import OnDisk, chunks, in_file
from plait.training.streams import Data, as_array, folder_of, is_stream, stored
from plait.typing import Mask, Nested

_PROBE = "outputs and masks"


# `"x"`, `"outputs"` and, where an output has a mask, `"masks"`.
Batch = dict[str, Any]


def as_data(x: Nested, y: Nested, sample_weight: Nested = None) -> Data:
    """Returns data as arrays: tables of pandas as in Keras, and tensors.

    Raises:
        TypeError: If something is no array.
    """
    named = {"x": x, "y": y, "sample_weight": sample_weight}
    return Data(*(_arrays(structure, name) for name, structure in named.items()))


def split(data: Data, share: float) -> tuple[Data, Data | None]:
    """Returns training and validation data: the last rows, `share` of all, or `None`.

    Raises:
        ValueError: If no row is left for either.
    """
    if not share:
        return data, None
    size = len(tree.flatten(data.x)[0])
    cut = math.floor(size * (1 - share))
    if not 0 < cut < size:
        raise ValueError(
            message(
                "`validation_split` of fit_gate must leave a row for training and for validation",
                f"validation_split={share!r} of {size} rows",
                "Use validation_split=0.2, or pass validation_data",
            )
        )

    def part(rows: slice) -> Data:
        made = [None if s is None else tree.map_structure(lambda a: a[rows], s) for s in data]
        return Data(*made)

    return part(slice(0, cut)), part(slice(cut, None))


def validation(
    given: Any,
    files: contextlib.ExitStack,
    name: str = "validation_data",
    steps: int | None = None,
) -> Data:
    """Returns validation data from `(x, y)`, `(x, y, sample_weight)` or a stream of such batches.

    Args:
        given: The data.
        files: Removes the files of a stream when it is closed.
        name: The argument's name, for error texts.
        steps: How many batches of a stream are read.

    Raises:
        ValueError: If it is none of these.
    """
    if is_stream(given):
        return stored(given, steps, files, "fit_gate", name).data
    if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
        kind = type(given).__name__
        raise ValueError(
            message(
                f"`{name}` of fit_gate must be (x, y), (x, y, sample_weight), or a dataset or "
                "generator of such batches",
                f"a {kind} of {len(given)}" if isinstance(given, (tuple, list)) else f"a {kind}",
                "Pass a tuple of arrays",
            )
        )
    return as_data(*given)


def _arrays(structure: Nested, name: str) -> Nested:
    if structure is None and name == "sample_weight":
        return None
    leaves = [
        as_array(leaf) if hasattr(leaf, "to_numpy") or ops.is_tensor(leaf) else leaf
        for leaf in tree.flatten(structure)
    ]
    if not leaves or not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise TypeError(
            message(
                f"`{name}` of fit_gate must be an array or a structure of arrays"
                + (", or yield batches of input and target" if name == "x" else ""),
                ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or repr(structure),
                "Turn it into arrays of NumPy",
            )
        )
    return tree.pack_sequence_as(structure, leaves)


class _Outputs(keras.Model):
    """Predicts the output of every expert, and where it is valid."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__(autocast=False, name=f"{mixture.name}_outputs")
        self.mixture = mixture

    def call(self, inputs: Nested, mask: Nested = None) -> dict[str, Nested]:
        mixture = self.mixture
        routing = mixture.route(inputs, False, mask)
        parts = mixture.every_output(routing, inputs, False, mask)
        routed = len(routing.weights.shape) - 1
        outputs = tree.map_structure(lambda leaf: ops.moveaxis(leaf, 0, routed), parts.outputs)
        masks = {str(i): mask for i, mask in enumerate(parts.masks) if mask is not None}
        return {"outputs": outputs, "masks": masks} if masks else {"outputs": outputs}


def cached(mixture: Mixture, data: Data, limit: int, files: contextlib.ExitStack) -> Data:
    """Returns the data with `"outputs"` of every expert, and their `"masks"`, beside `"x"`.

    Args:
        mixture: A built mixture.
        data: Arrays.
        limit: Bytes of outputs from which they are kept in a temporary file. Where the data lie in
            files, so do the outputs.
        files: Removes the file when it is closed.
    """
    size = len(tree.flatten(data.x)[0])
    probes = mixture.state.probes
    if _PROBE not in probes:
        probes[_PROBE] = _Outputs(mixture)
    caches: dict[str, Nested] = {}
    for rows in chunks(data.x):
        part = tree.map_structure(lambda leaf, rows=rows: leaf[rows], data.x)
        found = probes[_PROBE].predict(part, batch_size=256, verbose=0)
        if not caches:
            needed = sum(leaf.nbytes // len(leaf) * size for leaf in tree.flatten(found))
            apart = in_file(data.x) or needed > limit
            caches = _empty_like(found, size, folder_of(files) if apart else None)
        for cache, leaf in zip(tree.flatten(caches), tree.flatten(found), strict=True):
            cache[rows] = leaf
    return data._replace(x={"x": data.x, **caches})


def with_outputs(mixture: Mixture, data: Data, outputs: Nested) -> Data:
    """Returns the data as `cached` does, with outputs that were computed elsewhere.

    Args:
        mixture: A built mixture.
        data: Arrays of `n` rows.
        outputs: `(n, e, …, u)`, or a structure of these.

    Raises:
        ValueError: If they are not those of as many rows and experts, or of other shapes.
    """
    rows, state = len(tree.flatten(data.x)[0]), mixture.state
    wanted = [
        (rows, mixture.num_experts, *spec.shape[1:]) for spec in tree.flatten(state.output_specs)
    ]
    found = [tuple(getattr(leaf, "shape", ())) for leaf in tree.flatten(outputs)]
    if len(wanted) != len(found) or not all(map(agree, wanted, found)):
        raise ValueError(
            message(
                "`outputs` of fit_gate must be those of every expert for every row of `x`, the "
                f"expert axis after the rows: {' and '.join(map(str, wanted))}",
                f"{' and '.join(map(str, found))}",
                "Pass `outputs` of plait.training.cross_fit",
            )
        )
    routed = len(state.weights_shape or ()) - 1
    moved = tree.map_structure(lambda leaf: np.moveaxis(leaf, 1, routed), outputs)
    return data._replace(x={"x": data.x, "outputs": moved})


def masks_of_outputs(inputs: Batch) -> list[Mask]:
    """Returns the masks in a batch of `cached` data, flat, `None` where an output has none."""
    masks: dict[str, Mask] = inputs.get("masks", {})
    return [masks.get(str(number)) for number in range(len(tree.flatten(inputs["outputs"])))]


def _empty_like(outputs: dict[str, Nested], size: int, folder: str | None) -> dict[str, Nested]:
    """Returns arrays for `size` rows like the given ones, in memory or as files of a folder."""

    def empty(leaf: np.ndarray) -> np.ndarray | OnDisk:
        shape = (size, *leaf.shape[1:])
        return np.empty(shape, leaf.dtype) if folder is None else OnDisk(folder, leaf.dtype, shape)

    return tree.map_structure(empty, outputs)


def free_memory() -> int:
    """Returns the bytes of memory that are free, or 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
