"""Puts a mixture together: checks its arguments, builds gate and experts, checks that they fit."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras
from keras import ops, tree

from plait.errors import choose_from, message
from plait.experts.runner import input_of
from plait.mixture import gates
from plait.mixture.combining import check_combined, check_likelihood
from plait.mixture.inputs import select, select_each
from plait.mixture.ownership import make_experts
from plait.mixture.specs import (
    as_rows,
    check_agreement,
    check_gate,
    check_names,
    check_rank_rule,
    output_specs,
    specs_of,
    takes_single_rows,
)
from plait.mixture.state import MixtureState
from plait.mixture.views import check_present
from plait.ops.combine import merged_dtype
from plait.ops.shapes import merge
from plait.routers import Router
from plait.typing import Nested, Shape, Shapes

if TYPE_CHECKING:
    from plait.mixture.model import Mixture
    from plait.mixture.of_experts import OfExperts

EXECUTIONS = ("auto", "loop", "stacked")


def check_experts(
    experts: list[keras.layers.Layer] | keras.layers.Layer, num_experts: int | None
) -> tuple[list[keras.layers.Layer], int]:
    """Returns the experts as a list (of one template) and their number.

    Raises:
        ValueError: If there are none, or their number is contradicted or missing.
        TypeError: If one is no Keras model or layer.
    """
    if num_experts is not None and (
        not isinstance(num_experts, int) or isinstance(num_experts, bool) or num_experts < 1
    ):
        raise ValueError(
            message(
                "`num_experts` must be an integer of at least 1",
                f"num_experts={num_experts!r}",
                "Say how many copies of the template the mixture has",
            )
        )
    if isinstance(experts, keras.layers.Layer):
        if num_experts is None:
            raise ValueError(
                message(
                    "One template needs `num_experts`",
                    f"the template {experts.name!r} and num_experts=None",
                    "Say how many, as in Mixture(template, num_experts=8), or pass a list",
                )
            )
        return [experts], num_experts
    if not isinstance(experts, (list, tuple)) or not experts:
        raise ValueError(
            message(
                "A mixture needs at least one expert",
                f"experts={experts!r}",
                "Pass a list of Keras models or layers, or one template with `num_experts`",
            )
        )
    for position, expert in enumerate(experts):
        if not isinstance(expert, keras.layers.Layer):
            raise TypeError(
                message(
                    f"Expert {position} must be a Keras model or layer",
                    f"{expert!r} of type {type(expert).__name__}",
                    "Wrap a function in keras.layers.Lambda, or write a layer",
                )
            )
    if num_experts not in (None, len(experts)):
        raise ValueError(
            message(
                "`num_experts` goes with one template; a list counts itself",
                f"{len(experts)} experts and num_experts={num_experts}",
                "Leave `num_experts` out",
            )
        )
    return list(experts), len(experts)


def check_execution(execution: str) -> str:
    """Returns `execution` when it is a known one, and raises `ValueError` otherwise."""
    if execution not in EXECUTIONS:
        raise ValueError(choose_from("execution", execution, EXECUTIONS))
    return execution


def build(mixture: "Mixture", input_shape: Shapes) -> list[keras.layers.Layer]:
    """Builds gate, router and experts, and fills in the mixture's state.

    Args:
        mixture: The mixture.
        input_shape: Structure of the inputs' shapes.

    Returns:
        The layers that own the experts' variables, where the mixture does.

    Raises:
        ValueError: If gate and experts do not fit together.
    """
    inputs = note_inputs(mixture, input_shape)
    check_present(inputs, mixture.present, mixture.state.selectors, mixture.num_experts)
    part = select(inputs, mixture.gate_inputs, "the gate")
    scores = build_gate(mixture.gate, mixture.router, part, mixture.num_experts, mixture.name)
    owned = build_experts(mixture, inputs, scores)
    check_combined(mixture)
    by_default = mixture.state.gate is None
    warn_of_the_gate(mixture, mixture.gate, mixture.router, by_default=by_default)
    return owned


def note_inputs(model: "OfExperts", input_shape: Shapes) -> Nested:
    """Notes the shapes of a model's inputs, and returns symbolic ones."""
    model.state.input_shape = input_shape
    return specs_of(input_shape, model.state.input_dtype)


def build_gate(
    gate: keras.layers.Layer, router: Router | None, part: Nested, num_experts: int, name: str
) -> keras.KerasTensor:
    """Builds a gate and its router, whose metrics are called after `name`.

    Args:
        gate: The gate.
        router: What makes weights of its scores, or `None`.
        part: Symbolic input of the gate.
        num_experts: How many experts it scores.
        name: Of the mixture.

    Returns:
        The symbolic scores `(b, …, e)`.
    """
    scores = check_gate(output_specs(gate, part), gate, num_experts)
    if router is not None and not router.built:
        router.build(tuple(scores.shape))
    if router is not None:
        router.report_as(name)
    return scores


def build_experts(
    model: "OfExperts", inputs: Nested, scores: keras.KerasTensor
) -> list[keras.layers.Layer]:
    """Builds the experts for symbolic inputs and scores, and fills in the model's state.

    Args:
        model: A mixture, or another model of experts.
        inputs: Its symbolic inputs.
        scores: Symbolic scores `(b, …, e)`, or of fewer experts.

    Returns:
        The layers that own the experts' variables, where the model does.
    """
    state = model.state
    weights_shape = state.weights_shape = (*scores.shape[:-1], model.num_experts)
    fed = select_each(inputs, state.selectors)
    for position, expert in enumerate(state.given):
        check_names(expert, input_of(fed, position))
    rows = _row_specs(model, fed, weights_shape) if model.is_sparse else None
    state.dispatches = rows is not None
    state.built_bank, owned = make_experts(
        state, model.num_experts, fed if rows is None else rows, model.execution
    )
    state.output_specs = expert_specs(state, fed, scores)
    check_rank_rule(weights_shape, state.output_specs)
    note_namesakes(model, owned)
    return owned


def note_namesakes(model: "OfExperts", owned: Sequence[keras.layers.Layer]) -> None:
    """Notes which variables share a path: Keras clears gradients on PyTorch by path.

    Args:
        model: A mixture, or another model of experts.
        owned: The layers that own the experts' variables, where the model does.
    """
    by_path = defaultdict(list)
    layers = [*(owned or model.state.given), *model.other_layers()]
    for variable in {id(v): v for layer in layers for v in layer.variables}.values():
        by_path[variable.path].append(variable)
    model.state.namesakes = [group for group in by_path.values() if len(group) > 1]


def _row_specs(
    mixture: "OfExperts", fed: list[Nested], weights_shape: Shape
) -> list[Nested] | None:
    """Returns the specs of one row each, or `None` where experts cannot run row by row."""
    state, rank = mixture.state, len(weights_shape) - 1
    if rank == 1:
        return fed
    if all(len(spec.shape) >= rank for spec in tree.flatten(fed)):
        rows = [as_rows(part, rank) for part in fed]
        if takes_single_rows(state.first, rows[0]):
            return rows
    state.warn_once(
        f"The experts of {mixture.name!r} run on every step: {state.first.name!r} does not take "
        f"single rows, which weights of shape {weights_shape} route. Leave the experts "
        "unbuilt, or build them for the input of one step."
    )
    return None


def expert_specs(state: MixtureState, fed: list[Nested], weights: keras.KerasTensor) -> Nested:
    """Returns the experts' common output specs, checked to agree.

    Args:
        state: Of the mixture.
        fed: Symbolic inputs that all experts share, or one for each.
        weights: Symbolic weights `(b, …, e)`.

    Raises:
        ValueError: If structure or shape differ between experts.
    """
    rank = len(weights.shape) - 1
    if not state.dispatches or rank == 1:
        return check_agreement(state.bank.output_specs(fed))
    rows = [as_rows(part, rank) for part in fed]
    return tree.map_structure(
        lambda spec: keras.KerasTensor((*weights.shape[:-1], *spec.shape[1:]), spec.dtype),
        check_agreement(state.bank.output_specs(rows)),
    )


def merged_specs(mixture: "Mixture", inputs: Nested) -> Nested:
    """Returns shape and dtype of a built mixture's output for symbolic inputs."""
    part = select(inputs, mixture.gate_inputs, "the gate")
    weights = mixture.gate.compute_output_spec(part)
    outputs = expert_specs(mixture.state, select_each(inputs, mixture.state.selectors), weights)

    def merged(spec: keras.KerasTensor) -> keras.KerasTensor:
        if mixture.objective is not None:
            stacked = keras.KerasTensor((mixture.num_experts, *spec.shape), spec.dtype)
            spec = keras.KerasTensor(mixture.objective.mean(stacked).shape[1:], spec.dtype)
        return merged_spec(weights, spec, mixture.compute_dtype)

    return tree.map_structure(merged, outputs)


def merged_spec(
    weights: keras.KerasTensor, output: keras.KerasTensor, compute_dtype: str
) -> keras.KerasTensor:
    """Returns shape and dtype of one output that is merged by weights `(b, …, e)`."""
    routed = len(weights.shape) - 1
    shape = merge(weights.shape[:-1], output.shape[:routed]) + output.shape[routed:]
    return keras.KerasTensor(shape, merged_dtype([output.dtype], compute_dtype))


def parts_specs(
    model: "OfExperts", inputs: Nested, scores: keras.KerasTensor
) -> tuple[keras.KerasTensor, Nested]:
    """Returns shapes and dtypes of weights and of all experts' outputs.

    Args:
        model: A built mixture, or another model of experts.
        inputs: Its symbolic inputs.
        scores: Symbolic scores `(b, …, e)`, or of fewer experts.
    """
    count, routed = model.num_experts, len(scores.shape) - 1
    outputs = expert_specs(model.state, select_each(inputs, model.state.selectors), scores)
    experts = tree.map_structure(
        lambda spec: keras.KerasTensor(
            (
                *merge(scores.shape[:-1], spec.shape[:routed]),
                count,
                *spec.shape[routed:],
            ),
            spec.dtype,
        ),
        outputs,
    )
    return keras.KerasTensor((*scores.shape[:-1], count), scores.dtype), experts


def empty_outputs(model: "OfExperts", inputs: Nested) -> Nested:
    """Returns an empty batch: PyTorch and TensorFlow have no maximum over no rows."""
    return tree.map_structure(
        lambda spec: ops.zeros([size or 0 for size in spec.shape], spec.dtype),
        model.compute_output_spec(inputs),
    )


def replaced(mixture: "OfExperts") -> ValueError:
    """Returns the error for a mixture whose list of experts was assigned to."""
    return ValueError(
        message(
            "The experts of a mixture are those that it was made of",
            f"{mixture.name!r}, whose `experts` hold other models now",
            "Make a new Mixture of the models, with the same gate",
        )
    )


def warn_of_the_gate(
    model: "OfExperts", gate: keras.layers.Layer, router: Router | None, *, by_default: bool
) -> None:
    """Warns of a gate whose output visibly is not what the router takes, or no weights.

    Args:
        model: The mixture.
        gate: The gate.
        router: Its router, or `None`.
        by_default: Whether the caller left the gate to plait.
    """
    state = model.state
    by_step = [spec for spec in tree.flatten(state.output_specs) if len(spec.shape) == 3]
    if model.is_sparse and by_default and by_step:
        state.warn_once(
            f"The default gate of {model.name!r} routes whole examples, outputs of shape "
            f"{tuple(by_step[0].shape)}. To route each step, pass "
            f"gate=keras.layers.Dense({model.num_experts})."
        )
    if router is None:
        if gates.ends_in_raw_scores(gate):
            state.warn_once(
                f"The gate {gate.name!r} ends without a softmax and there is no router: its "
                "scores, of any sign and sum, are the weights. End it with "
                "activation='softmax', or pass router='softmax'."
            )
    elif router.from_logits and gates.ends_in_softmax(gate):
        state.warn_once(
            f"The gate {gate.name!r} ends in a softmax, but {type(router).__name__} takes "
            "logits: the weights are a softmax of a softmax, nearly uniform. Use "
            "from_logits=False, or end the gate without softmax."
        )


def check_objective(mixture: "Mixture") -> None:
    """Checks that the experts have the one output that an objective takes, merged as it supposes.

    Raises:
        ValueError: If they have several, or are merged otherwise.
    """
    check_likelihood(mixture)
    outputs = mixture.state.output_specs
    if mixture.objective is not None and len(tree.flatten(outputs)) > 1:
        raise ValueError(
            message(
                f"{type(mixture.objective).__name__} takes experts with one output",
                f"outputs {tree.map_structure(lambda spec: str(tuple(spec.shape)), outputs)}",
                "Make a mixture of models that return one of them, or compile Keras losses",
            )
        )
