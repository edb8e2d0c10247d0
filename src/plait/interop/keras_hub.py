"""KerasHub's mixtures of experts, run sparsely: each expert on the tokens that chose it."""

import importlib.util
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import keras
from keras import ops

from plait.compat import flat_layers
from plait.errors import message
from plait.ops.balance import expert_load, load_balance
from plait.ops.dispatch import apply_experts
from plait.ops.merging import merge_chosen
from plait.ops.routing import softmax, top_k
from plait.typing import Tensor

__all__ = ["sparsify"]

# What Keras and KerasHub compile on first use, and would go on using.
_COMPILED = ("train_function", "test_function", "predict_function", "generate_function")


def _gated(experts: Any, rows: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Returns `(act(x · W_gate) ∘ x · W_up) · W_down`, the activation in float32."""
    opened = experts.activation(ops.cast(ops.matmul(rows, gate), "float32"))
    hidden = ops.matmul(rows, up) * ops.cast(opened, experts.compute_dtype)
    return ops.matmul(hidden, down)


def _gated_in_one(experts: Any, rows: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """Returns `(act(x · W_gate) ∘ x · W_up) · W_down`, where one matrix holds the first two."""
    gate, up = ops.split(ops.matmul(rows, gate_and_up), 2, axis=-1)
    return ops.matmul(up * experts.activation(gate), down)


def _gated_in_turns(
    experts: Any, rows: Tensor, gate_and_up: Tensor, bias: Tensor, down: Tensor, down_bias: Tensor
) -> Tensor:
    """Returns `((u + 1) ∘ g ∘ σ(α · g)) · W_down + b`; columns of g and u take turns, clipped."""
    opened = ops.matmul(rows, gate_and_up) + bias
    gate = ops.clip(opened[..., ::2], -1e9, experts.limit)
    up = ops.clip(opened[..., 1::2], -experts.limit, experts.limit)
    hidden = (up + 1) * (gate * ops.sigmoid(gate * experts.alpha))
    return ops.matmul(hidden, down) + down_bias


class _Layout(NamedTuple):
    """What one family calls its parts. The layers have no public classes; names are public.

    Attributes:
        expert: What one expert computes: maps the layer of all experts, rows `(r, d)` and the
            expert's weights to `(r, d)`. KerasHub's own call runs all experts on the same rows.
        weights: Names of the experts' weights, in the order in which `expert` takes them.
        router: Name of the layer that scores the experts.
        shared: Names of the expert that every token visits and of its gate, or none.
        loss: Attribute with the coefficient of the load-balance loss, or `None` without one.
        tells_weights: Whether the block returns, beside its output, weights rather than scores.
    """

    expert: Callable[..., Any]
    weights: tuple[str, ...]
    router: str = "sparse_feedforward_gate_dense"
    shared: tuple[str, ...] = ()
    loss: str | None = None
    tells_weights: bool = False


_GATE, _UP, _DOWN = (
    f"expert_feedforward_{part}_dense" for part in ("gate", "intermediate", "output")
)
# By the class of the block. An unknown class is left as it is: its routing may differ.
_LAYOUTS = {
    "GptOssSparseMoeBlock": _Layout(
        _gated_in_turns,
        ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"),
        router="router_dense",
        tells_weights=True,
    ),
    "MixtralSparseMoeBlock": _Layout(_gated, (_GATE, _UP, _DOWN), loss="router_aux_loss_coef"),
    "Qwen3SparseMoeBlock": _Layout(
        _gated_in_one, (_GATE, _DOWN), loss="router_aux_loss_coefficient"
    ),
    "QwenSparseMoeBlock": _Layout(
        _gated_in_one,
        (_GATE, _DOWN),
        shared=("shared_expert_dense", "shared_expert_gate_dense"),
        loss="router_aux_loss_coefficient",
    ),
}


def sparsify(model: keras.Model) -> keras.Model:
    """Makes a KerasHub model run each expert on the tokens that chose it, and on no others.

    KerasHub's Mixtral, Qwen-MoE, Qwen3-MoE and gpt-oss run every expert on every token, and weigh
    most results by zero. After this call the same model, with the same weights, gives the same
    numbers, gradients and load-balance loss at the cost of the chosen experts; no token is
    dropped, however skewed the load. Routing weights are computed in float32 or better, so under
    half precision they are a little more exact than KerasHub's.

    The model is changed in place: `fit`, `predict` and `generate` run sparsely from now on, also
    where they had been compiled. What is saved is an ordinary KerasHub model: neither the config
    nor the weights know of the change, so a file loads without plait, runs every expert again,
    and may be sparsified again. A copy made by `keras.models.clone_model` is not sparse either.

    On TensorFlow the sparse loop does not run under XLA: on a GPU, compile the model with
    `jit_compile=False`.

    Args:
        model: A KerasHub backbone, a task such as `MixtralCausalLM`, or any Keras model that
            holds one. A model that is sparse already stays as it is.

    Returns:
        The model itself.

    Raises:
        ImportError: If KerasHub is not installed.
        ValueError: If the model holds no block of these families.

    Example:
    >>> import keras, keras_hub
    >>> from plait.interop.keras_hub import sparsify
    >>> backbone = keras_hub.models.MixtralBackbone(
    ...     vocabulary_size=9, num_layers=1, num_query_heads=1, num_key_value_heads=1,
    ...     hidden_dim=4, intermediate_dim=8, num_experts=4, top_k=2,
    ... )
    >>> tokens = keras.ops.ones((2, 5), dtype="int32")
    >>> tuple(sparsify(backbone)({"token_ids": tokens, "padding_mask": tokens}).shape)
    (2, 5, 4)
    """
    if importlib.util.find_spec("keras_hub") is None:
        raise ImportError(
            message(
                "plait.interop.keras_hub needs KerasHub",
                "no such package",
                "pip install plait[hub]",
            )
        )
    layers = flat_layers(model)
    blocks = [layer for layer in layers if type(layer).__name__ in _LAYOUTS]
    if not blocks:
        raise ValueError(
            message(
                "`sparsify` takes a KerasHub model of the Mixtral, Qwen-MoE, Qwen3-MoE or gpt-oss "
                "family, with at least one mixture-of-experts block",
                f"{model.name!r} of type {type(model).__name__}, which has none",
                "Pass such a backbone or task; for other models put plait.Mixture in their place",
            )
        )
    for block in blocks:
        # An attribute on the one object, and no subclass: the decoder asks for the block's class.
        block.call = MethodType(_call, block)
    for layer in layers:
        for name in _COMPILED:
            if getattr(layer, name, None) is not None:
                setattr(layer, name, None)
    return model


def _call(
    block: Any, hidden_states: Any, attention_mask: Any = None, training: Any = None
) -> tuple[Any, Any]:
    """Stands in for a block's `call`.

    Args:
        block: The block.
        hidden_states: Tensor `(b, t, d)`.
        attention_mask: `None`, or which tokens count in the load-balance loss: `(b, t)`, or
            `(b, t, s)` where a token counts that attends to anything.
        training: As in Keras.

    Returns:
        Tensor `(b, t, d)`, and scores or weights `(b · t, e)` as the family tells them.
    """
    layout = _LAYOUTS[type(block).__name__]
    parts = {layer.name: layer for layer in flat_layers(block)}
    _check_jitter(block, training)
    tokens = ops.reshape(hidden_states, (-1, block.hidden_dim))
    scores = parts[layout.router](tokens)
    routing = top_k(scores, block.top_k, renormalize=getattr(block, "norm_top_k_prob", True))
    outputs = _run_chosen(layout, parts["experts"], tokens, routing.indices)
    out = merge_chosen(routing.weights, routing.indices, outputs, block.compute_dtype)
    if layout.shared:
        expert, gate = (parts[name] for name in layout.shared)
        out = out + expert(tokens) * ops.sigmoid(gate(tokens))
    if training and layout.loss is not None:
        mask = _token_mask(attention_mask)
        term = load_balance(softmax(scores), expert_load(routing, mask), mask)
        block.add_loss(getattr(block, layout.loss) * term)
    told = ops.cast(routing.weights, out.dtype) if layout.tells_weights else scores
    return ops.reshape(out, ops.shape(hidden_states)), told


def _run_chosen(layout: _Layout, experts: Any, tokens: Tensor, indices: Tensor) -> Tensor:
    """Runs each expert on the tokens that chose it.

    Args:
        layout: The family's.
        experts: The layer of all experts.
        tokens: Tensor `(n, d)`.
        indices: int32 `(n, k)`.

    Returns:
        Tensor `(n, k, d)`.
    """
    weights = {variable.name: variable.value for variable in experts.variables}

    def one(values: list[Any], rows: Tensor, segment: Any) -> Tensor:
        del segment
        return layout.expert(
            experts, rows, *(ops.cast(value, experts.compute_dtype) for value in values)
        )

    values = [weights[name] for name in layout.weights]
    return apply_experts(one, values, tokens, indices, num_experts=experts.num_experts)


def _token_mask(attention_mask: Any) -> Tensor:
    """Returns bool `(b · t,)`, or `None`."""
    if attention_mask is None:
        return None
    mask = ops.cast(attention_mask, "bool")
    if len(mask.shape) == 3:
        mask = ops.any(mask, axis=-1)
    return ops.reshape(mask, (-1,))


def _check_jitter(block: Any, training: Any) -> None:
    noise = getattr(block, "router_jitter_noise", 0.0)
    if training and noise > 0:
        raise ValueError(
            message(
                "`router_jitter_noise` must be 0 in training: KerasHub's own block cannot draw "
                "that noise, so there is nothing to be equal to",
                f"router_jitter_noise={noise}",
                "Build the backbone with router_jitter_noise=0.0",
            )
        )
