"""Inspection: numbers about a mixture, from its weights, its experts' outputs and the targets."""

from plait.inspection.calibration import Calibration, calibration
from plait.inspection.constant import best_constant_weights
from plait.inspection.importance import Importance, permutation_importance
from plait.inspection.losses import losses
from plait.inspection.paired import Interval, bootstrap
from plait.inspection.scores import Reference, Score, choose, score, scores
from plait.inspection.usage import (
    Along,
    Confusion,
    Usage,
    expert_confusion,
    usage,
    weights_along,
    weights_per_class,
    worst,
)

__all__ = [
    "Along",
    "Calibration",
    "Confusion",
    "Importance",
    "Interval",
    "Reference",
    "Score",
    "Usage",
    "best_constant_weights",
    "bootstrap",
    "calibration",
    "choose",
    "expert_confusion",
    "losses",
    "permutation_importance",
    "score",
    "scores",
    "usage",
    "weights_along",
    "weights_per_class",
    "worst",
]
