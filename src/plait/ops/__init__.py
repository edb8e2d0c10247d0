"""The pure functions under all of plait: tensors in, tensors out, no state."""

from plait.ops.balance import expert_load, importance, load_balance, z_loss
from plait.ops.combine import (
    combine_masks,
    log_mixture,
    log_sum_exp,
    weighted_sum,
    weighted_sum_stacked,
)
from plait.ops.likelihood import log_likelihood, posterior
from plait.ops.pool import gaussian_pool, log_pool, pool
from plait.ops.routing import (
    Routing,
    entmax15,
    expert_choice,
    softmax,
    sparsemax,
    straight_through,
    top_k,
    within_capacity,
)
from plait.ops.usage import gate_entropy

__all__ = [
    "Routing",
    "combine_masks",
    "entmax15",
    "expert_choice",
    "expert_load",
    "gate_entropy",
    "gaussian_pool",
    "importance",
    "load_balance",
    "log_likelihood",
    "log_mixture",
    "log_pool",
    "log_sum_exp",
    "pool",
    "posterior",
    "softmax",
    "sparsemax",
    "straight_through",
    "top_k",
    "weighted_sum",
    "weighted_sum_stacked",
    "within_capacity",
    "z_loss",
]
