"""Trains the gate alone: frozen experts run once, their outputs are cached."""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from plait.compat import attach_masks
from plait.errors import message
from plait.mixture import Mixture
from plait.mixture.forward import Parts, chosen_experts
from plait.mixture.objective import PartsModel
from plait.ops.merging import merge_stacked
from plait.ops.routing import Routing, chosen
from plait.training.batches import Batches
from plait.training.gate_cache import (
    Batch,
    as_data,
    cached,
    free_memory,
    masks_of_outputs,
    split,
    validation,
    with_outputs,
)
from plait.training.gate_callbacks import Callbacks, of_mixture
from plait.training.on_disk import in_file
from plait.training.seen import losses_of_experts, seen_in_training
from plait.training.streams import Data, is_stream, no_stream_arguments, stored
from plait.typing import Nested, Shape, Tensor


def fit_gate(
    mixture: Mixture,
    x: Any = None,
    y: Nested = None,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: int | str = "auto",
    callbacks: Callbacks = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Nested = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    memory_limit: int | None = None,
    outputs: Nested = None,
    holdout: Any = None,
) -> keras.callbacks.History:
    """Trains gate and router on the experts' cached outputs; the experts stay as they are.

    Every expert runs once over the data, in inference mode (dropout off, batch norm on its moving
    statistics); an epoch then costs what training the gate alone costs. Loss and metrics are those
    that the mixture is compiled with. The optimizer is a new one with the same settings; the
    mixture's own keeps its state. On rows that the experts have not seen this is stacking (Wolpert
    1992), with weights that depend on the row.

    A dataset or generator is read once. Its rows and the experts' outputs for them go to temporary
    files, from which every epoch is read batch by batch; they are removed at the end, also where an
    exception ends it. `TMPDIR` says where such files lie.

    Args:
        mixture: A compiled `plait.Mixture`.
        x: Array or structure of arrays, `n` examples; a pandas table; or what yields batches
            `(x, y)` or `(x, y, sample_weight)`: `tf.data.Dataset`, `keras.utils.PyDataset`,
            `torch.utils.data.DataLoader`, a generator.
        y: Array or structure of arrays; also a pandas column; `None` where `x` yields batches.
        batch_size: As in `keras.Model.fit`; `None` is 32, or where `x` yields batches the size of
            the first one.
        epochs: As in `keras.Model.fit`.
        verbose: As in `keras.Model.fit`.
        callbacks: As in `keras.Model.fit`; `callback.model` is the mixture. The learning rate and
            `stop_training` that a callback sets on it have effect.
        validation_split: As in `keras.Model.fit`, of arrays.
        validation_data: `(x, y)` or `(x, y, sample_weight)`, arrays; or what yields such batches.
        shuffle: Whether each epoch takes the rows in a new random order, also those of a dataset.
        class_weight: As in `keras.Model.fit`.
        sample_weight: As in `keras.Model.fit`.
        initial_epoch: As in `keras.Model.fit`.
        steps_per_epoch: As in `keras.Model.fit` for arrays. Else how many batches are read, which
            is what every epoch goes over; `None` for all. A generator needs it.
        validation_steps: As `steps_per_epoch`, of the validation data.
        validation_batch_size: As in `keras.Model.fit`.
        validation_freq: As in `keras.Model.fit`.
        memory_limit: Bytes of cached outputs from which they are kept in a temporary file; `None`
            for half of the memory that is free.
        outputs: The experts' outputs for the rows of `x`, which then are not run on them: an array
            `(n, e, …, u)` with the expert axis right after the rows, or a structure of these.
            Out-of-fold outputs of `plait.training.cross_fit`, for example. Arrays in files
            (`numpy.memmap`) are read batch by batch.
        holdout: `(x, y)`, or what yields such batches, of rows that the experts certainly have not
            seen. Warns in one line where an expert does clearly better on the gate's rows than on
            these: it was trained on them, and the gate would trust it too much.

    Returns:
        The Keras history.

    Raises:
        ValueError: If the mixture is not compiled; the validation data, their share or the outputs
            do not fit; a generator may never end or its batches do not agree; or a callback is
            `BackupAndRestore`.
        TypeError: If `x` or `y` are neither arrays nor yield batches.

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
    streams = is_stream(x)
    if streams:
        no_stream_arguments(
            "fit_gate",
            y=(y, "Yield the target beside the input"),
            sample_weight=(sample_weight, "Yield sample weights as the third part of a batch"),
            validation_split=(validation_split or None, "Pass validation_data"),
        )
    limit = free_memory() // 2 if memory_limit is None else memory_limit
    with contextlib.ExitStack() as files, _scope_of(mixture):
        if streams:
            whole, first = stored(x, steps_per_epoch, files, "fit_gate")
            batch_size = batch_size or first
        else:
            whole, batch_size = as_data(x, y, sample_weight), batch_size or 32
        if not mixture.built:
            mixture(tree.map_structure(lambda leaf: leaf[:1], whole.x))
        if outputs is not None:
            whole = with_outputs(mixture, whole, outputs)
        train, valid = split(whole, 0.0 if validation_data is not None else validation_split)
        if validation_data is not None:
            valid = validation(validation_data, files, steps=validation_steps)
        data = train if outputs is not None else cached(mixture, train, limit, files)
        run = outputs is None or validation_data is not None
        held_out = valid and (cached(mixture, valid, limit, files) if run else valid)
        if holdout is not None:
            new = cached(mixture, validation(holdout, files, "holdout"), limit, files)
            _warn_of_seen_rows(mixture, data, new)
        trainer = _GateTrainer(mixture)
        fed: dict[str, Any] = {**data._asdict(), "batch_size": batch_size, "shuffle": shuffle}
        if in_file(tuple(data)):  # Keras seeds NumPy's `random`, which draws the order
            fed = {"x": _batches(data, batch_size, shuffle), "shuffle": False}
        validation_size = validation_batch_size or batch_size
        checked: Any = held_out
        if held_out is not None and in_file(tuple(held_out)):
            checked = _batches(held_out, validation_size, False)
        steps = -(-len(tree.flatten(train.x)[0]) // batch_size)
        if steps_per_epoch is not None and not streams:
            steps = fed["steps_per_epoch"] = steps_per_epoch
        with of_mixture(
            callbacks, mixture, trainer, verbose=verbose, epochs=epochs, steps=steps
        ) as made:
            return trainer.fit(
                **fed,
                class_weight=class_weight,
                validation_data=checked,
                validation_batch_size=validation_size,
                validation_steps=None if is_stream(validation_data) else validation_steps,
                validation_freq=validation_freq,
                epochs=epochs,
                initial_epoch=initial_epoch,
                verbose=verbose,
                callbacks=made,
            )


def _batches(data: Data, batch_size: int, shuffle: bool) -> Batches:
    """Returns data in files as batches, which are read one by one; Keras would load them whole."""
    arrays = tuple(data if data.sample_weight is not None else data[:2])
    return Batches(arrays, batch_size, np.random if shuffle else None)


def _warn_of_seen_rows(mixture: Mixture, data: Data, new: Data) -> None:
    """Warns where experts do clearly better on the gate's rows than on new ones."""
    on_gate, on_new = (
        losses_of_experts(mixture, part.y, part.x["outputs"]) for part in (data, new)
    )
    names = [f"expert {i} ({name!r})" for i, name in enumerate(_names(mixture))]
    remedy = "Fit it on other rows, or on out-of-fold outputs of plait.training.cross_fit"
    text = seen_in_training(names, on_gate, on_new, remedy)
    if text is not None:
        warnings.warn(text, stacklevel=4)


def _names(mixture: Mixture) -> list[str]:
    names = [expert.name for expert in mixture.experts]
    return names if len(names) == mixture.num_experts else names * mixture.num_experts


def _scope_of(mixture: Mixture) -> contextlib.AbstractContextManager:
    """Returns the scope of the `tf.distribute` strategy under which the mixture was made."""
    strategy = getattr(mixture, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


class _GateTrainer(PartsModel):
    """A mixture's gate and router over given experts' outputs; they share its variables."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__(name=f"{mixture.name}_gate")
        self.gate = mixture.gate
        self.router = mixture.router
        self.supports_masking = True
        self._weights_shape = mixture.weights_shape()
        self._combination = mixture.combination
        self._route = mixture.route  # a bound method, which Keras does not track
        self.built = True
        mixture.compile_like(self)

    def weights_shape(self) -> Shape | None:
        return self._weights_shape

    def call(
        self, inputs: Batch, training: bool | None = None, mask: Batch | None = None
    ) -> Nested:
        of_x = None if mask is None else mask["x"]
        routing = self._route(inputs["x"], bool(training), of_x)
        routed = len(routing.weights.shape) - 1
        outputs = tree.map_structure(lambda leaf: ops.moveaxis(leaf, routed, 0), inputs["outputs"])
        if self.router is not None and self.router.sparse:
            outputs = _without_unchosen(routing, outputs)
        masks = masks_of_outputs(inputs)
        if self.objective is not None:
            self.note_parts(Parts(routing.weights, outputs, masks, []))
            outputs = self.objective.mean(outputs)
        merged = merge_stacked(routing.weights, outputs, self.compute_dtype, self._combination)
        return attach_masks(merged, masks)

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> None:
        """The outputs' masks are attached in `call`."""
        del inputs, mask


def _without_unchosen(routing: Routing, outputs: Nested) -> Nested:
    """Returns outputs `(e, b, …, u)` with zeros where an expert was not chosen.

    A weight of zero times an expert's NaN would be NaN.
    """
    keep = chosen(chosen_experts(routing), routing.weights.shape[-1])
    keep = ops.moveaxis(keep, -1, 0)

    def clear(leaf: Tensor) -> Tensor:
        ones = (1,) * (len(leaf.shape) - len(keep.shape))
        return ops.where(ops.reshape(keep, (*ops.shape(keep), *ones)), leaf, ops.zeros_like(leaf))

    return tree.map_structure(clear, outputs)
