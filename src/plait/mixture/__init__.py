"""The mixture: parallel Keras models and a gate, or a gate for each task, as one Keras model."""

from plait.mixture.model import Mixture
from plait.mixture.multi_gate import MultiGateMixture

__all__ = ["Mixture", "MultiGateMixture"]
