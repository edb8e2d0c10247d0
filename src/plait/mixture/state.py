"""The internal state of a mixture, which Keras must not track."""

import dataclasses
import warnings
from typing import Literal

import keras

from plait.experts.groups import ExpertBank
from plait.mixture.gates import GateSpec
from plait.mixture.inputs import Selector
from plait.typing import Nested, Shape, Shapes

Ownership = Literal["shared", "copied", "template"]


@dataclasses.dataclass
class MixtureState:
    """A mixture's private facts, in an object that Keras does not look into.

    Attributes:
        given: The experts as they were passed in, or the template alone.
        ownership: Whose the experts' variables are: the caller's, or the mixture's, made of copies
            or of a template.
        gate: The gate as it was passed in.
        selectors: What of the input all experts read, or each of them.
        input_shape: Structure of the input's shapes, once built.
        input_dtype: Structure of its dtypes, where known.
        weights_shape: Shape of the mixing weights, `(b, …, e)`, once built.
        output_specs: Symbolic outputs of one expert, once built.
        dispatches: Whether experts run only on the rows that chose them.
        built_bank: The experts' bank, once built.
        namesakes: Lists of variables that share a path, once built.
        compiled_with: Arguments that `compile` was given.
        warned: Texts of warnings that were given.
        probes: Models that predict what happens inside, by what they predict.
        models: Models around experts that are bare layers, by position.
    """

    given: list[keras.layers.Layer]
    ownership: Ownership
    gate: GateSpec
    selectors: list[Selector]
    input_shape: Shapes | None = None
    input_dtype: Nested = None
    weights_shape: Shape | None = None
    output_specs: Nested = None
    dispatches: bool = False
    built_bank: ExpertBank | None = None
    namesakes: list[list[keras.Variable]] = dataclasses.field(default_factory=list)
    compiled_with: tuple[tuple[object, ...], dict[str, object]] = ((), {})
    warned: set[str] = dataclasses.field(default_factory=set)
    probes: dict[str, keras.Model] = dataclasses.field(default_factory=dict)
    models: dict[int, keras.Model] = dataclasses.field(default_factory=dict)

    @property
    def bank(self) -> ExpertBank:
        """The experts' bank of a built mixture."""
        assert self.built_bank is not None
        return self.built_bank

    @property
    def first(self) -> keras.layers.Layer:
        """The first expert that was passed in, or the template."""
        return self.given[0]

    def warn_once(self, text: str) -> None:
        """Warns, unless the same was said before."""
        if text not in self.warned:
            self.warned.add(text)
            warnings.warn(text, stacklevel=3)
