"""Losses: likelihoods, and objectives of a mixture that see its parts."""

from plait.losses import families
from plait.losses.base import MixtureObjective
from plait.losses.expert_mean import ExpertMean
from plait.losses.mixture_nll import MixtureNLL
from plait.losses.nll import NLL

__all__ = ["NLL", "ExpertMean", "MixtureNLL", "MixtureObjective", "families"]
