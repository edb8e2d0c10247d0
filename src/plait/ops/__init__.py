"""The pure functions under all of plait: tensors in, tensors out, no state."""

from plait.ops.combine import (
    combine_masks,
    log_mixture,
    log_sum_exp,
    weighted_sum,
    weighted_sum_stacked,
)
from plait.ops.routing import Routing, softmax

__all__ = [
    "Routing",
    "combine_masks",
    "log_mixture",
    "log_sum_exp",
    "softmax",
    "weighted_sum",
    "weighted_sum_stacked",
]
