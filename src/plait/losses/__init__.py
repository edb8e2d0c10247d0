"""Objectives of a mixture that see its parts: likelihood, mean of the experts' losses."""

from plait.losses import families
from plait.losses.base import MixtureObjective
from plait.losses.expert_mean import ExpertMean
from plait.losses.mixture_nll import MixtureNLL

__all__ = ["ExpertMean", "MixtureNLL", "MixtureObjective", "families"]
