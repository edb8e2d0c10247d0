"""Trains the gate alone: frozen experts run once, their outputs are cached."""

import contextlib
import os
import tempfile
from typing import Any

import keras
import numpy as np
from keras import tree

from plait.errors import message
from plait.mixture import Mixture
from plait.mixture.forward import Parts
from plait.mixture.objective import PartsModel
from plait.ops.combine import merge_stacked

# Rows of data that the experts read at a time while the cache is filled.
_CHUNK = 8192


def fit_gate(
    mixture: Mixture,
    x: Any = None,
    y: Any = None,
    *,
    batch_size: int = 32,
    epochs: int = 1,
    verbose: Any = "auto",
    callbacks: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    memory_limit: int | None = None,
) -> keras.callbacks.History:
    """Trains gate and router on the experts' cached outputs; the experts stay as they are.

    Every expert runs once over the data, in inference mode (dropout off, batch norm on its moving
    statistics); an epoch then costs what training the gate alone costs. Loss, metrics and a fresh
    copy of the optimizer are those that the mixture is compiled with.

    Args:
        mixture: A compiled `plait.Mixture`.
        x: Array or structure of arrays, `n` examples.
        y: Array or structure of arrays.
        batch_size: As in `keras.Model.fit`.
        epochs: As in `keras.Model.fit`.
        verbose: As in `keras.Model.fit`.
        callbacks: As in `keras.Model.fit`; `callback.model` is the mixture's gate at work, not the
            mixture.
        validation_split: As in `keras.Model.fit`.
        validation_data: `(x, y)` or `(x, y, sample_weight)`, arrays.
        shuffle: As in `keras.Model.fit`.
        sample_weight: As in `keras.Model.fit`.
        initial_epoch: As in `keras.Model.fit`.
        memory_limit: Bytes of cached outputs from which they are kept in a temporary file; `None`
            for half of the memory that is free.

    Returns:
        The Keras history.

    Raises:
        ValueError: If the mixture is not compiled.
        TypeError: If `x` or `y` are not arrays.

    Example:
    >>> import keras, numpy as np, plait
    >>> mix = plait.Mixture([keras.layers.Dense(1), keras.layers.Dense(1)])
    >>> mix.compile("adam", "mse")
    >>> history = mix.fit_gate(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    >>> len(history.history["loss"])
    2
    """
    if not mixture.compiled:
        raise ValueError(
            message(
                "`fit_gate` trains with the loss and optimizer of a compiled mixture",
                f"{mixture.name!r}, which is not compiled",
                "Call compile first",
            )
        )
    _check_arrays(x, "x")
    _check_arrays(y, "y")
    if not mixture.built:
        mixture(tree.map_structure(lambda leaf: leaf[:1], x))
    train, valid = _split(x, y, sample_weight, validation_split, validation_data)
    limit = _free_memory() // 2 if memory_limit is None else memory_limit
    with contextlib.ExitStack() as files:
        data = _cache(mixture, train, limit, files)
        held_out = valid and _cache(mixture, valid, limit, files)
        if any(isinstance(leaf, np.memmap) for leaf in tree.flatten(data)):
            # Read batch by batch; Keras would load an array whole.
            fed = {"x": _Batches(data, batch_size, shuffle), "shuffle": False}
        else:
            names = ("x", "y", "sample_weight")
            fed = dict(zip(names, data, strict=False), batch_size=batch_size, shuffle=shuffle)
        return _GateTrainer(mixture).fit(
            **fed,
            validation_data=held_out,
            validation_batch_size=batch_size,
            epochs=epochs,
            initial_epoch=initial_epoch,
            verbose=verbose,
            callbacks=callbacks,
        )


class _GateTrainer(PartsModel):
    """A mixture's gate and router over given experts' outputs; they share its variables."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__(name=f"{mixture.name}_gate")
        self.gate = mixture.gate
        self.router = mixture.router
        self._weights_shape = mixture.weights_shape()
        self._route = mixture.route  # a bound method, which Keras does not track
        self.built = True
        mixture.compile_like(self)

    def weights_shape(self) -> Any:
        return self._weights_shape

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        mask = mask["x"] if mask is not None else None
        routing = self._route(inputs["x"], bool(training), mask)
        routed = len(routing.weights.shape) - 1
        outputs = tree.map_structure(
            lambda leaf: keras.ops.moveaxis(leaf, routed, 0), inputs["outputs"]
        )
        if self.objective is not None:
            masks = [None] * len(tree.flatten(outputs))
            self.note_parts(Parts(routing.weights, outputs, masks, []))
            outputs = self.objective.mean(outputs)
        return merge_stacked(routing.weights, outputs, self.compute_dtype)


class _Batches(keras.utils.PyDataset):
    """Batches of arrays that may lie in files."""

    def __init__(self, arrays: Any, batch_size: int, shuffle: bool) -> None:
        super().__init__()
        self.arrays = arrays
        self.batch_size = batch_size
        self.order = np.arange(len(tree.flatten(arrays)[0]))
        self.shuffle = shuffle
        self.on_epoch_end()

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> Any:
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]

        def batch(leaf: Any) -> Any:  # what Keras does with arrays, it leaves to a PyDataset
            part = np.asarray(leaf[rows])
            return part.astype(keras.config.floatx()) if part.dtype == "float64" else part

        return tree.map_structure(batch, self.arrays)

    def on_epoch_end(self) -> None:
        if self.shuffle:
            np.random.shuffle(self.order)  # noqa: NPY002 (Keras seeds NumPy's global generator)


def _cache(mixture: Mixture, data: Any, limit: int, files: contextlib.ExitStack) -> Any:
    """Returns the data with every expert's output beside the inputs."""
    x, y, sample_weight = data
    inputs = {"x": x, "outputs": _run_once(mixture, x, limit, files)}
    return (inputs, y) if sample_weight is None else (inputs, y, sample_weight)


def _run_once(mixture: Mixture, x: Any, limit: int, files: contextlib.ExitStack) -> Any:
    """Returns every expert's output for `x`, in memory or in a temporary file."""
    size = len(tree.flatten(x)[0])
    caches: Any = None
    for start in range(0, size, _CHUNK):
        part = tree.map_structure(lambda leaf, s=start: leaf[s : s + _CHUNK], x)
        outputs = mixture.expert_outputs(part, batch_size=min(_CHUNK, 256))
        if caches is None:
            needed = sum(leaf.nbytes // len(leaf) * size for leaf in tree.flatten(outputs))
            folder = files.enter_context(tempfile.TemporaryDirectory()) if needed > limit else None
            caches = _empty_like(outputs, size, folder)
        for cache, leaf in zip(tree.flatten(caches), tree.flatten(outputs), strict=True):
            cache[start : start + len(leaf)] = leaf
    return caches


def _empty_like(outputs: Any, size: int, folder: str | None) -> Any:
    """Returns arrays for `size` rows like the given ones, in memory or as files of a folder."""

    def empty(name: int, leaf: np.ndarray) -> np.ndarray:
        shape = (size, *leaf.shape[1:])
        if folder is None:
            return np.empty(shape, leaf.dtype)
        path = os.path.join(folder, f"{name}.npy")
        return np.lib.format.open_memmap(path, mode="w+", dtype=leaf.dtype, shape=shape)

    arrays = [empty(name, leaf) for name, leaf in enumerate(tree.flatten(outputs))]
    return tree.pack_sequence_as(outputs, arrays)


def _split(x: Any, y: Any, sample_weight: Any, share: float, validation_data: Any) -> Any:
    """Returns training and validation triples `(x, y, sample_weight)`; the latter may be `None`."""
    if validation_data is not None:
        valid_x, valid_y, *rest = validation_data
        return (x, y, sample_weight), (valid_x, valid_y, rest[0] if rest else None)
    if not share:
        return (x, y, sample_weight), None
    cut = int(len(tree.flatten(x)[0]) * (1 - share))

    def part(structure: Any, rows: slice) -> Any:
        return None if structure is None else tree.map_structure(lambda a: a[rows], structure)

    first, last = slice(0, cut), slice(cut, None)
    return (
        tuple(part(structure, first) for structure in (x, y, sample_weight)),
        tuple(part(structure, last) for structure in (x, y, sample_weight)),
    )


def _check_arrays(structure: Any, name: str) -> None:
    leaves = tree.flatten(structure)
    if not leaves or not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise TypeError(
            message(
                f"`{name}` of fit_gate must be an array or a structure of arrays, since the "
                "experts' outputs for it are cached",
                f"{', '.join(kinds)}",
                "Load the data into arrays, or freeze the experts and call fit",
            )
        )


def _free_memory() -> int:
    """Returns the bytes of memory that are free, or 4 GiB where the system does not say."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
