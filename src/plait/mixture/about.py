"""What a mixture knows of itself and Keras must not track."""

import dataclasses
from typing import Any

import keras

from plait.experts import ExpertBank


@dataclasses.dataclass
class About:
    """A mixture's private facts, in an object that Keras does not look into.

    Attributes:
        experts: The experts as they were passed in, or the template alone.
        template: The template, or `None`.
        gate: The gate as it was passed in.
        selectors: What of the input all experts read, or each of them.
        input_shape: Structure of the input's shapes, once built.
        input_dtype: Structure of its dtypes, where known.
        weights_shape: Shape of the mixing weights, `(b, …, e)`, once built.
        dispatches: Whether experts run only on the rows that chose them.
        built_bank: The experts' bank, once built.
        namesakes: Variables whose paths are not theirs alone, once built.
        compiled_with: Arguments that `compile` was given.
        warned: Texts of warnings that were given.
        probes: Models that predict what happens inside, by what they predict.
    """

    experts: list[keras.layers.Layer]
    template: keras.layers.Layer | None
    gate: Any
    selectors: list[Any]
    input_shape: Any = None
    input_dtype: Any = None
    weights_shape: tuple[int | None, ...] | None = None
    dispatches: bool = False
    built_bank: ExpertBank | None = None
    namesakes: list[keras.Variable] = dataclasses.field(default_factory=list)
    compiled_with: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    warned: set[str] = dataclasses.field(default_factory=set)
    probes: dict[str, keras.Model] = dataclasses.field(default_factory=dict)

    @property
    def bank(self) -> ExpertBank:
        """The experts' bank of a built mixture."""
        assert self.built_bank is not None
        return self.built_bank

    @property
    def brought_by_user(self) -> bool:
        """Whether the gate is a layer that the caller made."""
        return isinstance(self.gate, keras.layers.Layer)
